"""Attack the product as strangers could, and print each verdict and its cost.

    python -m tests.campaigns.attack
    python -m tests.campaigns.attack rows

rows: what a miner's file may hold. hub: what the Hub, or another server in its place, may send. chain: what
commitments, nodes, receipts and round files may hold. Nothing leaves this machine. Exit status: 0 every attack failed,
1 one succeeded (listed), 3 a setting is wrong.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from template import cli
from template.errors import ConfigError
from tests.campaigns import command
from tests.campaigns.attack.runner import Attack, launch, report

TABLES = ("rows", "hub", "chain")


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser("attack", __doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)} (default: all)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Launch every attack of the chosen tables. Raises: ConfigError."""
    if unknown := set(args.tables) - set(TABLES):
        raise ConfigError(f"TABLE must be one of {', '.join(TABLES)}, not {min(unknown)!r}")
    faults: list[str] = []
    with command.quiet_logs(args):
        for table in args.tables or TABLES:
            attacks: Sequence[Attack] = import_module(f"tests.campaigns.attack.{table}").ATTACKS
            outcomes = []
            for attack in attacks:
                with tempfile.TemporaryDirectory() as folder:
                    outcomes.append(launch(attack, Path(folder)))
            print(f"{table}\n{report(outcomes)}\n", flush=True)
            faults += [fault for outcome in outcomes for fault in outcome.faults()]
    return command.report(
        faults, success="every attack failed", label="NOT AS IT MUST BE", summary="not as they must be"
    )


if __name__ == "__main__":
    sys.exit(main())
