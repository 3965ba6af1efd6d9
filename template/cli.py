"""What the entry points share: argument groups as this ecosystem writes them, and what is built from them.

The one place where `--subtensor.network sim:PATH` becomes a local chain; everything past it is the same code.
"""

import argparse
import contextlib
import functools
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from template.competition import Competition
from template.config import load_competition, load_training_args
from template.data.chat_templates import ChatTemplate, template_for
from template.data.encoding import Tokenize, encode_row
from template.data.rows import Row
from template.errors import ConfigError, SubnetError
from template.telemetry.logging import choose_level, configure_logging, quiet_libraries
from template.telemetry.redaction import secret_values
from template.workers.executor import Evaluator

if TYPE_CHECKING:
    from template.chain.client import Chain
    from template.receipts.replay import ReplayContext


DEFAULT_STATE_DIR = Path("~/.dataset-subnet")

# What a miner's tools write into their --work_dir: what was committed, and a folder for each competition by its digest.
WORK_DIR_MARKS = ("commitment-*", "[0-9a-f]" * 12)


def run_main(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace], int],
    *,
    is_private: bool = False,
) -> int:
    """An entry point's whole life: parses, sets up logs and clients, runs; returns the exit status.

    The parser must have the arguments of `add_logging_arguments`. is_private: what the process and its children write
    is their owner's alone, whatever umask they were started with, and no core dump of them is made.
    """
    args = parser.parse_args(argv)
    if is_private:
        os.umask(os.umask(0o077) | 0o077)
        # A core holds the hotkey and the tokens, beside gigabytes of weights.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    def work() -> int:
        configure_logging(
            is_debug=args.is_debug, is_trace=args.is_trace, file=args.log_file, secrets=secret_values(os.environ)
        )
        quiet_libraries()
        return run(args)

    return run_entry_point(work)


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
    """--logging.debug, --logging.trace and --logging.file."""
    group = parser.add_argument_group("logs (on stderr)")
    group.add_argument("--logging.debug", dest="is_debug", action="store_true", help="log details")
    group.add_argument("--logging.trace", dest="is_trace", action="store_true", help="log everything, the clients too")
    group.add_argument(
        "--logging.file",
        dest="log_file",
        type=Path,
        metavar="FILE",
        help="also as JSON lines into FILE, which is rotated at 50 MB; the last 10 are kept",
    )


def log_level(args: argparse.Namespace) -> str:
    """The least that the arguments of `add_logging_arguments` let into the logs."""
    return choose_level(is_debug=args.is_debug, is_trace=args.is_trace)


@contextlib.contextmanager
def quiet_logs(args: argparse.Namespace) -> Iterator[None]:
    """Without this package's own log lines, unless the arguments ask for more than usual: for what prints a table."""
    if log_level(args) == "INFO":
        logger.disable("template")
    try:
        yield
    finally:
        logger.enable("template")


def add_tracking_arguments(parser: argparse.ArgumentParser) -> None:
    """--wandb.off, --wandb.project and --wandb.entity."""
    group = parser.add_argument_group("wandb")
    group.add_argument("--wandb.off", dest="wandb_off", action="store_true", help="send nothing, and keep no runs")
    group.add_argument(
        "--wandb.project",
        dest="wandb_project",
        default="dataset-subnet",
        help="where the runs go (default: %(default)s)",
    )
    group.add_argument("--wandb.entity", dest="wandb_entity", help="whose project (default: the login's own)")


