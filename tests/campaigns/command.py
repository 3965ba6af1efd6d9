"""Parts that the campaigns' command lines share."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loguru import logger

from template import cli
from template.arguments import Parser
from template.errors import ConfigError


def make_parser(name: str, description: str | None) -> Parser:
    """Return the parser of `python -m tests.campaigns.NAME` with the logging flags."""
    parser = Parser(
        prog=f"python -m tests.campaigns.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_logging_arguments(parser)
    return parser


def check_positive(args: argparse.Namespace, *flags: str) -> None:
    """Raises: ConfigError when one of these flags was given and is not positive."""
    for flag in flags:
        value = getattr(args, flag)
        if value is not None and value <= 0:
            raise ConfigError(f"--{flag} must be positive, not {value}")


def check_new_folder(folder: Path | None) -> None:
    """Raises: ConfigError when --dir names a folder that holds something."""
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--dir must be a new folder, and {folder} is not empty")


def choose(flag: str, names: str | None, all_names: Sequence[str]) -> list[str]:
    """Return the names in a comma-separated flag, all by default."""
    chosen = list(all_names) if names is None else names.split(",")
    if unknown := [name for name in chosen if name not in all_names]:
        raise ConfigError(f"{flag} must be some of {','.join(all_names)}, not {unknown[0]!r}")
    return chosen


def report(failures: Sequence[str], *, success: str, label: str = "DISAGREES", summary: str = "disagreements") -> int:
    """Print the failures and their number, or `success`; return the exit status."""
    for failure in failures:
        print(f"{label}: {failure}")
    print(f"{len(failures)} {summary}" if failures else success)
    return 1 if failures else 0


def print_progress(line: str) -> None:
    """Print progress to stderr."""
    print(line, file=sys.stderr, flush=True)


Progress = Callable[[str], None]


@contextlib.contextmanager
def quiet_logs(args: argparse.Namespace) -> Iterator[None]:
    """Silence this package's logs, unless the arguments ask for more of them."""
    if cli.log_level(args) == "INFO":
        logger.disable("template")
    try:
        yield
    finally:
        logger.enable("template")
