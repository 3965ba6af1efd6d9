"""Check a validator's round files, weights on chain and losses.

    python scripts/audit.py round-96-4321000-5Ef1ucvE-0c5d1a.jsonl
    python scripts/audit.py rounds/ --sample 3
    python scripts/audit.py rounds/ --sample 3 --subtensor.network finney
    python scripts/audit.py --from HOTKEY --netuid 96 --subtensor.network finney

--from takes a dataset repo of the Hub, or a validator's hotkey, whose repo it finds on chain. Checks signatures,
arithmetic and ranks, and replays losses. Needs no wallet. Prints the findings of each file, then a line for each
replayed receipt: identical, differs by how much, not comparable and why, or cannot be fetched and why. Replays only
receipts of the competition, model and hyperparameters named here. The result goes to stdout, progress and logs to
stderr. Exit status, the first that applies:
9 a signature is missing, false or of another signer; 7 a loss differs, or a file is damaged or contradicts itself;
11 weights on chain are not the file's; 12 weights submitted again are no earlier ones; 13 a refusal is false; 14 a
receipt is in no file; 15 a seed is of another block or source; 16 the entries are not the chain's; 17 a rank does not
follow from the chain; 18 an evaluation is not in the plan; 19 a mean does not follow from its evaluations; 20 the rules
are not the competition's; 21 a copy is paid; 5 the Hub or the chain did not answer, so audit again; 8 a receipt is not
comparable or its dataset is gone; 0 everything is identical; 2 or 3 the command line or another setting is wrong; 4
this machine failed.
"""

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from template import cli
from template.arguments import Parser
from template.competition import Competition, Incentives
from template.config import load_competition, load_incentives, load_training_args
from template.console import BAD, FAINT, GOOD, OPEN, is_terminal, make_grid, show
from template.errors import ConfigError, RemoteError, SubmissionError
from template.receipts.checks import CachedChain, FileReport, check_signers
from template.receipts.files import read_round
from template.receipts.findings import Kind, worst_status
from template.receipts.receipt import Receipt, ReplayVerdict
from template.receipts.refusals import RefusalCheck, commitments_in
from template.receipts.replay import Auditor
from template.receipts.round_file import RoundFile
from template.receipts.sources import RoundSource, is_hotkey, open_source
from template.receipts.verify import check_across_files, check_consistency, check_signatures, remarks
from template.terminal import Countdown, escape, print_result

if TYPE_CHECKING:
    from template.chain.client import Chain

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
_STYLES = {ReplayVerdict.IDENTICAL: GOOD, ReplayVerdict.DIFFERENT: BAD}


Outcome = dict[str, Any]
"""One replayed receipt as in --json. verdict: a `ReplayVerdict`, GONE or NO_ANSWER."""


class Job(NamedTuple):
    """A receipt to replay, and its line in the file.

    digest: of the dataset's counted rows.
    """

    path: Path
    line: int
    receipt: Receipt
    digest: str | None


def build_parser() -> Parser:
    checks = (cli.check_competition, cli.check_score_arguments, lambda args: cli.hub_token())
    parser = cli.make_parser("audit", __doc__, checks=checks)
    parser.add_argument("files", nargs="*", metavar="FILE_OR_DIR", help="round files, or folders of them")
    from_help = "a dataset repo (owner/name) or a validator's hotkey, which needs --netuid and --subtensor.network"
    parser.add_argument("--from", dest="sources", action="append", default=[], metavar="SOURCE", help=from_help)
    parser.add_argument("--netuid", type=int, help="the subnet's number, for the hotkey of --from")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sample", type=int, metavar="N", help="replay N receipts drawn from all files")
    which.add_argument("--all", action="store_true", help="replay every receipt (the default)")
    copies_help = "also download every dataset of the tables, and find copies that are paid"
    parser.add_argument("--copies", action="store_true", help=copies_help)
    parser.add_argument("--seed", type=int, metavar="S", help="of the sample (default: drawn, and printed)")
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    cli.add_replay_arguments(parser)
    network_help = "compare with this chain: finney, test, or a ws:// or wss:// url"
    archive_help = "for blocks that the network's nodes have pruned (default: the client's public ones)"
    parser.add_argument("--subtensor.network", dest="network", help=network_help)
    parser.add_argument("--subtensor.archive_endpoints", dest="archives", metavar="URL[,URL...]", help=archive_help)
    parser.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object at the end")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Audit, print, and return the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.sample is not None and args.sample < 0:
        parser.error(f"--sample must not be negative, not {args.sample}")
    if not args.files and not args.sources:
        parser.error("expected round files, folders of them, or --from")
    return cli.run_main(parser, argv, audit)