def add_chain_arguments(parser: argparse.ArgumentParser) -> None:
    """--netuid, --subtensor.* and --wallet.*."""
    group = parser.add_argument_group("chain")
    group.add_argument("--netuid", type=int, required=True, help="the subnet's number")
    group.add_argument(
        "--subtensor.network",
        dest="network",
        default="finney",
        help="finney, test, local, a ws:// or wss:// url, or sim:PATH for a local network (default: %(default)s)",
    )
    group.add_argument(
        "--subtensor.fallback_endpoints",
        dest="fallback_endpoints",
        metavar="URL[,URL...]",
        help="where to turn when the network does not answer (default: the client's public ones for a named network)",
    )
    group.add_argument(
        "--subtensor.archive_endpoints",
        dest="archive_endpoints",
        metavar="URL[,URL...]",
        help="where to read blocks that the others have dropped (default: the client's public ones)",
    )
    group.add_argument(
        "--subtensor.deadline_seconds",
        dest="deadline_s",
        type=float,
        default=120.0,
        help="longest wait for one answer, after which the next endpoint is dialled (default: %(default)g)",
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


def make_evaluator(
    args: argparse.Namespace, competition: Competition, eval_data_dir: Path, cache_dir: Path | None
) -> Evaluator:
    """The scorer that the arguments of `add_score_arguments` describe. Raises: ConfigError."""
    return Evaluator(
        competition=competition,
        training_args=load_training_args(args.training_args),
        eval_data_dir=eval_data_dir,
        cache_dir=cache_dir,
        model_path=args.model_path.expanduser().resolve() if args.model_path else None,
        device=args.device,
        dtype=args.dtype,
    )


def make_target_check(args: argparse.Namespace) -> Callable[[Row], bool]:
    """Whether a row keeps an answer in the model's own tokens; the tokenizer is loaded when first asked."""

    @functools.cache
    def load() -> tuple[ChatTemplate, Tokenize]:
        from template.hub import datasets
        from template.training.model import load_tokenizer

        # The tokenizer may come from the Hub, by another library.
        datasets.configure_client()
        training_args = load_training_args(args.training_args)
        model_path = args.model_path.expanduser() if args.model_path else None
        return template_for(training_args.model_id), load_tokenizer(training_args, model_path=model_path)

    return lambda row: encode_row(row, *load()) is not None


def read_competition(args: argparse.Namespace) -> Competition:
    """The competition of --competition, else the subnet's own. Raises: ConfigError."""
    return load_competition(args.competition)


def open_chain(args: argparse.Namespace, *, needs_wallet: bool = True) -> "Chain":
    """The chain that the arguments of `add_chain_arguments` describe, with the wallet's hotkey where it is needed.

    Raises: ConfigError naming the flag that is wrong.
    """
    from template.chain.client import Chain, open_wallet
    from template.localnet.chain.substrate import open_substrate

    wallet = None
    if needs_wallet:
        wallet = open_wallet(args.wallet_name, args.wallet_hotkey, args.wallet_path.expanduser())
    return Chain(
        args.network,
        args.netuid,
        wallet=wallet,
        substrate=open_substrate(args.network),
        fallback_endpoints=_split_urls(args.fallback_endpoints),
        archive_endpoints=_split_urls(args.archive_endpoints),
        deadline_s=args.deadline_s,
    )


def _split_urls(text: str | None) -> list[str]:
    return [] if text is None else [url.strip() for url in text.split(",")]


def hub_token() -> str | None:
    """The Hub token of this machine's user: HF_TOKEN, else the one saved by the Hub's own login, else None."""
    from template.hub.datasets import saved_token

    return saved_token()


def check_poll_seconds(seconds: float) -> float:
    """The value of --poll_seconds. Raises: ConfigError when it is no pause between looks at the chain."""
    if not 0 < seconds <= 3600:
        raise ConfigError(f"--poll_seconds must be above 0 and at most 3600, not {seconds}")
    return seconds


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """--eval_data_dir, --work_dir and --cache_dir."""
    parser.add_argument("--eval_data_dir", type=Path, help="evaluation set (default: the competition's, downloaded)")
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=DEFAULT_STATE_DIR / "offline",
        help="where a downloaded evaluation set is kept (default: %(default)s)",
    )
    parser.add_argument("--cache_dir", type=Path, help="downloaded models (default: the Hub client's own)")


def make_replay_context(args: argparse.Namespace) -> "ReplayContext":
    """The desk of `add_replay_arguments` and `add_score_arguments`. Raises: HostError for the token."""
    from template.receipts.replay import ReplayContext

    return ReplayContext(
        work_dir=args.work_dir,
        eval_data_dir=args.eval_data_dir.expanduser() if args.eval_data_dir else None,
        cache_dir=args.cache_dir,
        model_path=args.model_path.expanduser().resolve() if args.model_path else None,
        device=args.device,
        dtype=args.dtype,
        token=hub_token(),
    )
