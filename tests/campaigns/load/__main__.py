"""Puts a validator under the heaviest load that a full subnet can make, and prints what it took beside its limits.

    python -m tests.campaigns.load
    python -m tests.campaigns.load --only same_block,recommit --miners 32 --tempo 60 --json load.json

Each situation is a new chain, a hub and 256 miners of this machine, and neurons/validator.py in a process of its own,
which alone is measured. Blocks come by the clock, many times as fast as the main network's; a score takes the time of a
real one divided by as much, and all the rest its own time: whatever holds here has that many times the time there.
Where repos hang, the validator's waits for the Hub are divided alike. Linux only. Progress goes to stderr, the table to
stdout. Exit status: 0 all is within its limits, 1 something is not, 3 a setting is wrong, 4 a validator ended badly.
"""

import argparse
import dataclasses
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.constants import DEFAULT_DUPLICATE_COUNT, MAX_EVAL_SET_ROWS
from template.errors import ConfigError
from tests.campaigns.load import run as run_situation
from tests.campaigns.load.run import MEMORY_BOUND_MIB, Situation
from tests.campaigns.load.world import RECOMMIT_BLOCKS

SITUATIONS = (
    Situation(name="same_block", what="all commit in one block, all different", kind="different"),
    Situation(name="same_dataset", what="all commit in one block, all the same rows", kind="same"),
    Situation(name="near_copies", what="all commit in one block, each pair sharing just too little to be copies"),
    Situation(
        name="large_files", what="all commit in one block, all files at the byte limit", kind="large", block_s=1.0
    ),
    Situation(
        name="recommit",
        what="248 commit again as often as the chain lets them, 8 do not",
        recommit_blocks=RECOMMIT_BLOCKS,
        steady=8,
        rounds=3,
    ),
    Situation(
        name="recommit_sampled",
        what="the same, with the validator's own sizes: 50 downloaded, 10 scored",
        recommit_blocks=RECOMMIT_BLOCKS,
        steady=8,
        rounds=3,
        sample_size=10,
        queue_size=50,
    ),
    Situation(name="hung", what="248 repos send a byte at a time, the 8 last in line answer", hung=248, block_s=0.5),
    Situation(name="large_pool", what="a pool of 100,000 rows of 2 KB", pool_rows=100_000, row_bytes=2_000),
    Situation(
        name="largest_pool", what="a pool at its limits of rows and bytes", pool_rows=MAX_EVAL_SET_ROWS, row_bytes=505
    ),
    Situation(
        name="all_at_once",
        what="files at the byte limit, 100,000 rows, 200 that commit again, 40 that hang, 16 steady",
        kind="large",
        pool_rows=100_000,
        row_bytes=2_000,
        recommit_blocks=RECOMMIT_BLOCKS,
        steady=16,
        hung=40,
        block_s=1.5,
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    names = ",".join(one.name for one in SITUATIONS)
    parser = argparse.ArgumentParser(
        prog="load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAMES", help=f"some of {names} (default: all)")
    parser.add_argument("--json", dest="json_file", type=Path, metavar="FILE", help="the lines as JSON, too")
    parser.add_argument("--dir", type=Path, help="new folder, left as it is in the end (default: one that is removed)")
    small = parser.add_argument_group("smaller ones")
    small.add_argument("--miners", type=int, help="all others in proportion (default: 256)")
    small.add_argument("--rows", type=int, help="of a dataset, above 100 (default: 250)")
    small.add_argument("--pool", type=int, help="rows, where more than the datasets hold (default: by situation)")
    small.add_argument("--tempo", type=int, help="blocks a round (default: 360)")
    small.add_argument("--rounds", type=int, help="in each situation (default: by situation)")
    small.add_argument("--block_seconds", type=float, help="seconds a block (default: by situation)")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Every situation that is asked for. Raises: ConfigError, HostError."""
    known = {one.name: one for one in SITUATIONS}
    names = list(known) if args.only is None else args.only.split(",")
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--only must be some of {','.join(known)}, not {unknown[0]!r}")
    if args.dir is not None and args.dir.exists() and any(args.dir.iterdir()):
        raise ConfigError(f"--dir must be a new folder, and {args.dir} is not empty")
    chosen = [resize(known[name], args) for name in names]
    print(f"a validator's process takes at most {MEMORY_BOUND_MIB:,} MiB, with the largest pool", flush=True)
    found = []
    folder = Path(tempfile.mkdtemp(prefix="load-")) if args.dir is None else args.dir.resolve()
    try:
        for one in chosen:
            started = time.monotonic()
            print(f"\n{one.name}: {one.what}; {one.miners} miners, blocks {one.times:.0f} times as fast", flush=True)
            for line in run_situation(one, folder / one.name):
                print(f"  {line}", flush=True)
                found.append((one.name, line))
            print(f"{one.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            if args.dir is None:
                shutil.rmtree(folder / one.name)
    finally:
        if args.dir is None:
            shutil.rmtree(folder, ignore_errors=True)
    if args.json_file is not None:
        rows = [{"situation": name, **dataclasses.asdict(line), "is_met": line.is_met} for name, line in found]
        args.json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    faults = [line for _, line in found if not line.is_met]
    print(f"\n{len(faults)} over their limits" if faults else "\nall within their limits")
    return 1 if faults else 0


def resize(one: Situation, args: argparse.Namespace) -> Situation:
    """The situation at the sizes that are asked for. Raises: ConfigError naming the flag."""
    for flag in ("miners", "rows", "pool", "tempo", "rounds", "block_seconds"):
        value = getattr(args, flag)
        if value is not None and value <= 0:
            raise ConfigError(f"--{flag} must be positive, not {value}")
    miners, rows = args.miners or one.miners, args.rows or one.rows
    if rows <= DEFAULT_DUPLICATE_COUNT:
        raise ConfigError(f"--rows must be above {DEFAULT_DUPLICATE_COUNT}, not {rows}")

    def part(number: int) -> int:
        return math.ceil(number * miners / one.miners)

    needed = DEFAULT_DUPLICATE_COUNT + miners * (rows - DEFAULT_DUPLICATE_COUNT)
    return dataclasses.replace(
        one,
        miners=miners,
        rows=rows,
        pool_rows=max(args.pool or one.pool_rows, needed),
        tempo=args.tempo or one.tempo,
        rounds=args.rounds or one.rounds,
        block_s=args.block_seconds or one.block_s,
        steady=part(one.steady),
        hung=one.hung * miners // one.miners,
        sample_size=part(one.sample_size),
        queue_size=part(one.queue_size),
    )


if __name__ == "__main__":
    sys.exit(main())
