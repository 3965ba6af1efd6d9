"""Run a validator.

    python neurons/validator.py --netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey

All its state is in --state_dir: stop it with Ctrl-C or SIGTERM, start it again, and it continues. A second Ctrl-C ends
it at once. Exit status: 0 stopped, 2 or 3 the command line or another setting is wrong, 4 this machine failed, 7 the
subnet does not exist any more, 10 a newer release was installed: start it again.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from loguru import logger

from neurons.validator_arguments import (
    PUBLIC_FLAGS,
    add_executor_arguments,
    add_file_arguments,
    add_metrics_arguments,
    add_round_arguments,
    check_metrics,
)
from template import __version__, cli, files
from template.arguments import Check, Parser
from template.competition import Incentives, is_repo_id
from template.config import DTYPES, load_competition, load_incentives, load_training_args
from template.errors import EXIT_UPDATED, ConfigError, RemoteError, SubnetError
from template.rules.schedule import Policy

if TYPE_CHECKING:
    from template.doctor.setup import Setup
    from template.telemetry.wandb_tracker import Tracker
    from template.validator.bootstrap import RoundHistory
    from template.validator.config import ValidatorConfig
    from template.validator.loop import Validator
    from template.workers.executor import Evaluator, Executor

_STATE_FILE = "validator.sqlite3"


def check_wallet(args: argparse.Namespace) -> None:
    """Check the wallet, unless --offline. Raises: ConfigError."""
    if not args.offline:
        cli.check_wallet(args)


def check_rounds(args: argparse.Namespace) -> None:
    """Check the flags of rounds. Raises: ConfigError."""
    make_policy(args, make_incentives(args))


def check_seeds(args: argparse.Namespace) -> None:
    """Check the flags of seeds. Raises: ConfigError."""
    if args.lucky_num is not None and not 0 <= args.lucky_num < 2**32:
        raise ConfigError(f"--lucky_num must lie in [0, 2**32), not {args.lucky_num}")
    if args.lucky_num is not None and args.lucky_num_from == "chain":
        raise ConfigError("--lucky_num and --lucky_num_from chain exclude each other: both set the seeds")


def check_keep_days(args: argparse.Namespace) -> None:
    """Check --keep_days. Raises: ConfigError."""
    if not 1.0 <= args.keep_days < float("inf"):
        raise ConfigError(f"--keep_days must be 1 or more, not {args.keep_days}")


def check_model(args: argparse.Namespace) -> None:
    """Check that the model cannot become another, and has the stated dtype. Raises: ConfigError."""
    training_args = load_training_args(args.training_args)
    if args.model_path is None and not training_args.is_pinned:
        # A branch can become another model between two starts, or between two validators.
        raise ConfigError(
            f"--training_args: the revision of {training_args.model_id} must be a full commit, not "
            f"{training_args.revision!r}"
        )
    if training_args.dtype is not None and args.dtype in DTYPES and args.dtype != training_args.dtype:
        raise ConfigError(
            f"--dtype {args.dtype}: the training arguments state {training_args.dtype}, by which all validators of "
            "this subnet evaluate; leave the flag out"
        )


def check_devices(args: argparse.Namespace) -> None:
    """Check that --device has names, and goes with --executor. Raises: ConfigError."""
    parse_devices(args.device)
    if args.device is not None and args.executor != "local":
        raise ConfigError("--device needs --executor local; a Ray cluster uses --ray.gpus_per_worker")


def check_publish_rounds(args: argparse.Namespace) -> str | None:
    """Return the repo of --publish_rounds, None without. Raises: ConfigError."""
    repo: str | None = args.publish_rounds
    if repo is not None and not is_repo_id(repo):
        raise ConfigError(f"--publish_rounds must be a Hub id like owner/name, not {repo!r}")
    if repo is not None and args.offline:
        raise ConfigError("--publish_rounds does not go with --offline: unsigned round files prove nothing")
    if repo is not None and cli.hub_token() is None:
        raise ConfigError("--publish_rounds needs a Hub token that may write: set HF_TOKEN, or run hf auth login")
    return repo


# Made before any work, so that one run names all that is wrong.
CHECKS: tuple[Check, ...] = (
    check_wallet,
    cli.check_chain,
    lambda args: cli.hub_token(),
    cli.check_competition,
    cli.check_score_arguments,
    check_rounds,
    check_seeds,
    check_keep_days,
    check_model,
    check_devices,
    check_publish_rounds,
    check_metrics,
    lambda args: cli.check_poll_seconds(args.poll_seconds),
)


def build_parser() -> Parser:
    parser = cli.make_parser("validator", __doc__, checks=CHECKS)
    cli.add_chain_arguments(parser)
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    add_executor_arguments(parser)
    add_file_arguments(parser)
    add_round_arguments(parser)
    add = parser.add_argument_group("modes").add_argument
    add("--offline", action="store_true", help="evaluate without a wallet and without writing to the chain")
    add("--dont_set_weights", action="store_true", help="do everything but set weights")
    add("--auto_update", action="store_true", help="install signed releases of the git remote; ends with status 10")
    cli.add_tracking_arguments(parser)
    cli.add_alert_argument(parser)
    add_metrics_arguments(parser)
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped and return the exit status."""
    return cli.run_main(build_parser(), argv, run, is_private=True, diagnose=diagnose)


