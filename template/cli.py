"""Argument groups shared by the entry points, and objects built from them."""

import argparse
import contextlib
import functools
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loguru import logger

from template.arguments import Parser, check_home, find_faults
from template.competition import Competition
from template.config import DTYPES, load_competition, load_incentives, load_training_args
from template.data.chat_templates import ChatTemplate, template_for
from template.data.encoding import Tokenize, encode_row
from template.data.rows import Row
from template.errors import ConfigError, HostError, SubmissionError, SubnetError
from template.proxies import check_proxies
from template.telemetry.logging import choose_level, configure_logging, quiet_libraries
from template.telemetry.redaction import secret_values
from template.terminal import configure_output
from template.workers.executor import Evaluator

if TYPE_CHECKING:
    from template.chain.client import Chain, Wallet
    from template.chain.wallets import PublicWallet
    from template.receipts.replay import ReplayContext
    from template.receipts.sources import RoundSource


DEFAULT_STATE_DIR = Path("~/.dataset-subnet")
DEFAULT_WALLETS = Path("~/.bittensor/wallets")

# Names in a miner's --work_dir: commitments, and a folder for each competition by its digest.
WORK_DIR_MARKS = ("commitment-*", "[0-9a-f]" * 12)


def make_parser(prog: str, description: str | None, **options: Any) -> Parser:
    """Return the parser of an entry point. options: as of `Parser`."""
    return Parser(prog=prog, description=description, **options)


def run_main(
    parser: Parser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace], int],
    *,
    is_private: bool = False,
    diagnose: Callable[[argparse.Namespace, Sequence[SubnetError]], Sequence[SubnetError]] = lambda args, faults: (
        faults
    ),
) -> int:
    """Parse arguments, set up logs and clients, make the parser's checks, run; return the exit status.

    The parser needs `add_logging_arguments`. is_private: write files for their owner only, and no core dumps.
    diagnose: adds the faults of machine and services to those of the parser's checks.
    """
    args = parser.parse_args(argv)
    configure_output()
    if is_private:
        os.umask(os.umask(0o077) | 0o077)
        # A core dump would contain the hotkey and the tokens.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    def work() -> int:
        check_home()
        if (temporary := os.environ.get("TMPDIR", "")).startswith("~/"):
            # tempfile would pass it over for /tmp, which may be small.
            os.environ["TMPDIR"] = str(Path(temporary).expanduser())
        secrets = [*secret_values(os.environ), getattr(args, "alert_url", None) or ""]
        configure_logging(is_debug=args.is_debug, is_trace=args.is_trace, file=args.log_file, secrets=secrets)
        quiet_libraries()
        return report_faults(diagnose(args, find_faults(args, parser.checks))) or run(args)

    return run_entry_point(work)


def run_entry_point(work: Callable[[], int]) -> int:
    """Run `work` and return its status, or the exit status of its logged error."""
    try:
        return work()
    except SubnetError as error:
        return report_faults([error])
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130


def report_faults(faults: Sequence[SubnetError]) -> int:
    """Log every error and return the exit status: a wrong setting's if there is one, 0 without an error."""
    for fault in faults:
        reason = f"rejected ({fault.reason}): " if isinstance(fault, SubmissionError) else ""
        logger.error("{}{}", reason, " ".join(str(fault).split()))
    statuses = [fault.exit_code for fault in faults]
    return ConfigError.exit_code if ConfigError.exit_code in statuses else next(iter(statuses), 0)


def add_logging_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --logging.debug, --logging.trace and --logging.file."""
    add = parser.add_argument_group("logs (on stderr)").add_argument
    add("--logging.debug", dest="is_debug", action="store_true", help="log details")
    add("--logging.trace", dest="is_trace", action="store_true", help="log everything, from client libraries too")
    file_help = "also log JSON lines to FILE, rotated at 50 MB; 10 files are kept"
    add("--logging.file", dest="log_file", type=Path, metavar="FILE", help=file_help)


def log_level(args: argparse.Namespace) -> str:
    """Return the lowest level that is logged."""
    return choose_level(is_debug=args.is_debug, is_trace=args.is_trace)


def add_alert_argument(parser: argparse.ArgumentParser) -> None:
    """Add --alert_url."""
    alert_help = (
        "webhook that gets problems as JSON, such as Discord's (default: $ALERT_URL, which no process list shows)"
    )
    parser.add_argument("--alert_url", metavar="URL", default=os.environ.get("ALERT_URL"), help=alert_help)


def add_tracking_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --wandb.off, --wandb.project and --wandb.entity."""
    add = parser.add_argument_group("wandb").add_argument
    add("--wandb.off", dest="wandb_off", action="store_true", help="send nothing and keep no runs")
    add("--wandb.project", dest="wandb_project", default="dataset-subnet", help="project of the runs")
    add("--wandb.entity", dest="wandb_entity", help="owner of the project (default: the login's own)")


