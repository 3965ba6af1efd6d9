"""Compute a dataset's loss offline, exactly as a validator does.

    python scripts/compute_loss.py --dataset_path data.jsonl
    python scripts/compute_loss.py --hf_repo_id me/my-dataset --revision COMMIT --lucky_num 7
    python scripts/compute_loss.py --compare old.jsonl new.jsonl --repeats 5
    python scripts/compute_loss.py --as_validator --netuid 96 --hotkey ADDRESS
    python scripts/compute_loss.py --verify receipt.json
    python scripts/compute_loss.py --verify owner/rounds/round-96-360-5Ef1ucvE-0c5d1a.jsonl --receipt 3fa2c1d0

The loss is the one that validators pay by: the mean over the seeds, with a penalty for a large spread between them.

--compare evaluates two datasets under the same seeds and prints which is better, or how many more seeds would decide.
--as_validator evaluates the dataset that a hotkey has committed, under the seeds of the validators. It alone reads the
chain: also past blocks, for which --subtensor.archive_endpoints are used.

--verify replays a receipt of this competition and these training arguments. Others need --any_competition.

The result goes to stdout, progress and logs to stderr. Exit status: 0 evaluated, compared or identical, 2 or 3 the
command line or another setting is wrong, 4 this machine failed, 5 the Hub did not answer, 6 a validator would reject
the dataset, 7 the replay differs from the receipt, 8 they are not comparable, or the receipt is of another competition,
9 the receipt's signature is not valid.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from loguru import logger

from template import cli, constants, files
from template.arguments import Check, Parser
from template.competition import Competition, Incentives
from template.config import load_competition, load_incentives, load_training_args
from template.console import is_terminal, show
from template.errors import ConfigError, HostError, SubmissionError
from template.miner.committed import CommittedDataset, Reader, find_committed
from template.miner.compare import compare_paired
from template.miner.loss_report import (
    describe,
    describe_paired,
    describe_paired_json,
    loss_tables,
    paired_tables,
    summarize,
)
from template.receipts.files import read_receipt, write_receipt
from template.receipts.receipt import Receipt, ReplayComparison, ReplayVerdict, compare_receipt
from template.receipts.replay import (
    ReplayContext,
    check_signature,
    compare_without_loss,
    evaluate_once,
    find_mismatch,
)
from template.receipts.sources import read_published_receipt
from template.records import TrainResult
from template.terminal import Countdown, escape, print_result
from template.workers.executor import Evaluator

_REPLAY_STATUS = {ReplayVerdict.IDENTICAL: 0, ReplayVerdict.DIFFERENT: 7, ReplayVerdict.NOT_COMPARABLE: 8}
_BAD_SIGNATURE_STATUS = 9
_COMPARE_SEEDS = 5


def check_inputs(args: argparse.Namespace) -> None:
    """Check the file of --verify and the folder of --eval_data_dir. Raises: ConfigError."""
    if args.verify is not None and not args.receipt and not Path(args.verify).expanduser().is_file():
        raise ConfigError(f"--verify {args.verify}: there is no such file")
    if args.eval_data_dir is not None and not (args.eval_data_dir / constants.DATA_FILE).is_file():
        raise ConfigError(f"--eval_data_dir {args.eval_data_dir}: there is no {constants.DATA_FILE} in this folder")


def check_wallet(args: argparse.Namespace) -> None:
    """Check the wallet that --as_validator names. Raises: ConfigError."""
    if args.as_validator and cli.has_wallet(args):
        cli.check_wallet(cli.name_wallet(args))


def check_chain(args: argparse.Namespace) -> None:
    """Check the chain's flags for --as_validator. Raises: ConfigError."""
    if args.as_validator:
        cli.check_chain(args)


# Made before any work, so that one run names all that is missing.
CHECKS: tuple[Check, ...] = (
    lambda args: cli.check_dataset_file(args.dataset_path, "--dataset_path"),
    lambda args: cli.check_dataset_file((args.compare or [None])[0], "--compare"),
    lambda args: cli.check_dataset_file((args.compare or [None])[-1], "--compare"),
    check_inputs,
    check_wallet,
    check_chain,
    cli.check_competition,
    cli.check_score_arguments,
    lambda args: cli.hub_token(),
)