def diagnose(args: argparse.Namespace, faults: Sequence[SubnetError]) -> Sequence[SubnetError]:
    """Add the faults of machine, Hub and chain with which the validator cannot run."""
    from template.doctor.start import find_start_faults

    return find_start_faults(make_setup(args), faults, lambda: make_state_dir(args))


def make_setup(args: argparse.Namespace) -> "Setup":
    """Return what `template.doctor` has to check."""
    from template.doctor.setup import Role, Setup

    state_dir = (args.state_dir or default_state_dir(args)).expanduser().resolve()
    return Setup(
        args=args,
        role=Role.VALIDATOR,
        state_dir=state_dir,
        eval_data_dir=(args.eval_data_dir or state_dir / "eval_data").resolve(),
        cache_dir=(args.cache_dir or state_dir / "cache").resolve(),
        is_offline=args.offline,
        sets_weights=not (args.offline or args.dont_set_weights),
        settings=CHECKS,
    )


def make_state_dir(args: argparse.Namespace) -> Path:
    """Create --state_dir, or close it to other users. Raises: ConfigError."""
    return files.check_private_folder(args.state_dir or default_state_dir(args), "--state_dir", marks=(_STATE_FILE,))


def run(args: argparse.Namespace) -> int:
    """Build the validator and run it. Raises: SubnetError."""
    from template.hub.datasets import check_eval_set_available
    from template.status.alerts import Alerter, watching
    from template.status.exporter import serving
    from template.store.store import Store
    from template.validator.downloads import Downloader
    from template.validator.loop import Validator

    state_dir = make_state_dir(args)
    config = make_config(args, state_dir)
    evaluator = cli.make_evaluator(args, config.competition, config.eval_data_dir, config.cache_dir)
    history = read_bootstrap(args, config, evaluator.training_args.hyperparameters.digest, state_dir)
    if history.first_block is not None and not config.policy.start_block:
        config = replace(config, policy=replace(config.policy, start_block=history.first_block))
    update = make_update() if args.auto_update else None
    alerter = Alerter(args.alert_url, state_dir) if args.alert_url else None
    with (
        cli.open_chain(args, needs_wallet=not args.offline) as chain,
        Store(state_dir / _STATE_FILE) as store,
        closing(make_executor(args, evaluator)) as executor,
        closing(make_tracker(args, config, "offline" if args.offline else chain.hotkey, state_dir)) as tracker,
    ):
        control = partial(check_eval_set_available, config.competition)
        downloader = Downloader(args.max_downloads, control=control)
        validator = Validator(
            config, chain, store, executor, downloader, tracker=tracker, update=update, history=history
        )
        stop_on_signals(validator)
        with watching(alerter, state_dir), serving(state_dir, args.metrics_host, args.metrics_port):
            validator.run()
    return EXIT_UPDATED if validator.is_updated else 0


def make_config(args: argparse.Namespace, state_dir: Path) -> "ValidatorConfig":
    """Return the operator's choices. Raises: ConfigError naming the flag."""
    from template.validator.config import LuckyNumFrom, ValidatorConfig

    incentives = make_incentives(args)
    return ValidatorConfig(
        competition=load_competition(args.competition),
        incentives=incentives,
        policy=make_policy(args, incentives),
        data_dir=files.check_folder(args.data_dir or state_dir / "data", "--data_dir"),
        eval_data_dir=files.check_folder(args.eval_data_dir or state_dir / "eval_data", "--eval_data_dir"),
        cache_dir=files.check_folder(args.cache_dir or state_dir / "cache", "--cache_dir"),
        receipt_dir=(args.receipt_dir or state_dir / "receipts").resolve(),
        round_dir=(args.round_dir or state_dir / "rounds").resolve(),
        publish_rounds=check_publish_rounds(args),
        is_offline=args.offline,
        # With Ray, --ray.gpus_per_worker chooses: a worker without its GPU does not start.
        is_device_chosen=args.device is not None or args.executor == "ray",
        lucky_num=args.lucky_num,
        lucky_num_from=LuckyNumFrom(args.lucky_num_from) if args.lucky_num_from else None,
        poll_s=args.poll_seconds,
        keep_days=args.keep_days,
        hub_token=cli.hub_token(),
    )


def read_bootstrap(
    args: argparse.Namespace, config: "ValidatorConfig", hyperparameters_digest: str, state_dir: Path
) -> "RoundHistory":
    """Return the checked round files of --bootstrap_rounds.

    Raises: ConfigError, RemoteError.
    """
    from template.chain.client import verify_signature
    from template.hub.repo_files import download_files
    from template.receipts.files import MAX_FILE_BYTES
    from template.validator.bootstrap import RoundHistory, read_history

    source = args.bootstrap_rounds
    if source is None:
        return RoundHistory()
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not is_repo_id(source):
            raise ConfigError(f"--bootstrap_rounds must be a folder or a Hub id like owner/name, not {source!r}")
        folder = files.check_folder(state_dir / "bootstrap", "--state_dir")
        try:
            download_files(source, "round-*.jsonl", folder, max_bytes=MAX_FILE_BYTES, token=config.hub_token)
        except RemoteError as error:
            if not any(folder.glob("round-*.jsonl")):
                raise
            logger.warning("--bootstrap_rounds: using the files of an earlier start: {}", error)
    return read_history(
        folder.glob("round-*.jsonl"),
        netuid=args.netuid,
        competition=config.competition,
        incentives=config.incentives,
        hyperparameters_digest=hyperparameters_digest,
        verify=verify_signature,
        round_dir=config.round_dir,
    )


