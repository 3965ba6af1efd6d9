"""Check a machine and its settings before a validator or miner runs: all at once, with what to do next.

    python scripts/doctor.py --netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey
    python scripts/doctor.py --role miner --netuid 96 --hf_repo_id me/my-dataset --dataset_path data.jsonl

It takes all flags of neurons/validator.py, or with --role miner those of neurons/miner.py: put it in front of the flags
that you start with (`--role miner --help` shows the miner's). It changes and downloads nothing. A validator's time per
evaluation comes from the evaluations in its state. Without any, the first rows of the evaluation set are evaluated on
this machine for at most --measure_seconds, if the model and the evaluation set are there.

The result goes to stdout. Exit status: 0 no failure, 1 at least one failure, 2 the command line is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType

from neurons import miner, validator
from template import cli
from template.arguments import Parser
from template.console import render
from template.doctor.findings import Level
from template.doctor.full import Options, check_all, print_findings, to_json
from template.doctor.setup import Role
from template.terminal import write_stdout

NEURONS: dict[str, ModuleType] = {Role.VALIDATOR: validator, Role.MINER: miner}


def build_parser(role: str = Role.VALIDATOR) -> Parser:
    parser: Parser = NEURONS[role].build_parser()
    parser.prog, parser.description = "doctor", __doc__
    group = parser.add_argument_group("doctor")
    _add_role(group)
    add = group.add_argument
    add("--json", dest="is_json", action="store_true", help="print one JSON array")
    add("--ports", type=int, nargs="+", default=[], metavar="PORT", help="local ports that must be free")
    add("--min_free_gb", type=float, default=2.0, metavar="N", help="free space that is needed")
    measure_help = "longest measured evaluation; 0 measures none"
    add("--measure_seconds", type=float, default=120.0, metavar="N", help=measure_help)
    return parser


def _add_role(group: argparse._ActionsContainer) -> None:
    role_help = "the program whose flags are given"
    group.add_argument("--role", choices=[*map(str, Role)], default=str(Role.VALIDATOR), help=role_help)


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, print it and return the exit status."""
    # The role first, since it decides which other flags there are. The whole parser reports a wrong one.
    first = Parser(prog="doctor", add_help=False)
    _add_role(first)
    role = first.parse_known_args(argv)[0].role
    parser = build_parser(role if role in NEURONS else Role.VALIDATOR)
    parser.parse_args(argv)
    # Made by the command itself, as one check of many.
    parser.checks = ()
    return cli.run_main(parser, argv, run)


def run(args: argparse.Namespace) -> int:
    """Check the neuron of these arguments."""
    options = Options(ports=args.ports, min_free_bytes=int(args.min_free_gb * 1e9), measure_s=args.measure_seconds)
    findings = check_all(NEURONS[args.role].make_setup(args), options)
    if args.is_json:
        write_stdout(f"{to_json(findings)}\n")
    else:
        write_stdout(render(partial(print_findings, findings)))
    return int(any(finding.level is Level.FAILURE for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
