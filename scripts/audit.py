"""Audits what a validator published of its rounds: signatures, arithmetic, and the losses, scored again from the Hub.

    python scripts/audit.py round-96-4321000-5Ef1ucvE.jsonl
    python scripts/audit.py rounds/ --sample 3
    python scripts/audit.py rounds/ --sample 3 --subtensor.network finney

Needs no wallet. Prints what is wrong with each file, then a line for each receipt that was scored again: identical,
differs by how much, not comparable and why, or cannot be fetched and why. Only receipts of the competition, model and
hyperparameters named here are scored again. The result goes to stdout, progress and logs to stderr. Exit status, the
first that applies: 9 a signature is missing, false or somebody else's, 7 a loss differs, or a file is damaged or does
not agree with itself, the rules or the chain, 5 the Hub or the chain did not answer for some, so audit those again, 8
something is not comparable or no longer on the Hub, 0 all is identical; 2 or 3 the command line or another setting is
wrong, 4 this machine failed.
"""

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from template import cli
from template.cli import add_replay_arguments, make_replay_context
from template.config import load_training_args
from template.errors import ConfigError, RemoteError, SubmissionError
from template.receipts.files import read_round
from template.receipts.receipt import Receipt, ReplayVerdict
from template.receipts.replay import Auditor
from template.receipts.round_file import RoundFile
from template.receipts.verify import (
    check_across_files,
    check_against_chain,
    check_consistency,
    check_signatures,
    remarks,
)
from template.terminal import escape

# What becomes of a receipt whose dataset, or whose model, could not be had: for good, or for now.
GONE = "cannot be fetched"
NO_ANSWER = "cannot be fetched now"

_WORDS = {
    ReplayVerdict.IDENTICAL: "identical",
    ReplayVerdict.DIFFERENT: "different",
    ReplayVerdict.NOT_COMPARABLE: "not comparable",
    GONE: "no longer there",
    NO_ANSWER: "to be asked for again",
}


@dataclass(kw_only=True)
class FileReport:
    """What is to be said of one file; `unanswered`: what the chain could not be asked."""

    path: Path
    title: str = ""
    bad_signatures: list[str] = field(default_factory=list)
    inconsistencies: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One receipt scored again. verdict: a `ReplayVerdict`, GONE or NO_ANSWER."""

    path: Path
    line: int
    hotkey: str
    dataset: str
    lucky_num: int
    loss: float
    verdict: str
    difference: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A receipt to score again, and where it stands."""

    path: Path
    line: int
    receipt: Receipt


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE_OR_DIR", help="round files, or folders of them")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sample", type=int, metavar="N", help="score N receipts again, drawn from all files")
    which.add_argument("--all", action="store_true", help="score every receipt again (the default)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the sample (default: drawn, and printed)")
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    add_replay_arguments(parser)
    parser.add_argument(
        "--subtensor.network",
        dest="network",
        help="ask this chain for the blocks that the files name: finney, test, a wss:// url, or sim:PATH",
    )
    parser.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object at the end")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Audits and prints; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.sample is not None and args.sample < 0:
        parser.error(f"--sample must not be negative, not {args.sample}")
    return cli.run_main(parser, argv, audit)


