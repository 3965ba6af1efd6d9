"""Runs a validator.

    python neurons/validator.py --netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey

Everything it knows is in --state_dir; stop it with Ctrl-C or SIGTERM, start it again, and it goes on where it was. A
second Ctrl-C ends it at once. Exit status: 0 stopped, 2 or 3 the command line or another setting is wrong, 4 this
machine failed.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from template import cli
from template.errors import ConfigError
from template.schedule import Policy

if TYPE_CHECKING:
    from template.validator import Validator


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="validator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_chain_arguments(parser)
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--state_dir",
        type=Path,
        help=f"everything below (default: {cli.DEFAULT_STATE_DIR}/NETWORK-NETUID-HOTKEY, by the names given here)",
    )
    files.add_argument("--cache_dir", type=Path, help="downloaded models and files (default: STATE_DIR/cache)")
    files.add_argument("--data_dir", type=Path, help="the miners' datasets (default: STATE_DIR/data)")
    files.add_argument("--eval_data_dir", type=Path, help="the evaluation set (default: STATE_DIR/eval_data)")
    files.add_argument("--receipt_dir", type=Path, help="receipts as files (default: STATE_DIR/receipts)")
    rounds = parser.add_argument_group("rounds")
    rounds.add_argument("--blocks_per_epoch", type=int, default=360, help="length in blocks (default: %(default)s)")
    rounds.add_argument(
        "--miner_sample_size", type=int, default=10, help="datasets trained on per round (default: %(default)s)"
    )
    rounds.add_argument(
        "--miner_duplicate_sample_size",
        type=int,
        default=50,
        help="datasets downloaded and checked per round (default: %(default)s)",
    )
    rounds.add_argument(
        "--block_threshold",
        type=int,
        default=50,
        help="blocks before the end at which weights are set, done or not (default: %(default)s)",
    )
    rounds.add_argument("--max_epochs", type=int, help="stop after so many rounds (default: never)")
    rounds.add_argument("--lucky_num", type=int, help="seed of every round (default: drawn anew for each)")
    rounds.add_argument(
        "--poll_seconds", type=float, default=6.0, help="between looks at the chain when idle (default: %(default)s)"
    )
    modes = parser.add_argument_group("modes")
    modes.add_argument("--offline", action="store_true", help="score, but never touch the chain's state; no wallet")
    modes.add_argument("--dont_set_weights", action="store_true", help="do everything but set weights")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until stopped; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Builds the validator and runs it. Raises: SubnetError."""
    from template.store import Store
    from template.validator import Validator, ValidatorConfig

    policy = make_policy(args)
    if args.lucky_num is not None and not 0 <= args.lucky_num < 2**32:
        raise ConfigError(f"--lucky_num must lie in [0, 2**32), not {args.lucky_num}")
    poll_s = cli.check_poll_seconds(args.poll_seconds)
    competition = cli.read_competition(args)
    state_dir = cli.check_folder(args.state_dir or default_state_dir(args), "--state_dir")
    cache_dir = cli.check_folder(args.cache_dir or state_dir / "cache", "--cache_dir")
    config = ValidatorConfig(
        competition=competition,
        policy=policy,
        data_dir=cli.check_folder(args.data_dir or state_dir / "data", "--data_dir"),
        eval_data_dir=cli.check_folder(args.eval_data_dir or state_dir / "eval_data", "--eval_data_dir"),
        receipt_dir=cli.check_folder(args.receipt_dir or state_dir / "receipts", "--receipt_dir"),
        cache_dir=cache_dir,
        is_offline=args.offline,
        lucky_num=args.lucky_num,
        poll_s=poll_s,
        hub_token=cli.hub_token(),
    )
    scorer = cli.make_scorer(args, competition, config.eval_data_dir, cache_dir)
    with (
        cli.open_chain(args, needs_wallet=not args.offline) as chain,
        Store(state_dir / "validator.sqlite3") as store,
    ):
        validator = Validator(config, chain, store, scorer)
        stop_on_signals(validator)
        validator.run()
    return 0


def make_policy(args: argparse.Namespace) -> Policy:
    """The rounds' policy. Raises: ConfigError naming the flag that is wrong."""
    for flag in ("blocks_per_epoch", "miner_sample_size", "miner_duplicate_sample_size", "max_epochs"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag} must be positive, not {value}")
    if not 0 <= args.block_threshold < args.blocks_per_epoch:
        raise ConfigError(
            f"--block_threshold must be at least 0 and below --blocks_per_epoch, not {args.block_threshold}"
        )
    return Policy(
        blocks_per_epoch=args.blocks_per_epoch,
        block_threshold=args.block_threshold,
        miner_sample_size=args.miner_sample_size,
        miner_duplicate_sample_size=args.miner_duplicate_sample_size,
        sets_weights=not (args.offline or args.dont_set_weights),
        max_rounds=args.max_epochs,
    )


def default_state_dir(args: argparse.Namespace) -> Path:
    """A folder of its own for each network, subnet and hotkey, wherever the process is started."""
    network = "".join(letter if letter.isalnum() else "_" for letter in args.network)
    return cli.DEFAULT_STATE_DIR / f"{network}-{args.netuid}-{args.wallet_name}-{args.wallet_hotkey}"


def stop_on_signals(validator: "Validator") -> None:
    """The first Ctrl-C or SIGTERM ends the validator after the step in hand, the second at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if validator.stop.is_set():
            raise KeyboardInterrupt
        validator.stop.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


if __name__ == "__main__":
    sys.exit(main())
