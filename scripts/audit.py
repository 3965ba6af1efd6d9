"""Audits a validator's round files: signatures, arithmetic, replayed losses.

    python scripts/audit.py round-96-4321000-5Ef1ucvE.jsonl
    python scripts/audit.py rounds/ --sample 3
    python scripts/audit.py rounds/ --sample 3 --subtensor.network finney

Needs no wallet. Prints the faults of each file, then a line for each replayed receipt: identical, differs by how much,
not comparable and why, or cannot be fetched and why. Replays only receipts of the competition, model and
hyperparameters named here. The result goes to stdout, progress and logs to stderr. Exit status, the first that applies:
9 a signature is missing, false or of another signer; 7 a loss differs, or a file is damaged or contradicts itself, the
rules or the chain; 5 the Hub or the chain did not answer, so audit again; 8 a receipt is not comparable or its dataset
is gone; 0 everything is identical; 2 or 3 the command line or another setting is wrong; 4 this machine failed.
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
from typing import Any, NamedTuple

from template import cli
from template.config import load_competition, load_training_args
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

# Verdicts on receipts whose dataset or model cannot be downloaded, for ever or at present.
GONE = "cannot be fetched"
NO_ANSWER = "cannot be fetched now"

_COUNTED = {
    ReplayVerdict.IDENTICAL: "identical",
    ReplayVerdict.DIFFERENT: "different",
    ReplayVerdict.NOT_COMPARABLE: "not comparable",
    GONE: "gone",
    NO_ANSWER: "to be retried",
}


@dataclass(kw_only=True)
class FileReport:
    """Findings about one file. unanswered: questions to the chain that failed."""

    path: Path
    title: str = ""
    bad_signatures: list[str] = field(default_factory=list)
    inconsistencies: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Outcome = dict[str, Any]
"""One replayed receipt as in --json. verdict: a `ReplayVerdict`, GONE or NO_ANSWER."""


class Job(NamedTuple):
    """A receipt to replay, at this line of the file."""

    path: Path
    line: int
    receipt: Receipt


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("audit", __doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE_OR_DIR", help="round files, or folders of them")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sample", type=int, metavar="N", help="replay N receipts drawn from all files")
    which.add_argument("--all", action="store_true", help="replay every receipt (the default)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the sample (default: drawn, and printed)")
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    cli.add_replay_arguments(parser)
    network_help = "check block hashes with this chain: finney, test, a wss:// url, or sim:PATH"
    parser.add_argument("--subtensor.network", dest="network", help=network_help)
    parser.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object at the end")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Audit, print, and return the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.sample is not None and args.sample < 0:
        parser.error(f"--sample must not be negative, not {args.sample}")
    return cli.run_main(parser, argv, audit)


def audit(args: argparse.Namespace) -> int:
    """Check every file, then replay receipts with a valid signature."""
    context = cli.make_replay_context(args)
    auditor = Auditor(context, load_competition(args.competition), load_training_args(args.training_args))
    rounds, reports = read_files(find_files(args.files))
    jobs = check_files(rounds, reports, args.network)
    seed = int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed
    sample = jobs if args.sample is None else draw_sample(jobs, args.sample, seed)
    show: Callable[[str], None] = (lambda _: None) if args.is_json else (lambda line: print(line, flush=True))
    for report in reports.values():
        show(describe_file(report))
    if len(sample) < len(jobs):
        show(f"replaying {len(sample)} of {len(jobs)} receipts: --sample {args.sample} --seed {seed}")
    outcomes = []
    for job in sample:
        outcomes.append(replay(auditor, job))
        show(describe_outcome(outcomes[-1]))
    status = exit_status(reports.values(), outcomes)
    show(summarize(reports.values(), outcomes))
    if args.is_json:
        files = [{**asdict(report), "path": str(report.path)} for report in reports.values()]
        counts = {"receipts": len(jobs), "seed": seed}
        print(json.dumps({"files": files, **counts, "replayed": outcomes, "status": status}))
    return status


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Return files, and the round files in folders, once. Raises: ConfigError."""
    files: list[Path] = []
    for path in (path.expanduser() for path in paths):
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
        in_path = sorted(path.glob("round-*.jsonl")) if path.is_dir() else [path]
        if not in_path:
            raise ConfigError(f"{path}: no round file, round-*.jsonl, in this folder")
        files += in_path
    return list(dict.fromkeys(files))


