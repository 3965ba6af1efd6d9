"""Measure admission, downloads, ticks, the chain's messages, start-up and memory around an evaluation.

    python -m tests.campaigns.load.overhead
    python -m tests.campaigns.load.overhead --only tick,admission

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
from template.arguments import Parser
from tests.campaigns import command
from tests.fixtures.faulty_hub import serve_hub

_NAMES = ["admission", "downloads", "tick", "wire", "startup", "memory"]
_SIZES = (
    ("miners", 256, "datasets and uids"),
    ("rows", 250, "in each dataset"),
    ("pool", 20_000, "rows of the pool"),
    ("max_downloads", 8, "at once"),
    ("latency", 0.05, "of the hub, in seconds"),
    ("scores", 1000, "evaluations in a row"),
    ("repeats", 5, "of what is repeated"),
)


def build_parser() -> Parser:
    parser = command.make_parser("load.overhead", __doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(_NAMES)} (default: all)")
    for name, default, what in _SIZES:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{what} (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen benches and print their figures. Raises: ConfigError, HostError."""
    chosen = command.choose("--only", args.only, _NAMES)
    command.check_positive(args, *(name for name, _, _ in _SIZES))
    are_met = True
    with (
        command.quiet_logs(args),
        tempfile.TemporaryDirectory(prefix="bench-overhead-") as home,
        serve_hub(Path(home) / "hub") as endpoint,
    ):
        # The Hub's client reads it when it is imported.
        os.environ["HF_ENDPOINT"] = endpoint
        from tests.campaigns.load import benches

        for name in chosen:
            (folder := Path(home) / name).mkdir()
            for figure in getattr(benches, f"bench_{name}")(args, folder):
                print(figure, flush=True)
                are_met &= figure.is_met
    return 0 if are_met else 1


def install() -> None:
    """Change nothing in a validator's process."""


if __name__ == "__main__":
    sys.exit(main())
