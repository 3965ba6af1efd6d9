"""Argument groups shared by the entry points, and objects built from them."""

import argparse
import contextlib
import functools
import os
import pwd
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from template.competition import Competition
from template.config import load_training_args
from template.data.chat_templates import ChatTemplate, template_for
from template.data.encoding import Tokenize, encode_row
from template.data.rows import Row
from template.errors import ConfigError, SubnetError
from template.proxies import check_proxies
from template.telemetry.logging import choose_level, configure_logging, quiet_libraries
from template.telemetry.redaction import secret_values
from template.terminal import configure_output, write_stdout
from template.workers.executor import Evaluator

if TYPE_CHECKING:
    from template.chain.client import Chain
    from template.receipts.replay import ReplayContext
    from template.receipts.sources import RoundSource


DEFAULT_STATE_DIR = Path("~/.dataset-subnet")

# Names in a miner's --work_dir: commitments, and a folder for each competition by its digest.
WORK_DIR_MARKS = ("commitment-*", "[0-9a-f]" * 12)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help formatter that keeps line breaks and adds defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False, argparse.SUPPRESS) and "(default" not in (action.help or "")
        return f"{action.help} (default: %(default)s)" if has_default else action.help


class _Parser(argparse.ArgumentParser):
    """Parser whose help survives a reader that left, such as `head`."""

    def print_help(self, file: Any = None) -> None:
        configure_output()
        if file is None:
            write_stdout(self.format_help())
        else:
            super().print_help(file)


def make_parser(prog: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return the parser of an entry point."""
    return _Parser(prog=prog, description=description, formatter_class=HelpFormatter, **options)


def run_main(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace], int],
    *,
    is_private: bool = False,
) -> int:
    """Parse arguments, set up logs and clients, run; return the exit status.

    The parser needs `add_logging_arguments`. is_private: write files for their owner only, and no core dumps.
    """
    args = parser.parse_args(argv)
    configure_output()
    if is_private:
        os.umask(os.umask(0o077) | 0o077)
        # A core dump would contain the hotkey and the tokens.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    def work() -> int:
        check_home()
        secrets = [*secret_values(os.environ), getattr(args, "alert_url", None) or ""]
        configure_logging(is_debug=args.is_debug, is_trace=args.is_trace, file=args.log_file, secrets=secrets)
        quiet_libraries()
        return run(args)

    return run_entry_point(work)


def check_home() -> None:
    """Check that this user has a home. Raises: ConfigError.

    A container may run as a user id without a passwd entry; libraries then need the name of the user too.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid{os.getuid()}")
    try:
        Path.home()
    except RuntimeError as error:
        raise ConfigError("this user has no home: set HOME to a folder that it may write to") from error


def run_entry_point(work: Callable[[], int]) -> int:
    """Run `work` and return its status, or the exit status of its logged error."""
    try:
        return work()
    except SubnetError as error:
        logger.error("{}: {}", type(error).__name__, " ".join(str(error).split()))
        return error.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130


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
    variables, urls, wallets = os.environ.get, "URL[,URL...]", Path("~/.bittensor/wallets")
    network_help = "finney, test, local, or a ws:// or wss:// url"
    fallback_help = "used when the network does not answer (default: the client's public ones for a named network)"
    archive_help = "used for blocks that the others have pruned (default: the client's public ones)"
    deadline_help = "timeout of one answer, then the next endpoint is tried"
    add("--netuid", type=int, required=True, help="the subnet's number")
    network, name, hotkey = variables("BT_NETWORK"), variables("BT_WALLET"), variables("BT_WALLET_HOTKEY")
    path = Path(variables("BT_WALLET_PATH") or wallets)
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


def open_reader(args: argparse.Namespace) -> "Chain":
    """Open the chain by `add_reader_arguments`, with the wallet if one is named."""
    needs_wallet = has_wallet(args)
    args.wallet_name = args.wallet_name or os.environ.get("BT_WALLET") or "default"
    args.wallet_hotkey = args.wallet_hotkey or os.environ.get("BT_WALLET_HOTKEY") or "default"
    return open_chain(args, needs_wallet=needs_wallet)


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
    add("--dtype", choices=["bfloat16", "float32"], help="of the base model (default: by device)")


def make_evaluator(
    args: argparse.Namespace, competition: Competition, eval_data_dir: Path, cache_dir: Path | None
) -> Evaluator:
    """Return the evaluator of `add_score_arguments`. Raises: ConfigError."""
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
    """Return a check that a row has target tokens; it loads the tokenizer once."""

    @functools.cache
    def load() -> tuple[ChatTemplate, Tokenize]:
        from template.hub.client import configure_client
        from template.training.model import load_tokenizer

        # The tokenizer may come from the Hub, by another library.
        configure_client()
        training_args = load_training_args(args.training_args)
        model_path = args.model_path.expanduser() if args.model_path else None
        return template_for(training_args.model_id), load_tokenizer(training_args, model_path=model_path)

    return lambda row: encode_row(row, *load()) is not None


def open_chain(args: argparse.Namespace, *, needs_wallet: bool = True) -> "Chain":
    """Open the chain, with the wallet if needed. Raises: ConfigError naming the flag."""
    from template.chain.client import Chain, open_wallet

    check_proxies()
    wallet = None
    if needs_wallet:
        wallet = open_wallet(args.wallet_name, args.wallet_hotkey, args.wallet_path.expanduser())
    return Chain(
        args.network,
        args.netuid,
        wallet=wallet,
        fallback_endpoints=_split_urls(args.fallback_endpoints),
        archive_endpoints=_split_urls(args.archive_endpoints),
        deadline_s=args.deadline_s,
    )


def _split_urls(text: str | None) -> list[str]:
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
        eval_data_dir=args.eval_data_dir.expanduser() if args.eval_data_dir else None,
        cache_dir=args.cache_dir,
        model_path=args.model_path.expanduser().resolve() if args.model_path else None,
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
    from template.chain.client import Chain
    from template.receipts.sources import open_source

    with contextlib.ExitStack() as stack:
        find = None
        if args.network and args.netuid:
            find = stack.enter_context(Chain(args.network, args.netuid)).commitment
        token = hub_token()
        return [
            open_source(source, args.work_dir, token=token, find_commitment=find)
            for source in dict.fromkeys(args.rounds)
        ]
