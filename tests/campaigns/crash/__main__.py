"""Kills a validator at every point at which that could matter, and lets its machine fail it in every way at hand.

    python -m tests.campaigns.crash --short --dir /tmp/crash
    python -m tests.campaigns.crash --dir /tmp/crash

The validator is the real program, in a process on the local chain and hub; its competition has fine datasets, a copy,
malformed ones, foreign rows, a missing repo. It is killed by SIGKILL before and after each BEGIN and COMMIT, each
rename, removal and fsync, each step of an extrinsic, and at random moments, and started again on the same state. After
every kill its files, its state and its orphans are looked at; each run's end is compared with an undisturbed run's, bit
by bit. Where the table says so, the worker trains; elsewhere one answers with what the real one said of the same file
and seed. Progress goes to stderr, the table to stdout. Exit status: 0 all agrees, 1 what is listed below the table does
not, 3 a setting is wrong. Linux only.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.errors import ConfigError

# Disagreements are cut off here: they hold whole tables.
_SAID_CHARS = 600


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="new folder for everything")
    parser.add_argument("--short", action="store_true", help="one kill of each kind and the commonest faults")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is left to chance (default: %(default)s)")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the campaign; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """The campaign and its table. Raises: ConfigError."""
    if args.jobs < 1:
        raise ConfigError(f"--jobs must be positive, not {args.jobs}")
    if args.dir.exists() and any(args.dir.iterdir()):
        raise ConfigError(f"--dir must be a new folder, and {args.dir} is not empty")
    from tests.campaigns.crash.campaign import FULL, SHORT, Crew

    started = time.monotonic()
    crew = Crew(
        args.dir.resolve(),
        SHORT if args.short else FULL,
        jobs=args.jobs,
        seed=args.seed,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    with cli.quiet_logs(args):
        campaign = crew.work()
    print(campaign)
    print(f"seconds {time.monotonic() - started:.0f}")
    for said in campaign.disagreements:
        print(f"DISAGREES: {said[:_SAID_CHARS]}")
    print(f"{len(campaign.disagreements)} disagreements" if campaign.disagreements else "all agrees")
    return 1 if campaign.disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