def audit(args: argparse.Namespace) -> int:
    """Checks every file, then scores the receipts again that can be believed."""
    auditor = Auditor(make_replay_context(args), cli.read_competition(args), load_training_args(args.training_args))
    rounds, reports = read_files(find_files(args.files))
    jobs = check_files(rounds, reports, args.network)
    seed = int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed
    chosen = jobs if args.sample is None else draw_sample(jobs, args.sample, seed)
    say: Callable[[str], None] = (lambda _: None) if args.is_json else (lambda line: print(line, flush=True))
    for report in reports.values():
        say(describe_file(report))
    if len(chosen) < len(jobs):
        say(f"scoring {len(chosen)} of {len(jobs)} receipts again: --sample {args.sample} --seed {seed}")
    outcomes = []
    for job in chosen:
        outcomes.append(replay(auditor, job))
        say(describe_outcome(outcomes[-1]))
    status = exit_status(reports.values(), outcomes)
    if args.is_json:
        files = [{**asdict(report), "path": str(report.path)} for report in reports.values()]
        lines = [{**asdict(outcome), "path": str(outcome.path)} for outcome in outcomes]
        print(json.dumps({"files": files, "receipts": len(jobs), "seed": seed, "replayed": lines, "status": status}))
    else:
        say(summarize(reports.values(), outcomes))
    return status


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the round files of the folders named, each once. Raises: ConfigError for one not there."""
    found: list[Path] = []
    for path in (path.expanduser() for path in paths):
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
        inside = sorted(path.glob("round-*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path}: no round file, round-*.jsonl, in this folder")
        found += inside
    return list(dict.fromkeys(found))


def read_files(paths: Sequence[Path]) -> tuple[dict[Path, RoundFile], dict[Path, FileReport]]:
    """The files that can be read, and a report begun for every one; a damaged file holds nothing else up."""
    rounds, reports = {}, {}
    for path in paths:
        report = reports[path] = FileReport(path=path)
        try:
            file = rounds[path] = read_round(path)
        except ConfigError as error:
            report.inconsistencies.append(f"damaged: {str(error).removeprefix(f'{path}: ')}")
            continue
        header = file.header
        report.title = (
            f"netuid {header.netuid}, blocks {header.start_block} to {header.end_block}, by "
            f"{header.signer or 'nobody'}, {len(header.table)} in the table, {len(file.receipts)} receipts"
        )
    return rounds, reports


def check_files(rounds: Mapping[Path, RoundFile], reports: Mapping[Path, FileReport], network: str | None) -> list[Job]:
    """Writes into the reports what is wrong without scoring anything, and returns the receipts worth scoring again.

    Those are the ones whose signature, and whose file's, is true. network: the chain to ask, None for none.
    """
    from template.chain.client import verify_signature

    known = {receipt.digest: receipt for file in rounds.values() for receipt in file.receipts}
    contradictions = check_across_files({str(path): file.header for path, file in rounds.items()})
    jobs = []
    for path, file in rounds.items():
        report = reports[path]
        header_wrong, receipts_wrong = check_signatures(file, verify_signature)
        if header_wrong is not None:
            report.bad_signatures.append(f"the header: {header_wrong}")
        report.bad_signatures += [f"line {at + 2}: {wrong}" for at, wrong in receipts_wrong.items()]
        report.inconsistencies += [*check_consistency(file, known), *contradictions[str(path)]]
        report.notes += remarks(file, known)
        if network is not None:
            ask_chain(report, file, network)
        if header_wrong is None:
            numbered = enumerate(file.receipts)
            jobs += [Job(path, at + 2, receipt) for at, receipt in numbered if at not in receipts_wrong]
    return jobs


def ask_chain(report: FileReport, file: RoundFile, network: str) -> None:
    """Writes into the report what the chain says of the blocks that the file names, or that it did not answer."""
    from template.chain.client import Chain
    from template.localnet.chain.substrate import open_substrate

    header = file.header
    with Chain(network, header.netuid, substrate=open_substrate(network)) as asked:
        try:
            report.inconsistencies += check_against_chain(header, asked.block_hash)
        except RemoteError as error:
            report.unanswered.append(str(error))


def draw_sample(jobs: Sequence[Job], count: int, seed: int) -> list[Job]:
    """That many of the jobs, in their order; the same for the same files and seed."""
    at = random.Random(seed).sample(range(len(jobs)), min(count, len(jobs)))
    return [jobs[index] for index in sorted(at)]


def replay(auditor: Auditor, job: Job) -> Outcome:
    """What became of one receipt."""
    try:
        comparison = auditor.replay(job.receipt)
        verdict: str = comparison.verdict
        difference, reasons = comparison.difference, comparison.reasons
    except SubmissionError as error:
        verdict, difference, reasons = GONE, None, (str(error),)
    except RemoteError as error:
        verdict, difference, reasons = NO_ANSWER, None, (str(error),)
    submission, recorded = job.receipt.submission, job.receipt.result
    return Outcome(
        path=job.path,
        line=job.line,
        hotkey=submission.hotkey if submission else "",
        dataset=f"{submission.repo}@{submission.commit}" if submission else "a local file",
        lucky_num=recorded.lucky_num,
        loss=recorded.loss,
        verdict=verdict,
        difference=difference,
        reasons=reasons,
    )


def describe_file(report: FileReport) -> str:
    """A file for a person: its title, and a line for everything that is to be said of it."""
    kinds = {
        "signature": report.bad_signatures,
        "inconsistent": report.inconsistencies,
        "no answer": report.unanswered,
        "note": report.notes,
    }
    lines = [f"  {kind}: {escape(text)}" for kind, texts in kinds.items() for text in texts]
    title = escape(f"{report.path.name}: {report.title or 'not read'}")
    return "\n".join([title, *(lines or ["  consistent"])])


def describe_outcome(outcome: Outcome) -> str:
    """A receipt for a person, in one line."""
    verdict = outcome.verdict
    if verdict == ReplayVerdict.DIFFERENT:
        verdict = "differs" if outcome.difference is None else f"differs by {outcome.difference:+.3g}"
    why = f" ({'; '.join(outcome.reasons)})" if outcome.reasons else ""
    where = f"{outcome.path.name} line {outcome.line}, {outcome.hotkey}, {outcome.dataset}, loss {outcome.loss!r}"
    return escape(f"{verdict}{why}: {where}")


def summarize(reports: Collection[FileReport], outcomes: Sequence[Outcome]) -> str:
    """Everything in one line."""
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    counted = ", ".join(f"{verdicts[verdict]} {word}" for verdict, word in _WORDS.items() if verdicts[verdict])
    signatures = sum(len(report.bad_signatures) for report in reports)
    wrong = sum(len(report.inconsistencies) for report in reports)
    return (
        f"{len(reports)} files: {signatures} bad signatures, {wrong} inconsistencies; "
        f"{len(outcomes)} receipts scored again: {counted or 'none'}"
    )


def exit_status(reports: Collection[FileReport], outcomes: Sequence[Outcome]) -> int:
    """The status of the worst that was found."""
    verdicts = {outcome.verdict for outcome in outcomes}
    if any(report.bad_signatures for report in reports):
        return 9
    if ReplayVerdict.DIFFERENT in verdicts or any(report.inconsistencies for report in reports):
        return 7
    if NO_ANSWER in verdicts or any(report.unanswered for report in reports):
        return 5
    return 8 if verdicts - {ReplayVerdict.IDENTICAL} else 0


if __name__ == "__main__":
    sys.exit(main())