def build_parser() -> Parser:
    # --netuid is declared again: only --as_validator needs it.
    parser = cli.make_parser("compute_loss", __doc__, checks=CHECKS, conflict_handler="resolve")
    add = parser.add_argument_group("dataset").add_argument
    add("--dataset_path", type=Path, metavar="FILE_OR_DIR", help="a file, or a folder with data.jsonl")
    add("--hf_repo_id", help="dataset repo on the Hub, with --revision")
    add("--revision", metavar="COMMIT", help="the full commit of --hf_repo_id")
    add("--verify", metavar="RECEIPT", help="replay a receipt and compare; also from a round file, with --receipt")
    receipt_help = "with --verify FILE or owner/name/FILE: the receipt of this round file whose sha256 begins so"
    add("--receipt", metavar="DIGEST", help=receipt_help)
    any_help = "with --verify: also a receipt of another competition, model or hyperparameters"
    add("--any_competition", action="store_true", help=any_help)
    add("--compare", type=Path, nargs=2, metavar=("A", "B"), help="evaluate two files or folders under the same seeds")
    add("--as_validator", action="store_true", help="evaluate a hotkey's committed dataset under the validators' seeds")
    cli.add_reader_arguments(parser)
    parser.add_argument("--netuid", type=int, help="the subnet's number, for --as_validator")
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    cli.add_replay_arguments(parser)
    add = parser.add_argument
    add("--lucky_num", type=int, help="the seed (default: drawn from the system)")
    repeats_help = (
        f"number of seeds (default: 1, with --compare {_COMPARE_SEEDS}, with --as_validator all that it takes)"
    )
    add("--repeats", type=int, metavar="K", help=repeats_help)
    add("--check", action="store_true", help="reject rows outside the evaluation set, as a validator does")
    add("--json", dest="is_json", action="store_true", help="print one JSON object")
    add("--receipt_dir", type=Path, help="write a receipt of every evaluation here")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, compare or verify; print the result and return the exit status."""
    parser = build_parser()
    check_arguments(parser, parser.parse_args(argv))
    return cli.run_main(parser, argv, run)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with status 2 and a line on stderr when arguments exclude each other."""
    fixed = ("lucky_num", "check", "repeats", "receipt_dir")
    if args.verify and (given := [name for name in fixed if getattr(args, name) != parser.get_default(name)]):
        parser.error(f"--{given[0]} does not go with --verify: the receipt defines the evaluation")
    if (args.any_competition or args.receipt) and not args.verify:
        parser.error("--any_competition and --receipt go with --verify")
    if args.compare and (args.verify or args.dataset_path or args.hf_repo_id):
        parser.error("--compare names both datasets and excludes --dataset_path, --hf_repo_id and --verify")
    if args.as_validator:
        check_committed_arguments(parser, args)
    elif not (args.verify or args.compare) and bool(args.dataset_path) == bool(args.hf_repo_id):
        parser.error("expected --dataset_path, --hf_repo_id with --revision, --as_validator, --compare or --verify")
    if bool(args.hf_repo_id) != bool(args.revision):
        parser.error("--hf_repo_id and --revision go together")
    least = 2 if args.compare else 1
    if args.repeats is not None and args.repeats < least:
        parser.error(f"--repeats must be at least {least}, not {args.repeats}")
    if args.lucky_num is not None and not 0 <= args.lucky_num < 2**32:
        parser.error(f"--lucky_num must lie in [0, 2**32), not {args.lucky_num}")


