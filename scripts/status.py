"""Show a validator's work, weights, failures and disk use, also while it runs.

    python scripts/status.py --state_dir ~/.dataset-subnet/finney-96-default-default

Only reads. Exit status with --check: 0 all is well, 1 something needs attention. Otherwise: 0 shown, 2 or 3 the command
line is wrong or there is no state, 4 this machine failed.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from template import cli
from template.errors import ConfigError
from template.status.report import print_status, to_json
from template.status.status import Status, health_problem, read_status
from template.terminal import write_stdout

_UNHEALTHY = 1
_MAX_ROWS = 20
# Columns where stdout is not a terminal.
_WIDTH = 120


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("status", __doc__)
    parser.add_argument("--state_dir", type=Path, required=True, help="the validator's --state_dir")
    all_help = f"print the whole leaderboard, not its top {_MAX_ROWS}"
    parser.add_argument("--all", dest="is_whole", action="store_true", help=all_help)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object")
    how.add_argument("--watch", type=float, metavar="SECONDS", help="print again after every pause, until Ctrl-C")
    how.add_argument("--check", dest="is_check", action="store_true", help="print one line, exit with 1 on a problem")
    check = parser.add_argument_group("problems for --check")
    silence_help = "no report from the validator for longer"
    overdue_help = "weights overdue by more; not after --offline or --dont_set_weights"
    check.add_argument("--max_silence_minutes", type=float, default=30.0, metavar="N", help=silence_help)
    check.add_argument("--max_overdue_blocks", type=int, default=360, metavar="N", help=overdue_help)
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Show the status and return the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Print the status. Raises: ConfigError when there is no state; HostError."""
    state_dir = args.state_dir.expanduser().resolve()
    max_rows = None if args.is_whole else _MAX_ROWS
    if args.watch is not None:
        return watch(state_dir, args.watch, max_rows)
    status = read_status(state_dir, time.time())
    if args.is_check:
        max_age_s = args.max_silence_minutes * 60
        problem = health_problem(status, max_age_s=max_age_s, max_overdue_blocks=args.max_overdue_blocks)
        write_stdout(f"{problem or 'all is well'}\n")
        return _UNHEALTHY if problem else 0
    if args.is_json:
        write_stdout(f"{json.dumps(to_json(status))}\n")
    else:
        show(status, open_console(), max_rows)
    return 0


def show(status: Status, console: Console, max_rows: int | None, *, clears: bool = False) -> bool:
    """Print the status. Return whether stdout took it: a reader such as `head` may leave."""
    with console.capture() as capture:
        if clears:
            console.clear()
        print_status(status, console, max_rows=max_rows)
    return write_stdout(capture.get()) is None


def watch(state_dir: Path, pause_s: float, max_rows: int | None) -> int:
    """Print the status until interrupted."""
    if not 0 < pause_s <= 3600:
        raise ConfigError(f"--watch must be above 0 and at most 3600 seconds, not {pause_s}")
    console = open_console()
    try:
        while True:
            status = read_status(state_dir, time.time())
            if not show(status, console, max_rows, clears=True):
                return 0
            time.sleep(pause_s)
    except KeyboardInterrupt:
        return 0


def open_console() -> Console:
    """Return a console on stdout, without colours where that is no terminal."""
    file = sys.stdout or io.StringIO()  # closed by the caller
    return Console(file=file, markup=False, highlight=False, emoji=False, width=None if file.isatty() else _WIDTH)


if __name__ == "__main__":
    sys.exit(main())
