"""Throws inputs at everything that reads what strangers write, and prints what came of it.

    python -m tests.campaigns.fuzz
    python -m tests.campaigns.fuzz --targets rows receipt --examples 1000 --runs 0

Two ways for each target. shapes: inputs that are nearly right, made by hypothesis from --seed. coverage: inputs that
reach new code, found by atheris from the corpus, which grows by them. None may crash or hang a reader, cost more than
its budget, be refused by an error that is not documented, or be read as anything but what a second, plain reader reads.

The corpus in --corpus is read first; with --keep what was found is minimised and put there in the end. Needs the
extras `test` and, unless --runs is 0, `fuzz`. Linux only. Exit status: 0 nothing found, 1 findings, listed below the
table with their files in --dir, 3 a setting is wrong, 4 a fuzzer could not run.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from template import cli
from template.errors import ConfigError

if TYPE_CHECKING:
    from tests.campaigns.fuzz.run import Tally

TARGETS = ("commitment", "fields", "rows", "chat", "receipt", "round")
CORPUS = Path(__file__).resolve().parent / "corpus"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS), help="which (default: all)")
    parser.add_argument("--examples", type=int, default=2_000, help="by shape, for each target (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=1_000_000, help="by coverage, shared out by what one costs (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder for each target (default: the tests')")
    parser.add_argument("--keep", action="store_true", help="put the minimised corpus into --corpus")
    parser.add_argument("--dir", type=Path, help="where findings are kept (default: a new temporary folder)")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes and reports; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """The campaign and its table. Raises: ConfigError, HostError."""
    for flag in ("examples", "runs"):
        if getattr(args, flag) < 0:
            raise ConfigError(f"--{flag} must not be negative, not {getattr(args, flag)}")
    for module, extra in (("hypothesis", "test"), *([("atheris", "fuzz")] if args.runs else [])):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{module} is not installed; pip install -e '.[{extra}]', or --runs 0 without atheris")
    folder = args.dir or Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(HEAD, flush=True)
    tallies: list[Tally] = []
    for target in args.targets:
        for tally in fuzz(target, args, folder):
            print(line(tally), flush=True)
            tallies.append(tally)
    found = [(tally, what, path) for tally in tallies for what, path in tally.findings.items()]
    print(f"{sum(tally.inputs for tally in tallies):,} inputs, {len(found)} findings")
    for tally, what, path in found:
        print(f"FOUND: {tally.target}: {what}: {path}")
    return 1 if found else 0


def fuzz(target: str, args: argparse.Namespace, folder: Path) -> "Iterator[Tally]":
    """The corpus, and then both campaigns against one target."""
    from tests.campaigns.fuzz import run as fuzz_run
    from tests.campaigns.fuzz.seeds import make_seeds
    from tests.campaigns.fuzz.targets import TARGETS as CHECKS

    check = CHECKS[target].check
    kept = fuzz_run.read_corpus(args.corpus / target)
    replay = fuzz_run.Runner(target, "corpus", check, folder)
    for data in (*make_seeds()[target], *kept):
        replay.run(data)
    yield replay.finish()
    if args.examples:
        yield fuzz_run.run_shapes(target, args.examples, args.seed, folder)
    runs = round(args.runs * CHECKS[target].share / sum(CHECKS[name].share for name in args.targets))
    if runs:
        grown = folder / "corpus" / target
        fuzz_run.write_corpus(grown, [*make_seeds()[target], *kept])
        yield fuzz_run.run_coverage(target, grown, runs, args.seed, folder)
        kept = fuzz_run.read_corpus(grown)
    if args.keep:
        fuzz_run.write_corpus(args.corpus / target, fuzz_run.minimise(check, kept))


HEAD = (
    f"{'target':<11}{'inputs by':<10}{'inputs':>9}{'a second':>10}{'edges':>7}{'features':>10}{'corpus':>8}"
    f"{'slowest ms':>12}{'MiB for one':>13}{'MiB in all':>12}{'findings':>10}"
)


def line(tally: "Tally") -> str:
    """One line of the table; no edges, features and corpus where nothing counts them."""
    is_led = tally.engine == "coverage"
    reached = (tally.edges, tally.features, tally.corpus) if is_led else ("", "", "")
    return (
        f"{tally.target:<11}{tally.engine:<10}{tally.inputs:>9}{tally.inputs / max(tally.seconds, 1e-9):>10.0f}"
        f"{reached[0]:>7}{reached[1]:>10}{reached[2]:>8}{tally.slowest_s * 1000:>12.1f}"
        f"{tally.input_mib:>13.1f}{tally.process_mib:>12.1f}{len(tally.findings):>10}"
    )


if __name__ == "__main__":
    sys.exit(main())
