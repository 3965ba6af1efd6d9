"""Show a validator's work, weights, failures and disk use, also while it runs.

    python scripts/status.py --state_dir ~/.dataset-subnet/finney-96-default-default

--check is for a health check or cron. It prints what needs attention, one line of cause and remedy for each problem;
--alert_url also posts it. Exit status with --check: 0 all is well, 1 something needs attention. Otherwise: 0 shown,
2 or 3 the command line is wrong or there is no state, 4 this machine failed.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from template import cli
from template.arguments import Parser
from template.console import render
from template.errors import ConfigError
from template.status.alerts import Alerter
from template.status.health import HealthLimits, find_problems
from template.status.report import print_status, to_json
from template.status.status import Status, read_status
from template.terminal import escape, write_stdout

_UNHEALTHY = 1
_MAX_ROWS = 20


def build_parser() -> Parser:
    parser = cli.make_parser("status", __doc__)
    parser.add_argument("--state_dir", type=Path, required=True, help="the validator's --state_dir")
    all_help = f"print the whole leaderboard, not its top {_MAX_ROWS}"
    parser.add_argument("--all", dest="is_whole", action="store_true", help=all_help)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object")
    how.add_argument("--watch", type=float, metavar="SECONDS", help="print again after every pause, until Ctrl-C")
    how.add_argument(
        "--check", dest="is_check", action="store_true", help="print the problems, exit with 1 if there are any"
    )
    add = parser.add_argument_group("problems for --check").add_argument
    silence_help, age_help = "no report from the validator for longer", "the node's newest block is older"
    add("--max_silence_minutes", type=float, default=30.0, metavar="N", help=silence_help)
    add("--max_overdue_blocks", type=int, default=360, metavar="N", help="weights overdue by more")
    add("--max_block_age_minutes", type=float, default=15.0, metavar="N", help=age_help)
    add("--min_free_gb", type=float, default=2.0, metavar="N", help="less free space at the --state_dir")
    cli.add_alert_argument(parser)
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Show the status and return the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Print the status. Raises: ConfigError when there is no state; HostError."""
    state_dir = args.state_dir.resolve()
    max_rows = None if args.is_whole else _MAX_ROWS
    if args.watch is not None:
        return watch(state_dir, args.watch, max_rows)
    if args.is_check:
        return check(args, state_dir)
    status = read_status(state_dir, time.time())
    if args.is_json:
        write_stdout(f"{json.dumps(to_json(status))}\n")
    else:
        show(status, max_rows)
    return 0


def check(args: argparse.Namespace, state_dir: Path) -> int:
    """Print every problem, post them if asked to, and return the exit status."""
    limits = HealthLimits(
        max_silence_s=args.max_silence_minutes * 60,
        max_overdue_blocks=args.max_overdue_blocks,
        max_block_age_s=args.max_block_age_minutes * 60,
        min_free_bytes=int(args.min_free_gb * 1e9),
    )
    alerter = Alerter(args.alert_url, state_dir) if args.alert_url else None
    status = read_status(state_dir, time.time(), measures_disk=False)
    problems = find_problems(status, limits)
    warnings = status.activity.warnings if status.activity else ()
    lines = [
        *(map(str, problems) if problems else ["all is well"]),
        *(f"warning: {escape(warning)}" for warning in warnings),
    ]
    write_stdout("".join(f"{line}\n" for line in lines))
    if alerter is not None:
        alerter.report(problems, time.time())
    return _UNHEALTHY if problems else 0


def show(status: Status, max_rows: int | None, *, clears: bool = False) -> bool:
    """Print the status. Return whether stdout took it: a reader such as `head` may leave."""

    def fill(console: Console) -> None:
        if clears:
            console.clear()
        print_status(status, console, max_rows=max_rows)

    return write_stdout(render(fill)) is None


def watch(state_dir: Path, pause_s: float, max_rows: int | None) -> int:
    """Print the status until interrupted."""
    if not 0 < pause_s <= 3600:
        raise ConfigError(f"--watch must be above 0 and at most 3600 seconds, not {pause_s}")
    try:
        while show(read_status(state_dir, time.time()), max_rows, clears=True):
            time.sleep(pause_s)
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
