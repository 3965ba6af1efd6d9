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
from template.arguments import Parser
from template.errors import ConfigError
from tests.campaigns import command
from tests.campaigns.attack.runner import Attack, launch

TABLES = ("rows", "hub", "chain")


def build_parser() -> Parser:
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
            most = [0.0, 0.0, 0.0]
            for attack in attacks:
                with tempfile.TemporaryDirectory() as folder:
                    outcome = launch(attack, Path(folder))
                print(outcome, flush=True)
                faults += outcome.faults()
                most = [*map(max, most, (outcome.seconds, outcome.memory, outcome.disk))]
            limits = "at most {:.1f} s, {:.0f} MiB of memory, {:.0f} MiB on disk".format(*most)
            print(f"{table}: {len(attacks)} attacks, {limits}\n", flush=True)
    return command.report(faults, success="every attack failed", label="UNEXPECTED", summary="unexpected outcomes")


if __name__ == "__main__":
    sys.exit(main())
