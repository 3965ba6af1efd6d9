"""Measure admission, downloads, ticks, start-up and memory around an evaluation.

    python -m tests.campaigns.load.overhead
    python -m tests.campaigns.load.overhead --only tick,admission --json overhead.json

The code is the product's own, with its own clients, on a synthetic subnet; only the model is tiny. Exit status: 0 all
is within its limits, 1 something is not, 2 or 3 the command line or another setting is wrong.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.errors import ConfigError
from tests.campaigns import command
from tests.campaigns.measure import write_figures
from tests.fixtures.faulty_hub import serve_hub

_NAMES = ["admission", "downloads", "tick", "startup", "memory"]


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser("load.overhead", __doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(_NAMES)} (default: all)")
    parser.add_argument("--json", dest="json_file", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--miners", type=int, default=256, help="datasets and uids (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=250, help="in each dataset (default: %(default)s)")
    parser.add_argument("--pool", type=int, default=20_000, help="rows of the pool (default: %(default)s)")
    parser.add_argument("--max_downloads", type=int, default=8, help="at once (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.05, help="of the hub, in seconds (default: %(default)s)")
    parser.add_argument("--scores", type=int, default=1000, help="evaluations in a row (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of what is repeated (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen benches and print their figures. Raises: ConfigError, HostError."""
    chosen = command.choose("--only", args.only, _NAMES)
    command.check_positive(args, "miners", "rows", "pool", "max_downloads", "scores", "repeats")
    if args.rows > args.pool:
        raise ConfigError("--rows must be at most --pool")
    figures = []
    with (
        command.quiet_logs(args),
        tempfile.TemporaryDirectory(prefix="bench-overhead-") as home,
        serve_hub(Path(home) / "hub") as endpoint,
    ):
        # The Hub's client reads it when it is imported.
        os.environ["HF_ENDPOINT"] = endpoint
        from tests.campaigns.load.benches import BENCHES

        for name in chosen:
            (folder := Path(home) / name).mkdir()
            for figure in BENCHES[name](args, folder):
                print(figure, flush=True)
                figures.append(figure)
    write_figures(args.json_file, [({}, figure) for figure in figures])
    return 0 if all(figure.is_met for figure in figures) else 1


def install() -> None:
    """Change nothing in a validator's process."""


if __name__ == "__main__":
    sys.exit(main())