def add_chain_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --netuid, --subtensor.* and --wallet.*.

    Defaults come from the variables that btcli reads. An empty one counts as missing, as there.
    """
    described = "Defaults as btcli: BT_NETWORK, BT_WALLET, BT_WALLET_HOTKEY and BT_WALLET_PATH of the environment."
    add = parser.add_argument_group("chain", described).add_argument
    variables, urls = os.environ.get, "URL[,URL...]"
    network_help = "finney, test, local, or a ws:// or wss:// url"
    fallback_help = "used when the network does not answer (default: the client's public ones for a named network)"
    archive_help = "used for blocks that the others have pruned (default: the client's public ones)"
    deadline_help = "timeout of one answer, then the next endpoint is tried"
    add("--netuid", type=int, required=True, help="the subnet's number")
    network, name, hotkey = variables("BT_NETWORK"), variables("BT_WALLET"), variables("BT_WALLET_HOTKEY")
    path = Path(variables("BT_WALLET_PATH") or DEFAULT_WALLETS)
    add("--subtensor.network", dest="network", default=network or "finney", help=network_help)
    add("--subtensor.fallback_endpoints", dest="fallback_endpoints", metavar=urls, help=fallback_help)
    add("--subtensor.archive_endpoints", dest="archive_endpoints", metavar=urls, help=archive_help)
    add("--subtensor.deadline_seconds", dest="deadline_s", type=float, default=120.0, help=deadline_help)
    add("--wallet.name", dest="wallet_name", default=name or "default", help="coldkey name")
    add("--wallet.hotkey", dest="wallet_hotkey", default=hotkey or "default", help="hotkey name")
    add("--wallet.path", dest="wallet_path", type=Path, default=path, help="folder of the wallets")


def add_reader_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --hotkey and the chain's arguments, all optional.

    The parser must resolve conflicts.
    """
    parser.add_argument("--hotkey", metavar="ADDRESS", help="the dataset's hotkey, if no --wallet.* is given")
    add_chain_arguments(parser)
    parser.add_argument("--netuid", type=int, help="the subnet's number")
    parser.set_defaults(wallet_name=None, wallet_hotkey=None)


def has_wallet(args: argparse.Namespace) -> bool:
    """Check whether the arguments of `add_reader_arguments` name a wallet.

    Without --hotkey, the environment may name it.
    """
    if args.wallet_name is not None or args.wallet_hotkey is not None:
        return True
    return args.hotkey is None and any(map(os.environ.get, ("BT_WALLET", "BT_WALLET_HOTKEY")))


def name_wallet(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of `add_reader_arguments` with btcli's defaults for the wallet."""
    name = args.wallet_name or os.environ.get("BT_WALLET") or "default"
    hotkey = args.wallet_hotkey or os.environ.get("BT_WALLET_HOTKEY") or "default"
    return argparse.Namespace(**{**vars(args), "wallet_name": name, "wallet_hotkey": hotkey})


def open_reader(args: argparse.Namespace) -> "Chain":
    """Open the chain by `add_reader_arguments`, with the wallet if one is named."""
    return open_chain(name_wallet(args), needs_wallet=has_wallet(args))


def add_competition_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --competition."""
    competition_help = "YAML of another competition (default: the subnet's own)"
    parser.add_argument("--competition", type=Path, metavar="FILE", help=competition_help)


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and the device of an evaluation."""
    add = parser.add_argument_group("evaluation").add_argument
    add("--training_args", type=Path, metavar="FILE", help="YAML of model and training (default: the repository's)")
    add("--model_path", type=Path, metavar="DIR", help="folder with the model's weights (default: from the Hub)")
    add("--device", help="cpu, cuda or cuda:N (default: the first GPU, else the CPU)")
    dtype_help = "of the base model (default: the training arguments', else by device)"
    add("--dtype", choices=DTYPES, help=dtype_help)


def check_wallet(args: argparse.Namespace) -> None:
    """Check that the wallet's hotkey can sign. Raises: ConfigError naming the flag."""
    open_wallet(args)


def open_wallet(args: argparse.Namespace) -> "Wallet":
    """Open the wallet of --wallet.*; an encrypted hotkey is unlocked once a process. Raises: ConfigError."""
    from template.chain.wallets import open_wallet_once

    return open_wallet_once(args.wallet_name, args.wallet_hotkey, args.wallet_path)


def check_chain(args: argparse.Namespace) -> None:
    """Check --netuid and --subtensor.* as far as possible without a node. Raises: ConfigError."""
    if args.netuid is not None:
        open_chain(args, needs_wallet=False).close()


def check_competition(args: argparse.Namespace) -> None:
    """Check the file of --competition. Raises: ConfigError."""
    load_competition(args.competition)
    load_incentives(args.competition)


def check_score_arguments(args: argparse.Namespace) -> None:
    """Check the files of `add_score_arguments`. Raises: ConfigError."""
    load_training_args(args.training_args)
    # With Ray, the folder is on the nodes of the cluster.
    is_here = getattr(args, "executor", "local") == "local"
    if args.model_path is not None and is_here and not args.model_path.is_dir():
        raise ConfigError(f"--model_path {args.model_path}: there is no such folder")


def check_dataset_file(path: Path | None, flag: str) -> None:
    """Check that a dataset, a file or a folder, can be read. Raises: ConfigError."""
    if path is None or path.is_dir():
        return
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror or error}") from error


