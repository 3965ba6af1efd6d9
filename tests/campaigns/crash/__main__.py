"""Kill a validator wherever it could matter, and make its machine fail.

    python -m tests.campaigns.crash --short --dir /tmp/crash
    python -m tests.campaigns.crash --dir /tmp/crash

The validator is neurons/validator.py on a synthetic subnet with good datasets, a duplicate, malformed files, foreign
rows and a missing repo. It is killed with SIGKILL before and after each BEGIN and COMMIT, each rename, removal and
fsync, each step of an extrinsic, and at random moments, and restarted on the same state. After each kill its files,
its state and its child processes are checked; the end of each run is compared bit by bit with an undisturbed run's.
The worker trains in rows marked "real"; elsewhere its losses depend on the file and the seed alone. Progress goes to
stderr, the table to stdout. Linux only. Exit status: 0 all agrees, 1 disagreements, listed below the table, 3 a setting
is wrong.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.arguments import Parser
from tests.campaigns import command

# Disagreements hold whole tables.
_MAX_CHARS = 600


def build_parser() -> Parser:
    parser = command.make_parser("crash", __doc__)
    parser.add_argument("--dir", type=Path, required=True, help="new folder for all files")
    parser.add_argument("--short", action="store_true", help="one kill of each kind and the commonest faults")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run the campaign and print its table. Raises: ConfigError."""
    command.check_new_folder(args.dir)
    from tests.campaigns.crash.campaign import FULL, SHORT, Campaign

    started = time.monotonic()
    with command.quiet_logs(args):
        report = Campaign(args.dir.resolve(), SHORT if args.short else FULL).run()
    print(report)
    print(f"seconds {time.monotonic() - started:.0f}")
    disagreements = [fault[:_MAX_CHARS] for outcome in report.outcomes for fault in outcome.disagreements]
    return command.report(disagreements, success="all agrees")


if __name__ == "__main__":
    sys.exit(main())
