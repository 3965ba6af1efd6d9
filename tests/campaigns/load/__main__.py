"""Put a validator under the heaviest load that a full subnet can make.

    python -m tests.campaigns.load
    python -m tests.campaigns.load --only same_block,recommit

Each situation is a synthetic subnet with 256 miners, a hub in a process of its own, and neurons/validator.py in
another, which alone is measured. Blocks come by the clock, many times as fast as the main network's; an evaluation
takes the time of a real one divided by as much, and everything else its own time, for which the main network leaves
that many times as long. Where repos hang, the validator's waits for the Hub are divided alike. Progress goes to stderr,
the table to stdout. Linux only. Exit status: 0 all is within its limits, 1 something is not, 3 a setting is wrong, 4 a
validator failed.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.arguments import Parser
from tests.campaigns import command
from tests.campaigns.load.run import MEMORY_BOUND_MIB
from tests.campaigns.load.run import run as run_situation
from tests.campaigns.load.situations import SITUATIONS


def build_parser() -> Parser:
    parser = command.make_parser("load", __doc__)
    names = ",".join(situation.name for situation in SITUATIONS)
    parser.add_argument("--only", metavar="NAMES", help=f"some of {names} (default: all)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen situations. Raises: ConfigError, HostError."""
    names = command.choose("--only", args.only, [situation.name for situation in SITUATIONS])
    print(f"a validator's process takes at most {MEMORY_BOUND_MIB:,} MiB, with the largest pool", flush=True)
    over = 0
    with tempfile.TemporaryDirectory(prefix="load-") as home:
        for situation in (situation for situation in SITUATIONS if situation.name in names):
            name, folder, started = situation.name, Path(home) / situation.name, time.monotonic()
            miners, speed = situation.miners, situation.speed
            print(f"\n{name}: {situation.what}; {miners} miners, blocks {speed:.0f} times as fast", flush=True)
            for figure in run_situation(situation, folder):
                print(f"  {figure}", flush=True)
                over += not figure.is_met
            command.print_progress(f"{name}: {time.monotonic() - started:.0f} s")
            shutil.rmtree(folder)
    print(f"\n{over} over their limits" if over else "\nall within their limits")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
