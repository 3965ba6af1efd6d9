"""Run two validators through a day of failures, and recompute their results.

    python -m tests.campaigns.soak --miners 12 --rounds 6 --dir /tmp/soak
    python -m tests.campaigns.soak --miners 256 --rounds 300 --dir /tmp/soak

Blocks come as fast as this machine is; 300 rounds of 24 blocks are the 7,200 of a day. The validators are processes of
neurons/validator.py whose workers train the tiny model. Uids are recycled, commitments change, are sealed, revealed or
broken; hub and chain fail in spells; validators and workers are killed. In the end a reference model recomputes all
that the validators did from a log of events. Progress goes to stderr, the summary to stdout; the validators' logs are
in their folders. Exit status: 0 all agrees, 1 disagreements, listed below the summary, 3 a setting is wrong.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.arguments import Parser
from tests.campaigns import command


def build_parser() -> Parser:
    parser = command.make_parser("soak", __doc__)
    parser.add_argument("--dir", type=Path, required=True, help="new folder for all files")
    parser.add_argument("--miners", type=int, default=256, help="registered at any time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=300, help="before the quiet ones (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all events (default: %(default)s)")
    parser.add_argument(
        "--replays", type=int, default=100, help="datasets of each validator to evaluate again (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run, recompute, and print the summary. Raises: ConfigError."""
    command.check_positive(args, "miners", "rounds")
    command.check_new_folder(args.dir)
    # The bits of a loss depend on the number of threads, which is a worker's here.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    from tests.campaigns.soak.report import audit
    from tests.campaigns.soak.run import Soak

    folder = args.dir.resolve()
    with command.quiet_logs(args):
        soak = Soak(folder, miners=args.miners, seed=args.seed, progress=command.print_progress)
        try:
            soak.run(args.rounds)
        finally:
            soak.close()
        summary, findings = audit(folder, replays=args.replays)
    for name, counts in summary.items():
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.most_common())}")
    return command.report(findings, success="all agrees")


if __name__ == "__main__":
    sys.exit(main())