def check_committed_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with status 2 unless the arguments name a hotkey, and no dataset or seed."""
    others = ("dataset_path", "hf_repo_id", "compare", "verify", "lucky_num")
    if given := [name for name in others if getattr(args, name) is not None]:
        parser.error(f"--{given[0]} does not go with --as_validator: dataset and seeds are those on chain")
    if args.netuid is None or bool(args.hotkey) == cli.has_wallet(args):
        parser.error("--as_validator needs --netuid, and either --hotkey or --wallet.*")


def run(args: argparse.Namespace) -> int:
    """Run the mode that the arguments name."""
    if args.receipt_dir and (problem := files.find_write_problem(args.receipt_dir)) is not None:
        logger.warning("--receipt_dir {}: {}; the result is printed without receipts", args.receipt_dir, problem)
    context = cli.make_replay_context(args)
    if args.verify:
        return verify(args, context)
    evaluator = context.evaluator(load_competition(args.competition), load_training_args(args.training_args))
    if args.as_validator:
        return evaluate_committed(args, evaluator)
    seeds = choose_seeds(args.lucky_num, args.repeats or (_COMPARE_SEEDS if args.compare else 1))
    return compare(args, evaluator, seeds) if args.compare else evaluate(args, context, evaluator, seeds)


def evaluate(args: argparse.Namespace, context: ReplayContext, evaluator: Evaluator, seeds: Sequence[int]) -> int:
    """Evaluate the dataset under each seed and print the result."""
    with dataset_folder(context, args.dataset_path, args.hf_repo_id, args.revision) as data_dir:
        if args.check:
            check(data_dir, evaluator)
        results = evaluate_each(evaluator, data_dir, seeds)
    report(args, evaluator.competition, load_incentives(args.competition), results)
    return 0


def evaluate_each(evaluator: Evaluator, data_dir: Path, seeds: Sequence[int]) -> list[TrainResult]:
    """Evaluate a dataset under each seed, and log how far it is."""
    countdown, results = Countdown("evaluated", len(seeds)), []
    for lucky_num in seeds:
        results.append(evaluate_once(evaluator, data_dir, lucky_num))
        countdown.advance()
    return results


def evaluate_committed(args: argparse.Namespace, evaluator: Evaluator) -> int:
    """Evaluate the dataset that a hotkey has committed under the validators' seeds."""
    from template.data.eval_set import read_eval_set_index

    incentives = load_incentives(args.competition)
    pool = read_eval_set_index(evaluator.eval_data_dir / constants.DATA_FILE)
    with files.temporary_folder() as folder:
        with cli.open_reader(args) as chain:
            hotkey = args.hotkey or chain.hotkey
            reader = Reader(chain, evaluator.competition, incentives, pool, folder)
            committed = find_committed(reader, hotkey, args.repeats or incentives.evaluations)
        logger.info("evaluating {} runs={}", committed.key.commitment, len(committed.seeds))
        results = evaluate_each(evaluator, committed.folder, committed.seeds)
    report(args, evaluator.competition, incentives, results, committed)
    return 0


def report(
    args: argparse.Namespace,
    competition: Competition,
    incentives: Incentives,
    results: Sequence[TrainResult],
    committed: CommittedDataset | None = None,
) -> None:
    """Print the result and write the receipts."""
    inputs = results, competition, incentives, committed
    if args.is_json:
        print_result(json.dumps(summarize(*inputs)))
    elif is_terminal():
        show(*loss_tables(*inputs))
    else:
        print_result(describe(*inputs))
    write_receipts(args.receipt_dir, competition, results)


def compare(args: argparse.Namespace, evaluator: Evaluator, seeds: Sequence[int]) -> int:
    """Evaluate two datasets under the same seeds and print the comparison."""
    results: tuple[list[TrainResult], list[TrainResult]] = ([], [])
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(local_folder(path, "--compare")) for path in args.compare]
        if args.check:
            for path, folder in zip(args.compare, folders, strict=True):
                with path_in_errors(path):
                    check(folder, evaluator)
        countdown = Countdown("evaluated", 2 * len(seeds))
        for lucky_num in seeds:
            for path, folder, side in zip(args.compare, folders, results, strict=True):
                with path_in_errors(path):
                    side.append(evaluate_once(evaluator, folder, lucky_num))
                countdown.advance()
    paired = compare_paired(*([result.loss for result in side] for side in results))
    if args.is_json:
        print_result(describe_paired_json(paired, results, args.compare))
    elif is_terminal():
        show(*paired_tables(paired, results, args.compare))
    else:
        print_result(describe_paired(paired, results, args.compare))
    write_receipts(args.receipt_dir, evaluator.competition, [*results[0], *results[1]])
    return 0


@contextmanager
def path_in_errors(path: Path) -> Iterator[None]:
    """Add the dataset's path to rejections."""
    try:
        yield
    except SubmissionError as error:
        raise SubmissionError(error.reason, f"{path}: {error}") from error


