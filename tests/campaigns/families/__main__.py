"""Load a tiny random model of every causal language model class of the installed transformers.

    python -m tests.campaigns.families
    python -m tests.campaigns.families --only qwen3,mistral

Each ends in parity, losses of packed rows that equal those of transformers' own forward to 1e-5 nats, or in a refusal
that names the setting; there is no third outcome. The last column is what the comparison at load says alone, without
the list of supported families. Exit status: 0 no third outcome, 1 some, listed below the table, 3 a setting is wrong.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import transformers

from template import cli
from template.arguments import Parser
from tests.campaigns import command
from tests.campaigns.families.run import KINDS, play_all


def build_parser() -> Parser:
    parser = command.make_parser("families", __doc__)
    parser.add_argument("--only", metavar="TYPES", help="some values of model_type, comma-separated (default: all)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Play the classes and print the table. Raises: ConfigError."""
    kinds = tuple(command.choose("--only", args.only, KINDS))
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="families-") as name, command.quiet_logs(args):
        for outcome in play_all(kinds, Path(name)):
            print(f"{outcome.name:<28} {outcome.loaded[:60]:<60} {outcome.unlisted[:90]}", flush=True)
            outcomes.append(outcome)
    print(f"{len(outcomes)} models, {sum('parity' in outcome.loaded for outcome in outcomes)} with parity")
    third = [f"{outcome.name}: {outcome.loaded}" for outcome in outcomes if not outcome.is_allowed]
    return command.report(third, success="each is right or refused by name", label="NEITHER", summary="third outcomes")


if __name__ == "__main__":
    sys.exit(main())
