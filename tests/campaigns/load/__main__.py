"""Put a validator under the heaviest load that a full subnet can make.

    python -m tests.campaigns.load
    python -m tests.campaigns.load --only same_block,recommit --miners 32 --tempo 60 --json load.json

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
from template.constants import DEFAULT_DUPLICATE_COUNT
from template.errors import ConfigError
from tests.campaigns import command
from tests.campaigns.load.run import MEMORY_BOUND_MIB
from tests.campaigns.load.run import run as run_situation
from tests.campaigns.load.situations import SITUATIONS
from tests.campaigns.measure import write_figures

_SIZES = ("miners", "rows", "pool", "tempo", "rounds", "block_seconds")


def build_parser() -> argparse.ArgumentParser:
    names = ",".join(situation.name for situation in SITUATIONS)
    parser = command.make_parser("load", __doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"some of {names} (default: all)")
    parser.add_argument("--json", dest="json_file", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--dir", type=Path, help="new folder, which is kept (default: a temporary one)")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--miners", type=int, help="the counts of others follow in proportion (default: 256)")
    sizes.add_argument("--rows", type=int, help="of a dataset, above 100 (default: 250)")
    sizes.add_argument("--pool", type=int, help="rows, where the datasets need no more (default: by situation)")
    sizes.add_argument("--tempo", type=int, help="blocks a round (default: 360)")
    sizes.add_argument("--rounds", type=int, help="in each situation (default: by situation)")
    sizes.add_argument("--block_seconds", type=float, help="seconds a block (default: by situation)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen situations. Raises: ConfigError, HostError."""
    by_name = {situation.name: situation for situation in SITUATIONS}
    names = command.choose("--only", args.only, list(by_name))
    command.check_new_folder(args.dir)
    command.check_positive(args, *_SIZES)
    if (args.rows or DEFAULT_DUPLICATE_COUNT + 1) <= DEFAULT_DUPLICATE_COUNT:
        raise ConfigError(f"--rows must be above {DEFAULT_DUPLICATE_COUNT}, not {args.rows}")
    print(f"a validator's process takes at most {MEMORY_BOUND_MIB:,} MiB, with the largest pool", flush=True)
    figures = []
    folder = Path(tempfile.mkdtemp(prefix="load-")) if args.dir is None else args.dir.resolve()
    try:
        for name in names:
            situation = by_name[name].resize(**{size: getattr(args, size) for size in _SIZES})
            started, speed = time.monotonic(), situation.speed
            print(
                f"\n{name}: {situation.what}; {situation.miners} miners, blocks {speed:.0f} times as fast", flush=True
            )
            for figure in run_situation(situation, folder / name):
                print(f"  {figure}", flush=True)
                figures.append(({"situation": name}, figure))
            command.print_progress(f"{name}: {time.monotonic() - started:.0f} s")
            if args.dir is None:
                shutil.rmtree(folder / name)
    finally:
        if args.dir is None:
            shutil.rmtree(folder, ignore_errors=True)
    write_figures(args.json_file, figures)
    over = sum(not figure.is_met for _, figure in figures)
    print(f"\n{over} over their limits" if over else "\nall within their limits")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
