"""Tells what a validator is doing, when its weights are due, what fails and what disk it uses, also while it runs.

    python scripts/status.py --state_dir ~/.dataset-subnet/finney-96-default-default

Reads only. With --check it prints one line and the exit status says whether all is well: 0 it is, 1 you should look.
Otherwise: 0 told, 2 or 3 the command line is wrong or there is no state, 4 this machine failed.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.errors import ConfigError
from template.validator.status import health_problem, read_status
from template.validator.status_report import describe, to_json

_CLEAR_SCREEN = "\033[H\033[2J"
_IN_TROUBLE = 1


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state_dir", type=Path, required=True, help="the validator's --state_dir")
    parser.add_argument("--all", dest="is_whole", action="store_true", help="print the whole table, not its top 20")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object")
    how.add_argument("--watch", type=float, metavar="SECONDS", help="print it again every so often, until Ctrl-C")
    how.add_argument("--check", dest="is_check", action="store_true", help="say whether all is well")
    check = parser.add_argument_group("what --check takes for trouble")
    check.add_argument(
        "--max_silence_minutes",
        type=float,
        default=30.0,
        metavar="N",
        help="no word from the validator for longer (default: %(default)g)",
    )
    check.add_argument(
        "--max_overdue_blocks",
        type=int,
        default=360,
        metavar="N",
        help="weights overdue by more; not after --offline or --dont_set_weights (default: %(default)s)",
    )
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints where the validator stands; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Reads the state and prints it. Raises: ConfigError when there is none; HostError."""
    state_dir = args.state_dir.expanduser().resolve()
    if args.watch is not None:
        return watch(args, state_dir)
    status = read_status(state_dir, time.time())
    if args.is_check:
        trouble = health_problem(
            status, max_age_s=args.max_silence_minutes * 60, max_overdue_blocks=args.max_overdue_blocks
        )
        print("all is well" if trouble is None else trouble)
        return 0 if trouble is None else _IN_TROUBLE
    print(json.dumps(to_json(status)) if args.is_json else describe(status, rows=None if args.is_whole else 20))
    return 0


def watch(args: argparse.Namespace, state_dir: Path) -> int:
    """Prints the status again and again, until interrupted."""
    if not 0 < args.watch <= 3600:
        raise ConfigError(f"--watch must be above 0 and at most 3600 seconds, not {args.watch}")
    try:
        while True:
            text = describe(read_status(state_dir, time.time()), rows=None if args.is_whole else 20)
            print(f"{_CLEAR_SCREEN}{text}" if sys.stdout.isatty() else f"{text}\n", flush=True)
            time.sleep(args.watch)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
