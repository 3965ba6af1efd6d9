"""Scores a dataset offline, exactly as a validator does.

    python scripts/compute_loss.py --dataset_path data.jsonl
    python scripts/compute_loss.py --hf_repo_id me/my-dataset --revision COMMIT --lucky_num 7
    python scripts/compute_loss.py --verify receipt.json

Needs neither wallet nor chain. The result goes to stdout, progress and logs to stderr. Exit status: 0 scored or
identical, 2 or 3 the command line or another setting is wrong, 4 this machine failed, 5 the Hub did not answer, 6 a
validator would refuse the dataset, 7 the replay differs from the receipt, 8 they are not comparable, 9 the receipt's
signature is not valid.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from template import cli, constants
from template.competition import Competition
from template.errors import ConfigError
from template.receipt import Receipt, Replay, compare
from template.receipt_files import read_receipt, write_receipt
from template.records import Progress, TrainResult
from template.settings import Hyperparameters, TrainingArgs
from template.standing import score_of
from template.workers import Scorer

_REPLAY_STATUS = {Replay.IDENTICAL: 0, Replay.DIFFERENT: 7, Replay.NOT_COMPARABLE: 8}
_BAD_SIGNATURE_STATUS = 9


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="compute_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    dataset = parser.add_argument_group("dataset")
    dataset.add_argument("--dataset_path", type=Path, metavar="FILE_OR_DIR", help="a file, or a folder with data.jsonl")
    dataset.add_argument("--hf_repo_id", help="dataset repo on the Hub, with --revision")
    dataset.add_argument("--revision", metavar="COMMIT", help="the full commit of --hf_repo_id")
    dataset.add_argument(
        "--verify", type=Path, metavar="RECEIPT", help="score what the receipt names again and compare"
    )
    dataset.add_argument("--eval_data_dir", type=Path, help="evaluation set (default: the competition's, downloaded)")
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=cli.DEFAULT_STATE_DIR / "offline",
        help="where a downloaded evaluation set is kept (default: %(default)s)",
    )
    parser.add_argument("--cache_dir", type=Path, help="downloaded models (default: the Hub client's own)")
    parser.add_argument("--lucky_num", type=int, help="the seed (default: drawn from the system, as a validator does)")
    parser.add_argument(
        "--repeats", type=int, default=1, metavar="K", help="scores under K seeds (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="refuse what a validator would: rows not from the pool")
    parser.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object")
    parser.add_argument("--receipt_dir", type=Path, help="write a receipt of every score here")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Scores or verifies and prints; returns the exit status."""
    parser = build_parser()
    check_arguments(parser, parser.parse_args(argv))
    return cli.run_main(parser, argv, lambda args: verify(args) if args.verify else score(args))


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the process with status 2 and a line on stderr when arguments do not go together."""
    unused = ("competition", "training_args", "lucky_num", "check")
    if args.verify and (given := [name for name in unused if getattr(args, name)] + ["repeats"] * (args.repeats > 1)):
        parser.error(f"--{given[0]} does not go with --verify: the receipt says what is scored")
    if not args.verify and bool(args.dataset_path) == bool(args.hf_repo_id):
        parser.error("expected --dataset_path, or --hf_repo_id with --revision, or --verify")
    if bool(args.hf_repo_id) != bool(args.revision):
        parser.error("--hf_repo_id and --revision go together")
    if args.repeats < 1:
        parser.error(f"--repeats must be positive, not {args.repeats}")
    if args.lucky_num is not None and not 0 <= args.lucky_num < 2**32:
        parser.error(f"--lucky_num must lie in [0, 2**32), not {args.lucky_num}")


def score(args: argparse.Namespace) -> int:
    """Scores the dataset under one or more seeds and prints the result."""
    competition = cli.read_competition(args)
    scorer = cli.make_scorer(args, competition, get_eval_dir(args, competition), args.cache_dir)
    with dataset_folder(args, args.hf_repo_id, args.revision) as data_dir:
        if args.check:
            check(data_dir, scorer)
        results = [score_once(scorer, data_dir, lucky_num) for lucky_num in choose_seeds(args)]
    receipts = [Receipt(competition=competition, submission=None, result=result) for result in results]
    if args.receipt_dir:
        for receipt in receipts:
            write_receipt(receipt, args.receipt_dir)
    print(describe_json(results, competition) if args.is_json else describe(results, competition))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Scores a receipt's inputs again and prints how the two compare."""
    receipt = read_receipt(args.verify)
    has_bad_signature, signature = check_signature(receipt)
    scorer = replay_scorer(args, receipt)
    submission = receipt.submission
    if submission is None and not (args.dataset_path or args.hf_repo_id):
        raise ConfigError(f"{args.verify}: the receipt is of a local file; give it with --dataset_path")
    repo = args.hf_repo_id or (submission.repo if submission else None)
    revision = args.revision or (submission.commit if submission else None)
    with dataset_folder(args, repo, revision) as data_dir:
        result = score_once(scorer, data_dir, receipt.result.lucky_num)
    comparison = compare(receipt, result)
    if args.is_json:
        replay = {"verdict": comparison.verdict, "difference": comparison.difference, "reasons": comparison.reasons}
        print(json.dumps({"recorded": receipt.result.loss, "replayed": result.loss, "signature": signature, **replay}))
    else:
        print(f"recorded   {receipt.result.loss!r}\nreplayed   {result.loss!r}\nsignature  {signature}")
        for reason in comparison.reasons:
            print(f"note       {reason}")
        gap = f" by {comparison.difference:+.3g}" if comparison.difference else ""
        print(f"{comparison.verdict.upper()}{gap}")
    return _BAD_SIGNATURE_STATUS if has_bad_signature else _REPLAY_STATUS[comparison.verdict]


