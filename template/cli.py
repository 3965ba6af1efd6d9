"""What the entry points share: argument groups as this ecosystem writes them, and what is built from them.

The one place where `--subtensor.network sim:PATH` becomes a local chain; everything past it is the same code.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from template.competition import Competition
from template.errors import ConfigError, SubnetError
from template.settings import load_competition, load_training_args
from template.tracking import configure_logging
from template.workers import Scorer

if TYPE_CHECKING:
    from template.chain import Chain

DEFAULT_STATE_DIR = Path("~/.dataset-subnet")


def run_main(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, run: Callable[[argparse.Namespace], int]
) -> int:
    """An entry point's whole life: parses, sets up logs and clients, runs; returns the exit status.

    The parser must have the arguments of `add_logging_arguments`.
    """
    args = parser.parse_args(argv)
    configure_logging(is_debug=args.is_debug, is_trace=args.is_trace)
    quiet_libraries()
    return run_entry_point(lambda: run(args))


def run_entry_point(work: Callable[[], int]) -> int:
    """What `work` returns, or the exit status of the error it ends with, which is printed as one line on stderr."""
    try:
        return work()
    except SubnetError as error:
        logger.error("{}: {}", type(error).__name__, " ".join(str(error).split()))
        return error.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130


def add_logging_arguments(parser: argparse.ArgumentParser) -> None:
    """--logging.debug and --logging.trace."""
    group = parser.add_argument_group("logs (on stderr)")
    group.add_argument("--logging.debug", dest="is_debug", action="store_true", help="log details")
    group.add_argument("--logging.trace", dest="is_trace", action="store_true", help="log everything, the clients too")


def add_chain_arguments(parser: argparse.ArgumentParser) -> None:
    """--netuid, --subtensor.network and --wallet.*."""
    group = parser.add_argument_group("chain")
    group.add_argument("--netuid", type=int, required=True, help="the subnet's number")
    group.add_argument(
        "--subtensor.network",
        dest="network",
        default="finney",
        help="finney, test, local, a ws:// or wss:// url, or sim:PATH for a local network (default: %(default)s)",
    )
    group.add_argument(
        "--wallet.name", dest="wallet_name", default="default", help="coldkey name (default: %(default)s)"
    )
    group.add_argument(
        "--wallet.hotkey", dest="wallet_hotkey", default="default", help="hotkey name (default: %(default)s)"
    )
    group.add_argument(
        "--wallet.path",
        dest="wallet_path",
        type=Path,
        default=Path("~/.bittensor/wallets"),
        help="folder of the wallets (default: %(default)s)",
    )


def add_competition_arguments(parser: argparse.ArgumentParser) -> None:
    """--competition."""
    parser.add_argument(
        "--competition", type=Path, metavar="FILE", help="YAML of another competition (default: the subnet's own)"
    )


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides where and on what model a score runs."""
    group = parser.add_argument_group("score")
    group.add_argument(
        "--training_args",
        type=Path,
        metavar="FILE",
        help="YAML of the model and how it trains (default: the repository's)",
    )
    group.add_argument(
        "--model_path", type=Path, metavar="DIR", help="folder with that model's weights (default: from the Hub)"
    )
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU, else the CPU)")
    group.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the base model (default: by device)")


def make_scorer(
    args: argparse.Namespace, competition: Competition, eval_data_dir: Path, cache_dir: Path | None
) -> Scorer:
    """The scorer that the arguments of `add_score_arguments` describe. Raises: ConfigError."""
    return Scorer(
        competition=competition,
        training_args=load_training_args(args.training_args),
        eval_data_dir=eval_data_dir,
        cache_dir=cache_dir,
        model_path=args.model_path.expanduser().resolve() if args.model_path else None,
        device=args.device,
        dtype=args.dtype,
    )


def read_competition(args: argparse.Namespace) -> Competition:
    """The competition of --competition, else the subnet's own. Raises: ConfigError."""
    return load_competition(args.competition)


def open_chain(args: argparse.Namespace, *, needs_wallet: bool = True) -> "Chain":
    """The chain that the arguments of `add_chain_arguments` describe, with the wallet's hotkey where it is needed.

    Raises: ConfigError naming the flag that is wrong.
    """
    from template.chain import Chain, open_wallet
    from template.localnet.substrate import open_substrate

    wallet = None
    if needs_wallet:
        wallet = open_wallet(args.wallet_name, args.wallet_hotkey, args.wallet_path.expanduser())
    return Chain(args.network, args.netuid, wallet=wallet, substrate=open_substrate(args.network))


def hub_token() -> str | None:
    """The Hub token of this machine's user: HF_TOKEN, else the one saved by the Hub's own login, else None."""
    from template.hub import saved_token

    return saved_token()


def quiet_libraries() -> None:
    """Keeps the clients' progress bars and advice out of the logs. Before they are imported: they read it then."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What these two say to each other about their next major version is nothing an operator can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")


def check_poll_seconds(seconds: float) -> float:
    """The value of --poll_seconds. Raises: ConfigError when it is no pause between looks at the chain."""
    if not 0 < seconds <= 3600:
        raise ConfigError(f"--poll_seconds must be above 0 and at most 3600, not {seconds}")
    return seconds


def check_folder(path: Path, flag: str) -> Path:
    """The folder as an absolute path, made if missing. Raises: ConfigError naming the flag."""
    folder = path.expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be made: {error.strerror or error}") from error
    return folder