def read_files(paths: Sequence[Path]) -> tuple[dict[Path, RoundFile], dict[Path, FileReport]]:
    """Read the files that can be read, and start a report for every file."""
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
    """Report faults that need no training; return receipts with valid signatures."""
    from template.chain.client import verify_signature

    receipts = {receipt.digest: receipt for file in rounds.values() for receipt in file.receipts}
    contradictions = check_across_files({str(path): file.header for path, file in rounds.items()})
    jobs = []
    for path, file in rounds.items():
        report = reports[path]
        header_fault, receipt_faults = check_signatures(file, verify_signature)
        if header_fault is not None:
            report.bad_signatures.append(f"the header: {header_fault}")
        report.bad_signatures += [f"line {index + 2}: {fault}" for index, fault in receipt_faults.items()]
        report.inconsistencies += [*check_consistency(file, receipts), *contradictions[str(path)]]
        report.notes += remarks(file, receipts)
        if network is not None:
            check_chain(report, file, network)
        if header_fault is None:
            numbered = enumerate(file.receipts)
            jobs += [Job(path, index + 2, receipt) for index, receipt in numbered if index not in receipt_faults]
    return jobs


def check_chain(report: FileReport, file: RoundFile, network: str) -> None:
    """Report contradictions with the chain's block hashes, or that it did not answer."""
    from template.chain.client import Chain
    from template.localnet.chain.substrate import open_substrate

    with Chain(network, file.header.netuid, substrate=open_substrate(network)) as chain:
        try:
            report.inconsistencies += check_against_chain(file.header, chain.block_hash)
        except RemoteError as error:
            report.unanswered.append(str(error))


def draw_sample(jobs: Sequence[Job], count: int, seed: int) -> list[Job]:
    """Draw jobs and keep their order; the same for the same files and seed."""
    indices = random.Random(seed).sample(range(len(jobs)), min(count, len(jobs)))
    return [jobs[index] for index in sorted(indices)]


def replay(auditor: Auditor, job: Job) -> Outcome:
    submission, recorded = job.receipt.submission, job.receipt.result
    outcome: Outcome = {
        "path": str(job.path),
        "line": job.line,
        "hotkey": submission.hotkey if submission else "",
        "dataset": f"{submission.repo}@{submission.commit}" if submission else "a local file",
        "lucky_num": recorded.lucky_num,
        "loss": recorded.loss,
    }
    try:
        return {**outcome, **asdict(auditor.replay(job.receipt))}
    except (SubmissionError, RemoteError) as error:
        verdict = GONE if isinstance(error, SubmissionError) else NO_ANSWER
        return {**outcome, "verdict": verdict, "difference": None, "reasons": (str(error),)}


def describe_file(report: FileReport) -> str:
    """Format a file's title and a line for each finding."""
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
    """Format a replayed receipt in one line."""
    verdict, difference = outcome["verdict"], outcome["difference"]
    if verdict == ReplayVerdict.DIFFERENT:
        verdict = "differs" if difference is None else f"differs by {difference:+.3g}"
    reasons = f" ({'; '.join(outcome['reasons'])})" if outcome["reasons"] else ""
    place = f"{Path(outcome['path']).name} line {outcome['line']}, {outcome['hotkey']}, {outcome['dataset']}"
    return escape(f"{verdict}{reasons}: {place}, loss {outcome['loss']!r}")


def summarize(reports: Collection[FileReport], outcomes: Sequence[Outcome]) -> str:
    """Count everything in one line."""
    verdicts = Counter(outcome["verdict"] for outcome in outcomes)
    counted = ", ".join(f"{verdicts[verdict]} {word}" for verdict, word in _COUNTED.items() if verdicts[verdict])
    signatures = sum(len(report.bad_signatures) for report in reports)
    faults = sum(len(report.inconsistencies) for report in reports)
    return (
        f"{len(reports)} files: {signatures} bad signatures, {faults} inconsistencies; "
        f"{len(outcomes)} receipts replayed: {counted or 'none'}"
    )


def exit_status(reports: Collection[FileReport], outcomes: Sequence[Outcome]) -> int:
    """Return the exit status of the worst finding."""
    verdicts = {outcome["verdict"] for outcome in outcomes}
    if any(report.bad_signatures for report in reports):
        return 9
    if ReplayVerdict.DIFFERENT in verdicts or any(report.inconsistencies for report in reports):
        return 7
    if NO_ANSWER in verdicts or any(report.unanswered for report in reports):
        return 5
    return 8 if verdicts - {ReplayVerdict.IDENTICAL} else 0


if __name__ == "__main__":
    sys.exit(main())
