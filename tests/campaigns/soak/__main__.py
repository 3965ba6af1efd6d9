"""Runs validators through a simulated day on a local network that does everything it can to them.

    python -m tests.campaigns.soak --miners 12 --rounds 6 --dir /tmp/soak
    python -m tests.campaigns.soak --miners 256 --rounds 300 --dir /tmp/soak

Blocks come as fast as this machine is; 300 rounds of 24 blocks are the 7,200 of a day. The validators are the real
ones, with processes that train the tiny model, on the local chain and hub. Uids are recycled, commitments change, are
sealed and opened, or broken; hub and chain fail in spells; validators and workers are killed. In the end all that the
validators did is computed again from a diary of what was done to them. Progress goes to stderr, the validators' logs
only with --logging.debug, the summary to stdout. Exit status: 0 all agrees, 1 what is listed below the summary does
not, 3 a setting is wrong.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="new folder for everything")
    parser.add_argument("--miners", type=int, default=256, help="registered at any time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=300, help="before the quiet ones (default: %(default)s)")
    parser.add_argument("--validators", type=int, default=2, help="that score alike (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all that happens (default: %(default)s)")
    parser.add_argument(
        "--replays", type=int, default=100, help="datasets of each validator to score again (default: %(default)s)"
    )
    parser.add_argument("--audit_only", action="store_true", help="no run: the books of the one in --dir once more")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and audits; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """The run, unless there was one, and its report. Raises: ConfigError."""
    for flag in ("miners", "rounds", "validators"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag} must be positive, not {getattr(args, flag)}")
    if not args.audit_only and args.dir.exists() and any(args.dir.iterdir()):
        raise ConfigError(f"--dir must be a new folder, and {args.dir} is not empty")
    # One thread for each worker and for the replays: the bits of a loss are a machine's and a number of threads'.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    started = time.monotonic()
    with cli.quiet_logs(args):
        children = [] if args.audit_only else run_soak(args)
        from tests.campaigns.soak.report import audit

        ran = time.monotonic()
        report = audit(args.dir, validators=args.validators, replays=args.replays)
    report.findings += [f"the process {pid} is left over" for pid in children]
    report.add("seconds", f"{ran - started:.0f} to run, {time.monotonic() - ran:.0f} to compute again")
    print(report)
    for finding in report.findings:
        print(f"DISAGREES: {finding}")
    print(f"{len(report.findings)} disagreements" if report.findings else "all agrees")
    return 1 if report.findings else 0


def run_soak(args: argparse.Namespace) -> list[int]:
    """Runs in --dir and returns the processes that are left over, which should be none."""
    from template.localnet.hub.server import HubServer

    with HubServer(args.dir / "hub") as hub:
        # The Hub's client reads it once, when it is imported.
        os.environ["HF_ENDPOINT"] = hub.endpoint
        from tests.campaigns.soak.run import Soak, find_children

        soak = Soak(
            args.dir,
            hub,
            miners=args.miners,
            validators=args.validators,
            seed=args.seed,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
        try:
            soak.run(args.rounds)
        finally:
            soak.close()
        return find_children()


if __name__ == "__main__":
    sys.exit(main())