def require_hub_token() -> str:
    """Return the Hub token. Raises: HostError without one; ConfigError for one in quotes."""
    from template.hub.client import NO_TOKEN

    if (token := hub_token()) is None:
        raise HostError(NO_TOKEN)
    return token


def make_evaluator(
    args: argparse.Namespace, competition: Competition, eval_data_dir: Path, cache_dir: Path | None
) -> Evaluator:
    """Return the evaluator of `add_score_arguments`. Raises: ConfigError."""
    return Evaluator(
        competition=competition,
        training_args=load_training_args(args.training_args),
        eval_data_dir=eval_data_dir,
        cache_dir=cache_dir,
        model_path=args.model_path.resolve() if args.model_path else None,
        device=args.device,
        dtype=args.dtype,
    )


def make_target_check(args: argparse.Namespace) -> Callable[[Row], bool]:
    """Return a check that a row has target tokens; it loads the tokenizer once."""

    @functools.cache
    def load() -> tuple[ChatTemplate, Tokenize]:
        from template.hub.client import configure_client
        from template.training.model import load_tokenizer

        # The tokenizer may come from the Hub, by another library.
        configure_client()
        training_args = load_training_args(args.training_args)
        return template_for(training_args.model_id), load_tokenizer(training_args, model_path=args.model_path)

    return lambda row: encode_row(row, *load()) is not None


def open_chain(args: argparse.Namespace, *, needs_wallet: bool = True) -> "Chain":
    """Open the chain, with the wallet if needed. Raises: ConfigError naming the flag."""
    check_proxies()
    return make_chain(args, open_wallet(args) if needs_wallet else None, args.deadline_s)


def make_chain(args: argparse.Namespace, wallet: "Wallet | PublicWallet | None", deadline_s: float) -> "Chain":
    """Return the chain of these arguments, for a wallet. Raises: ConfigError naming the flag."""
    from template.chain.client import Chain

    return Chain(
        args.network,
        args.netuid,
        wallet=cast("Wallet | None", wallet),  # the chain uses its hotkey alone
        fallback_endpoints=split_urls(args.fallback_endpoints),
        archive_endpoints=split_urls(args.archive_endpoints),
        deadline_s=deadline_s,
    )


def split_urls(text: str | None) -> list[str]:
    """Return the urls of a flag."""
    return [] if text is None else [url.strip() for url in text.split(",")]


def hub_token() -> str | None:
    """Return HF_TOKEN, else the token saved by the Hub's login, else None."""
    from template.hub.client import saved_token

    return saved_token()


def check_poll_seconds(seconds: float) -> float:
    """Return the value of --poll_seconds. Raises: ConfigError when out of range."""
    if not 0 < seconds <= 3600:
        raise ConfigError(f"--poll_seconds must be above 0 and at most 3600, not {seconds}")
    return seconds


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --eval_data_dir, --work_dir and --cache_dir."""
    add = parser.add_argument
    add("--eval_data_dir", type=Path, help="evaluation set (default: the competition's, downloaded)")
    add("--work_dir", type=Path, default=DEFAULT_STATE_DIR / "offline", help="for downloaded evaluation sets")
    add("--cache_dir", type=Path, help="downloaded models (default: the Hub client's own)")


def make_replay_context(args: argparse.Namespace) -> "ReplayContext":
    """Return the context of a replay. Raises: HostError for the token."""
    from template.receipts.replay import ReplayContext

    return ReplayContext(
        work_dir=args.work_dir,
        eval_data_dir=args.eval_data_dir,
        cache_dir=args.cache_dir,
        model_path=args.model_path.resolve() if args.model_path else None,
        device=args.device,
        dtype=args.dtype,
        token=hub_token(),
    )


def add_round_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --rounds, and what finds the round files of a validator's hotkey."""
    rounds_help = "round files, folders, dataset repos (owner/name), or hotkeys of validators, which need the next two"
    parser.add_argument("--rounds", nargs="+", required=True, metavar="SOURCE", help=rounds_help)
    parser.add_argument("--netuid", type=int, help="the subnet's number, for hotkeys in --rounds")
    network_help = "find hotkeys on this chain: finney, test, or a ws:// or wss:// url"
    parser.add_argument("--subtensor.network", dest="network", metavar="NETWORK", help=network_help)
    parser.add_argument("--work_dir", type=Path, default=DEFAULT_STATE_DIR / "offline", help="for downloads")


def open_round_sources(args: argparse.Namespace) -> "list[RoundSource]":
    """Find the round files of `add_round_arguments`. Raises: ConfigError, RemoteError."""
    from template.receipts.sources import open_source

    with contextlib.ExitStack() as stack:
        find = None
        if args.network and args.netuid:
            # The import takes a second.
            from template.chain.client import Chain

            find = stack.enter_context(Chain(args.network, args.netuid)).commitment
        token = hub_token()
        return [
            open_source(source, args.work_dir, token=token, find_commitment=find)
            for source in dict.fromkeys(args.rounds)
        ]
