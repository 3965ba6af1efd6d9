"""Call the chain through a node that gives wrong answers, and print the result.

    python -m tests.campaigns.wire
    python -m tests.campaigns.wire --calls 500 --seed 2

The product's client, unmodified, talks to a local node over a WebSocket. In each call the answers of one JSON-RPC
method, of all that the client uses, have one fault: a wrong result, a wrong message around it, or a dropped connection.
No call may raise anything but the typed errors of template/errors.py, wait past its deadline, return what is not true,
or leave the client unable to make the next call. Exit status: 0 no findings, 1 findings, listed below the table, 3 a
setting is wrong.
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
from tests.campaigns.wire.run import METHODS, Report, open_campaign, run_calls


def build_parser() -> Parser:
    parser = command.make_parser("wire", __doc__)
    parser.add_argument("--calls", type=int, default=5_000, help="calls that meet a fault (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all random draws (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run the campaign and print its table. Raises: ConfigError."""
    command.check_positive(args, "calls")
    with tempfile.TemporaryDirectory(prefix="wire-") as name, command.quiet_logs(args):
        folder = Path(name)
        os.environ["BITTENSOR_RUNTIME_CACHE_DIR"] = str(folder / "cache")
        with open_campaign(folder, args.seed) as campaign:
            report = run_calls(campaign, args.calls, progress=command.print_progress)
    print_table(report)
    findings = [f"{what} ({count})" for what, count in report.findings.items()]
    return command.report(findings, success="no findings", label="FOUND", summary="findings")


def print_table(report: Report) -> None:
    print(f"{report.calls:,} calls, {len(METHODS)} methods, {len(report.tallies)} faults")
    for method in METHODS:
        print(f"{method:<31} {report.methods[method]} calls with a fault")
    for kind, tally in report.tallies.items():
        print(f"{kind:<20} {tally}")


if __name__ == "__main__":
    sys.exit(main())