def replay_scorer(args: argparse.Namespace, receipt: Receipt) -> Scorer:
    """A scorer for the receipt's own model, hyperparameters and dtype, whatever this repository's are now."""
    recorded = receipt.result
    try:
        hyperparameters = Hyperparameters(**recorded.hyperparameters)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"{args.verify}: result.hyperparameters: {error}") from error
    training_args = TrainingArgs(
        model_id=recorded.model_id, revision=recorded.model_revision, hyperparameters=hyperparameters
    )
    if recorded.model_digest and not args.model_path:
        raise ConfigError(f"{args.verify}: the model was a local folder; give it with --model_path")
    return Scorer(
        competition=receipt.competition,
        training_args=training_args,
        eval_data_dir=get_eval_dir(args, receipt.competition),
        cache_dir=args.cache_dir,
        model_path=args.model_path.expanduser().resolve() if args.model_path else None,
        device=args.device,
        dtype=args.dtype or recorded.environment.get("dtype"),
    )


def check_signature(receipt: Receipt) -> tuple[bool, str]:
    """Whether the signature is bad, and what to say of it."""
    if receipt.signer is None or receipt.signature is None:
        return False, "none"
    from template.chain import verify_signature

    if verify_signature(receipt.signer, receipt.message(), receipt.signature):
        return False, f"valid, by {receipt.signer}"
    return True, f"NOT VALID for {receipt.signer}"


def get_eval_dir(args: argparse.Namespace, competition: Competition) -> Path:
    """The folder of the evaluation set: the one given, else one that is filled from the Hub when it is not yet."""
    if args.eval_data_dir:
        return Path(args.eval_data_dir).expanduser()
    from template.pool import fetch_eval_set

    folder = cli.check_folder(args.work_dir / competition.digest[:12], "--work_dir")
    return fetch_eval_set(competition, folder, None, cli.hub_token()).parent


