"""Send inputs to every reader of strangers' bytes, and print the result.

    python -m tests.campaigns.fuzz
    python -m tests.campaigns.fuzz --targets rows receipt --examples 1000 --runs 0

Each target gets inputs by shape, nearly right ones that hypothesis makes from --seed, and inputs by coverage, which
atheris finds from the corpus by the new code that they reach. None may crash or hang a reader, cost more than its
budget, be refused by an undocumented error, or be read differently than by a second, plain reader. The corpus in
--corpus comes first; with --keep what was found is minimised and put there in the end. Needs the extras `test` and,
unless --runs is 0, `fuzz`. Linux only. Exit status: 0 no findings, 1 findings, listed below the table with their files
in --dir, 3 a setting is wrong, 4 a fuzzer could not run.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from template import cli
from template.arguments import Parser
from template.errors import ConfigError
from tests.campaigns import command
from tests.campaigns.fuzz.run import Tally, minimise, read_corpus, run_coverage, run_inputs, run_shapes, write_corpus
from tests.campaigns.fuzz.seeds import make_seeds
from tests.campaigns.fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parent / "corpus"


def build_parser() -> Parser:
    parser = command.make_parser("fuzz", __doc__)
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS), help="which (default: all)")
    parser.add_argument("--examples", type=int, default=2_000, help="by shape, for each target (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=1_000_000, help="by coverage, shared out by their cost (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random draws (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder for each target (default: the tests')")
    parser.add_argument("--keep", action="store_true", help="put the minimised corpus into --corpus")
    parser.add_argument("--dir", type=Path, help="where findings are kept (default: a new temporary folder)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run the campaign and print its table. Raises: ConfigError, HostError."""
    for flag in ("examples", "runs"):
        if getattr(args, flag) < 0:
            raise ConfigError(f"--{flag} must not be negative, not {getattr(args, flag)}")
    for module, extra in (("hypothesis", "test"), *([("atheris", "fuzz")] if args.runs else [])):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{module} is not installed; pip install -e '.[{extra}]', or --runs 0 without atheris")
    folder = args.dir or Path(tempfile.mkdtemp(prefix="fuzz-"))
    tallies: list[Tally] = []
    for target in args.targets:
        for tally in fuzz(target, args, folder):
            print(tally, flush=True)
            tallies.append(tally)
    findings = [f"{tally.target}: {what}: {path}" for tally in tallies for what, path in tally.findings.items()]
    print(f"{sum(tally.inputs for tally in tallies):,} inputs, {len(findings)} findings")
    for finding in findings:
        print(f"FOUND: {finding}")
    return 1 if findings else 0


def fuzz(target: str, args: argparse.Namespace, folder: Path) -> Iterator[Tally]:
    """Run the corpus and both campaigns against one target."""
    inputs = [*make_seeds()[target], *read_corpus(args.corpus / target)]
    yield run_inputs(target, inputs, folder)
    if args.examples:
        yield run_shapes(target, args.examples, args.seed, folder)
    if runs := round(args.runs * TARGETS[target].share / sum(TARGETS[name].share for name in args.targets)):
        grown = folder / "corpus" / target
        write_corpus(grown, inputs)
        yield run_coverage(target, grown, runs, args.seed, folder)
        inputs = read_corpus(grown)
    if args.keep:
        write_corpus(args.corpus / target, minimise(TARGETS[target].check, inputs))


if __name__ == "__main__":
    sys.exit(main())