def make_executor(args: argparse.Namespace, evaluator: "Evaluator") -> "Executor":
    """Return the executor. Raises: ConfigError naming the flag."""
    if args.executor == "local":
        from template.workers.supervisor import LocalExecutor

        return LocalExecutor(evaluator, parse_devices(args.device), log_level=cli.log_level(args))
    from template.workers.messages import RayConfig
    from template.workers.ray_executor import RayExecutor

    options = RayConfig(
        address=args.ray_address,
        workers=args.ray_workers,
        gpus_per_worker=args.ray_gpus,
        cpus_per_worker=args.ray_cpus,
        accelerator_type=args.ray_accelerator,
    )
    return RayExecutor(evaluator, options, log_level=cli.log_level(args))


def parse_devices(text: str | None) -> list[str | None]:
    """Return a device for each worker, None for the best one. Raises: ConfigError."""
    devices: list[str | None] = [None] if text is None else [name.strip() for name in text.split(",")]
    if not all(name is None or name for name in devices):
        raise ConfigError(f"--device must be names like cuda:0,cuda:1, not {text!r}")
    return devices


def make_tracker(args: argparse.Namespace, config: "ValidatorConfig", hotkey: str, state_dir: Path) -> "Tracker":
    """Return a wandb tracker, unless wandb is off, by the flag or by its own variable."""
    from template.telemetry.redaction import Redactor, secret_values
    from template.telemetry.wandb_tracker import NullTracker, TrackerConfig, WandbTracker

    if args.wandb_off or os.environ.get("WANDB_MODE") == "disabled":
        return NullTracker()
    chosen = TrackerConfig(
        project=args.wandb_project,
        entity=args.wandb_entity,
        hotkey=hotkey,
        netuid=args.netuid,
        version=__version__,
        folder=state_dir / "wandb",
        keep_days=config.keep_days,
        competition=config.competition.id,
        settings={
            **{name: asdict(getattr(config, name)) for name in ("competition", "incentives", "policy")},
            "training_args": asdict(load_training_args(args.training_args)),
            "flags": {name: getattr(args, name) for name in PUBLIC_FLAGS},
        },
    )
    return WandbTracker(chosen, redact=Redactor(secret_values(os.environ)))


def make_update() -> Callable[[], bool]:
    """Return the update of this checkout. Raises: ConfigError when impossible."""
    from template.updates import Updater

    return Updater(Path(__file__).resolve().parent.parent).update


def make_incentives(args: argparse.Namespace) -> Incentives:
    """Return the competition's incentives, with flags overriding some of them.

    Raises: ConfigError.
    """
    chosen = {}
    for flag, name, value in (
        ("blocks_per_epoch", "blocks_per_epoch", args.blocks_per_epoch),
        ("miner_sample_size", "slots", args.miner_sample_size),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"--{flag} must be positive, not {value}")
        if value is not None:
            chosen[name] = value
    return replace(load_incentives(args.competition), **chosen)


def make_policy(args: argparse.Namespace, incentives: Incentives) -> Policy:
    """Return the policy of rounds. Raises: ConfigError naming the flag."""
    for flag in ("miner_duplicate_sample_size", "max_downloads", "max_epochs"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag} must be positive, not {value}")
    if not 0 <= args.block_threshold < incentives.blocks_per_epoch:
        raise ConfigError(
            f"--block_threshold must be at least 0 and below the {incentives.blocks_per_epoch} blocks of a round, not "
            f"{args.block_threshold}"
        )
    return Policy(
        blocks_per_epoch=incentives.blocks_per_epoch,
        start_block=incentives.start_block,
        season_block=incentives.season_block,
        block_threshold=args.block_threshold,
        miner_duplicate_sample_size=args.miner_duplicate_sample_size,
        sets_weights=not (args.offline or args.dont_set_weights),
        max_rounds=args.max_epochs,
    )


def default_state_dir(args: argparse.Namespace) -> Path:
    """Return a folder for this network, subnet and hotkey."""
    network = "".join(letter if letter.isalnum() else "_" for letter in args.network)
    return cli.DEFAULT_STATE_DIR / f"{network}-{args.netuid}-{args.wallet_name}-{args.wallet_hotkey}"


def stop_on_signals(validator: "Validator") -> None:
    """Stop after the current step at a Ctrl-C or SIGTERM, at once at the second."""

    def stop(number: int, frame: FrameType | None) -> None:
        if validator.stop.is_set():
            raise KeyboardInterrupt
        validator.stop.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


if __name__ == "__main__":
    sys.exit(main())