@contextmanager
def dataset_folder(args: argparse.Namespace, repo: str | None, revision: str | None) -> Iterator[Path]:
    """A folder whose data.jsonl is the dataset: the one given, or a copy or download that is removed afterwards."""
    path = args.dataset_path.expanduser() if args.dataset_path else None
    if path is not None and path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if path is not None:
            try:
                shutil.copyfile(path, folder / constants.DATA_FILE)
            except OSError as error:
                raise ConfigError(f"--dataset_path {path}: cannot be read: {error.strerror or error}") from error
        elif repo is not None and revision is not None:
            from template.hub import download_dataset

            download_dataset(repo, revision, folder, token=cli.hub_token())
        yield folder


def check(data_dir: Path, scorer: Scorer) -> None:
    """Raises: SubmissionError when a validator would refuse the file for anything but being a copy."""
    from template.pool import check_dataset, read_pool

    pool = read_pool(scorer.eval_data_dir / constants.DATA_FILE)
    path = data_dir / constants.DATA_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    check_dataset(content, pool, name=constants.DATA_FILE, max_rows=scorer.competition.rows)


def choose_seeds(args: argparse.Namespace) -> list[int]:
    """--repeats seeds: counted up from --lucky_num, or each drawn from the system."""
    if args.lucky_num is not None:
        return [(args.lucky_num + at) % 2**32 for at in range(args.repeats)]
    return [int.from_bytes(os.urandom(4), "little") for _ in range(args.repeats)]


def score_once(scorer: Scorer, data_dir: Path, lucky_num: int) -> TrainResult:
    """One score under a progress bar on stderr, which a terminal alone gets to see."""
    with progress_bar() as on_progress:
        return scorer.score(data_dir, lucky_num, on_progress)


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar with the remaining time, one for each stage."""
    bars: dict[str, tqdm[NoReturn]] = {}

    def show(progress: Progress) -> None:
        if progress.stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[progress.stage] = tqdm(total=progress.total, desc=progress.stage, unit="tok", disable=None)
        bars[progress.stage].update(progress.done - bars[progress.stage].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def describe(results: Sequence[TrainResult], competition: Competition) -> str:
    """The result for a person."""
    losses = [result.loss for result in results]
    lines = [f"loss {result.loss!r} lucky_num {result.lucky_num}" for result in results] if len(results) > 1 else []
    mean = statistics.fmean(losses)
    first = results[0]
    lines.append(f"{'mean loss' if lines else 'loss'}   {mean!r}")
    if len(losses) > 1:
        lines.append(f"spread   {statistics.stdev(losses):.6f} (standard deviation over {len(losses)} seeds)")
    else:
        lines.append(f"seed     {first.lucky_num}")
    lines.append(f"score    {score_of(mean, competition):.6f} of 1")
    gap = competition.bench - mean
    lines.append(f"bench    {competition.bench}: this is {abs(gap):.6f} {'better' if gap >= 0 else 'worse'}")
    lines.append(f"rows     {first.train_rows} trained on, {first.eval_rows} evaluated on")
    return "\n".join(lines)


def describe_json(results: Sequence[TrainResult], competition: Competition) -> str:
    """The result for a program, in one line."""
    losses = [result.loss for result in results]
    mean = statistics.fmean(losses)
    first = results[0]
    return json.dumps(
        {
            "loss": mean,
            "losses": losses,
            "lucky_nums": [result.lucky_num for result in results],
            "spread": statistics.stdev(losses) if len(losses) > 1 else None,
            "score": score_of(mean, competition),
            "bench": competition.bench,
            "competition": competition.to_dict(),
            "train_sha256": first.train_sha256,
            "eval_sha256": first.eval_sha256,
            "model": f"{first.model_id}@{first.model_revision or first.model_digest}",
            "hyperparameters_digest": first.hyperparameters_digest,
            "environment": dict(first.environment),
            "seconds": [result.train_seconds + result.eval_seconds for result in results],
        }
    )


if __name__ == "__main__":
    sys.exit(main())