def verify(args: argparse.Namespace, context: ReplayContext) -> int:
    """Replay a receipt and print the comparison.

    A receipt of another competition, model or hyperparameters is refused.
    """
    if args.receipt:
        receipt = read_published_receipt(args.verify, args.receipt, context.work_dir, token=context.token)
    else:
        receipt = read_receipt(Path(args.verify).expanduser())
    has_bad_signature, signature = check_signature(receipt)
    competition, training_args = load_competition(args.competition), load_training_args(args.training_args)
    mismatch = None
    if not args.any_competition:
        mismatch = find_mismatch(receipt, competition, training_args, context.model_path)
    if mismatch is None:
        comparison, replayed = replay(args, context, receipt)
    else:
        text = f"{mismatch}; --any_competition replays it as it is"
        comparison, replayed = compare_without_loss(ReplayVerdict.NOT_COMPARABLE, text), None
    recorded = receipt.result.loss
    named = f"{receipt.competition.id} {receipt.competition.digest[:12]}"
    if args.is_json:
        content = {"recorded": recorded, "replayed": replayed, "competition": named, "signature": signature}
        print_result(json.dumps({**content, **dataclasses.asdict(comparison)}))
    else:
        gap = f" by {comparison.difference:+.3g}" if comparison.difference else ""
        lines = [
            f"competition  {escape(named)}, {escape(receipt.competition.repo)}@{receipt.competition.eval_commit}",
            f"recorded   {recorded!r}\nreplayed   {replayed!r}\nsignature  {escape(signature)}",
            *(f"note       {escape(reason)}" for reason in comparison.reasons),
            f"{comparison.verdict.upper()}{gap}",
        ]
        print_result("\n".join(lines))
    return _BAD_SIGNATURE_STATUS if has_bad_signature else _REPLAY_STATUS[comparison.verdict]


def replay(args: argparse.Namespace, context: ReplayContext, receipt: Receipt) -> tuple[ReplayComparison, float | None]:
    """Evaluate the receipt's dataset and compare; return the loss too.

    The rows of a submission must be in the evaluation set: a validator evaluates no others.
    """
    evaluator = context.replay_evaluator(receipt, args.verify)
    submission = receipt.submission
    if submission is None and not (args.dataset_path or args.hf_repo_id):
        raise ConfigError(f"{args.verify}: receipt of a local file; pass the file with --dataset_path")
    repo = args.hf_repo_id or (submission.repo if submission else None)
    revision = args.revision or (submission.commit if submission else None)
    hotkey = submission.hotkey if submission else None
    with dataset_folder(context, args.dataset_path, repo, revision, hotkey) as data_dir:
        result = evaluate_once(evaluator, data_dir, receipt.result.lucky_num)
        comparison = compare_receipt(receipt, result)
        if submission is not None and comparison.verdict is ReplayVerdict.IDENTICAL:
            try:
                check(data_dir, evaluator)
            except SubmissionError as error:
                reason = f"a validator must reject the dataset ({error.reason}): {error}"
                comparison = compare_without_loss(ReplayVerdict.DIFFERENT, reason)
    return comparison, result.loss


def dataset_folder(
    context: ReplayContext, path: Path | None, repo: str | None, revision: str | None, hotkey: str | None = None
) -> AbstractContextManager[Path]:
    """Open a folder with the dataset, local or downloaded for this evaluation."""
    if path is not None:
        return local_folder(path, "--dataset_path")
    assert repo is not None and revision is not None
    return context.downloaded(repo, revision, hotkey)


@contextmanager
def local_folder(path: Path, flag: str) -> Iterator[Path]:
    """Yield the folder at `path`, or one with a copy of the file. Raises: ConfigError."""
    if path.is_dir():
        yield path
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror or error}") from error
    with files.temporary_folder() as temporary:
        # A full disk here is no fault of the dataset.
        files.OutputFile(name=constants.DATA_FILE, content=content, mode=0o600).write(temporary)
        yield temporary


def write_receipts(folder: Path | None, competition: Competition, results: Sequence[TrainResult]) -> None:
    """Write an unsigned receipt of every result, if a folder is named."""
    if folder is None:
        return
    try:
        for result in results:
            write_receipt(Receipt(competition=competition, submission=None, result=result), folder)
    except HostError as error:
        logger.warning("--receipt_dir: not every receipt was written: {}", error)


def check(data_dir: Path, evaluator: Evaluator) -> None:
    """Check all but duplicates. Raises: SubmissionError."""
    from template.data.eval_set import check_dataset, read_eval_set_index

    eval_file = evaluator.eval_data_dir / constants.DATA_FILE
    pool = read_eval_set_index(eval_file)
    path = data_dir / constants.DATA_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    max_rows = evaluator.competition.rows
    check_dataset(content, pool, name=constants.DATA_FILE, max_rows=max_rows, eval_file=eval_file)


def choose_seeds(first: int | None, count: int) -> list[int]:
    """Count seeds up from the first, or draw them from the system."""
    if first is not None:
        return [(first + index) % 2**32 for index in range(count)]
    return [int.from_bytes(os.urandom(4), "little") for _ in range(count)]


if __name__ == "__main__":
    sys.exit(main())
