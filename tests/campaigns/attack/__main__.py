"""Attacks the product as strangers could, and prints the verdict and the cost of each attack beside what is allowed.

    python -m tests.campaigns.attack
    python -m tests.campaigns.attack rows

rows: what a miner's file may hold. hub: what the Hub, or whoever answers in its place, may send. chain: what
commitments and receipts may say. All is local. Exit status: 0 every attack failed, 1 one did not (listed), 3 a setting
is wrong.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from template import cli
from template.errors import ConfigError
from tests.campaigns.attack.runner import Attack, launch, report

TABLES = ("rows", "hub", "chain")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)} (default: all)")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Attacks and reports; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Every attack of the tables asked for, each in a folder of its own. Raises: ConfigError."""
    if unknown := set(args.tables) - set(TABLES):
        raise ConfigError(f"TABLE must be one of {', '.join(TABLES)}, not {min(unknown)!r}")
    with cli.quiet_logs(args):
        faults = [fault for table in args.tables or TABLES for fault in attack(table)]
    for fault in faults:
        print(f"NOT AS IT MUST BE: {fault}")
    print(f"{len(faults)} not as they must be" if faults else "every attack failed")
    return 1 if faults else 0


def attack(table: str) -> list[str]:
    """Carries out the attacks of one table, prints what came of them, and returns what is not as it must be."""
    attacks: Sequence[Attack] = import_module(f"tests.campaigns.attack.{table}").ATTACKS
    outcomes = []
    for one in attacks:
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(launch(one, Path(folder)))
    print(f"{table}\n{report(outcomes)}\n", flush=True)
    return [fault for outcome in outcomes for fault in outcome.faults()]


if __name__ == "__main__":
    sys.exit(main())