def audit(args: argparse.Namespace) -> int:
    """Check every file, then replay receipts with a valid signature."""
    context = cli.make_replay_context(args)
    competition, incentives = load_competition(args.competition), load_incentives(args.competition)
    auditor = Auditor(context, competition, load_training_args(args.training_args))
    with ExitStack() as stack:
        sources = [open_round_source(args, source, stack, context.token) for source in [*args.files, *args.sources]]
    rounds, reports = read_files(dict.fromkeys(path for source in sources for path in source.paths))
    for source in sources:
        report_signers(source, rounds, reports)
    sound, jobs = check_files(rounds, reports)
    with ExitStack() as stack:
        netuids = {file.header.netuid for file in rounds.values()} if args.network else set()
        chains = {netuid: open_chain(args, netuid, stack) for netuid in netuids}
        check_histories(sound, reports, auditor, competition, incentives, chains, finds_copies=args.copies)
    seed = int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed
    sample = jobs if args.sample is None else draw_sample(jobs, args.sample, seed)
    report_lines: Callable[..., None] = (lambda *_, **__: None) if args.is_json else print_lines
    for report in reports.values():
        report_lines(file_title(report), file_lines(report))
    if len(sample) < len(jobs):
        report_lines(f"replaying {len(sample)} of {len(jobs)} receipts: --sample {args.sample} --seed {seed}")
    outcomes, countdown = [], Countdown("replayed", len(sample))
    for job in sample:
        outcomes.append(replay(auditor, job))
        report_lines(describe_outcome(outcomes[-1]), style=_STYLES.get(outcomes[-1]["verdict"], OPEN))
        countdown.advance()
    status = exit_status(reports.values(), outcomes)
    report_lines(summarize(reports.values(), outcomes), style=BAD if status else GOOD)
    if args.is_json:
        files = [
            {
                **vars(report),
                "path": str(report.path),
                "findings": [{"kind": kind.name.lower(), "text": text} for kind, text in report.findings],
            }
            for report in reports.values()
        ]
        counts = {"receipts": len(jobs), "seed": seed}
        print_result(json.dumps({"files": files, **counts, "replayed": outcomes, "status": status}))
    return status


def open_round_source(args: argparse.Namespace, source: str, stack: ExitStack, token: str | None) -> RoundSource:
    """Find the round files of a path, repo or hotkey. Raises: ConfigError, RemoteError."""
    find = None
    if is_hotkey(source) and args.network and args.netuid:
        find = open_client(args, args.netuid, stack).commitment
    return open_source(source, args.work_dir, token=token, find_commitment=find)


def report_signers(source: RoundSource, rounds: Mapping[Path, RoundFile], reports: Mapping[Path, FileReport]) -> None:
    """Report files that are not of the hotkey that was named."""
    for path in source.paths:
        fault = source.wrong_signer(rounds[path].header) if path in rounds else None
        reports[path].add(Kind.SIGNATURE, [] if fault is None else [fault])


def read_files(paths: Iterable[Path]) -> tuple[dict[Path, RoundFile], dict[Path, FileReport]]:
    """Read the files that can be read, and start a report for every file."""
    rounds, reports = {}, {}
    for path in paths:
        report = reports[path] = FileReport(path=path)
        try:
            file = rounds[path] = read_round(path)
        except ConfigError as error:
            report.add(Kind.INCONSISTENT, [f"damaged: {str(error).removeprefix(f'{path}: ')}"])
            continue
        header = file.header
        report.title = (
            f"netuid {header.netuid}, blocks {header.start_block} to {header.end_block}, by "
            f"{header.signer or 'nobody'}, {len(header.table)} in the table, {len(file.receipts)} receipts"
        )
    return rounds, reports


def check_files(
    rounds: Mapping[Path, RoundFile], reports: Mapping[Path, FileReport]
) -> tuple[dict[Path, RoundFile], list[Job]]:
    """Report bad signatures and contradictions; return valid headers' files and receipts."""
    from template.chain.client import verify_signature

    receipts = {receipt.digest: receipt for file in rounds.values() for receipt in file.receipts}
    contradictions = check_across_files({str(path): file.header for path, file in rounds.items()})
    sound: dict[Path, RoundFile] = {}
    jobs: list[Job] = []
    for path, file in rounds.items():
        report = reports[path]
        header_fault, receipt_faults = check_signatures(file, verify_signature)
        if header_fault is not None:
            report.add(Kind.SIGNATURE, [f"the header: {header_fault}"])
        report.add(Kind.SIGNATURE, [f"line {index + 2}: {fault}" for index, fault in receipt_faults.items()])
        report.add(Kind.INCONSISTENT, [*check_consistency(file, receipts), *contradictions[str(path)]])
        report.notes += remarks(file)
        if header_fault is None:
            sound[path] = file
            digests = {line.receipt: line.digest for line in file.header.evaluations}
            jobs += [
                Job(path, index + 2, receipt, digests.get(receipt.digest))
                for index, receipt in enumerate(file.receipts)
                if index not in receipt_faults
            ]
    return sound, jobs


def check_histories(
    sound: Mapping[Path, RoundFile],
    reports: Mapping[Path, FileReport],
    auditor: Auditor,
    competition: Competition,
    incentives: Incentives,
    chains: Mapping[int, CachedChain],
    *,
    finds_copies: bool,
) -> None:
    """Compare files of valid header with the signer's others, the chain and the Hub."""
    receipts = {receipt.digest: receipt for file in sound.values() for receipt in file.receipts}
    commitments = commitments_in(sound.values())
    refusals = {
        netuid: RefusalCheck(auditor.read_dataset, commitments, chains.get(netuid), finds_copies=finds_copies)
        for netuid in {file.header.netuid for file in sound.values()}
    }
    check_signers(sound, reports, receipts, competition, incentives, chains, refusals)


def open_chain(args: argparse.Namespace, netuid: int, stack: ExitStack) -> CachedChain:
    """Connect to a subnet until the stack ends. Raises: ConfigError."""
    return CachedChain(open_client(args, netuid, stack))


def open_client(args: argparse.Namespace, netuid: int, stack: ExitStack) -> "Chain":
    from template.chain.client import Chain

    archives = [url.strip() for url in args.archives.split(",")] if args.archives else []
    return stack.enter_context(Chain(args.network, netuid, archive_endpoints=archives))


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
        return {**outcome, **asdict(auditor.replay(job.receipt, job.digest))}
    except (SubmissionError, RemoteError) as error:
        verdict = GONE if isinstance(error, SubmissionError) else NO_ANSWER
        return {**outcome, "verdict": verdict, "difference": None, "reasons": (str(error),)}


def print_lines(title: str, lines: Sequence[tuple[str, str, str]] = (), *, style: str = "") -> None:
    """Print a title, and label and text of each line: with their styles on a terminal, plain elsewhere."""
    if is_terminal():
        show(Text(title, style=style or "bold"), *([make_grid(lines)] if lines else []))
        return
    texts = (f"  {label}: {escape(text)}" if label else f"  {text}" for label, text, _ in lines)
    print_result("\n".join([title, *texts]))


def file_title(report: FileReport) -> str:
    return escape(f"{report.path.name}: {report.title or 'not read'}")


def file_lines(report: FileReport) -> list[tuple[str, str, str]]:
    """Return label, text and style of each finding."""
    lines = [(finding.kind.name.lower(), finding.text, BAD) for finding in report.findings]
    lines += [("no answer", text, OPEN) for text in report.unanswered]
    lines += [("note", text, FAINT) for text in report.notes]
    return lines or [("", "consistent", GOOD)]


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
    kinds = Counter(finding.kind for report in reports for finding in report.findings)
    named = ", ".join(f"{kinds[kind]} {kind.name.lower()}" for kind in Kind if kinds[kind])
    return f"{len(reports)} files: {named or 'no findings'}; {len(outcomes)} receipts replayed: {counted or 'none'}"


def exit_status(reports: Collection[FileReport], outcomes: Sequence[Outcome]) -> int:
    """Return the exit status of the worst finding."""
    verdicts = {outcome["verdict"] for outcome in outcomes}
    kinds = {finding.kind for report in reports for finding in report.findings}
    if ReplayVerdict.DIFFERENT in verdicts:
        kinds.add(Kind.INCONSISTENT)
    if kinds:
        return worst_status(kinds)
    if NO_ANSWER in verdicts or any(report.unanswered for report in reports):
        return 5
    return 8 if verdicts - {ReplayVerdict.IDENTICAL} else 0


if __name__ == "__main__":
    sys.exit(main())
