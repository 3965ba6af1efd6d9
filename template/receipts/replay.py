"""Replay evaluations from receipts, for `compute_loss --verify` and `audit`."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from template import files
from template.competition import CommitmentRecord, Competition, is_commit
from template.config import Hyperparameters, TrainingArgs
from template.constants import DATA_FILE
from template.errors import ConfigError, Reason, SubmissionError
from template.receipts.receipt import Receipt, ReplayComparison, ReplayVerdict, compare_receipt
from template.records import Dataset, TrainResult
from template.rules.entries import MISSING
from template.terminal import progress_bar
from template.workers.executor import Evaluator

if TYPE_CHECKING:
    from template.data.eval_set import EvalSetIndex

# The Hub's client is imported inside functions: at import it reads an environment that entry points set up first.

_DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class ReplayContext:
    """This machine's choices for evaluations that are not published.

    work_dir: where evaluation sets are downloaded to, unless eval_data_dir has one. model_path: a folder with the
    model, None for the Hub. dtype: None for the receipt's, or the best of the device.
    """

    work_dir: Path
    eval_data_dir: Path | None = None
    cache_dir: Path | None = None
    model_path: Path | None = None
    device: str | None = None
    dtype: str | None = None
    token: str | None = field(default=None, repr=False)

    def evaluator(self, competition: Competition, training_args: TrainingArgs, dtype: str | None = None) -> Evaluator:
        """Return an evaluator; downloads the evaluation set if it is missing.

        dtype: used unless the context has one. Raises: see `template.hub.datasets.fetch_eval_set`.
        """
        eval_data_dir = self.eval_data_dir
        if eval_data_dir is None:
            from template.hub.datasets import fetch_eval_set

            folder = files.check_folder(self.work_dir / competition.digest[:12], "--work_dir")
            eval_data_dir = fetch_eval_set(competition, folder, None, self.token).parent
        return Evaluator(
            competition=competition,
            training_args=training_args,
            eval_data_dir=eval_data_dir,
            cache_dir=self.cache_dir,
            model_path=self.model_path,
            device=self.device,
            dtype=self.dtype or dtype,
        )

    def replay_evaluator(self, receipt: Receipt, source: str) -> Evaluator:
        """Return an evaluator by a receipt from `source`. Raises: ConfigError naming it."""
        recorded = receipt.result
        try:
            hyperparameters = Hyperparameters(**recorded.hyperparameters)  # type: ignore[arg-type]
        except TypeError as error:
            raise ConfigError(f"{source}: result.hyperparameters: {error}") from error
        training_args = TrainingArgs(
            model_id=recorded.model_id, revision=recorded.model_revision, hyperparameters=hyperparameters
        )
        if recorded.model_revision is None and self.model_path is None:
            raise ConfigError(f"{source}: the model was a local folder; pass it with --model_path")
        return self.evaluator(receipt.competition, training_args, recorded.environment.get("dtype"))

    @contextmanager
    def downloaded(self, repo: str, revision: str, hotkey: str | None = None) -> Iterator[Path]:
        """Download a dataset into a temporary folder.

        hotkey: for a digest that is bound to it. The token is used only for repos that cannot be read without one.
        """
        from template.hub.datasets import download_dataset

        with files.temporary_folder() as folder:
            try:
                download_dataset(repo, revision, folder, hotkey=hotkey)
            except SubmissionError as error:
                if self.token is None or error.reason not in MISSING:
                    raise
                download_dataset(repo, revision, folder, hotkey=hotkey, token=self.token)
            yield folder


def evaluate_once(evaluator: Evaluator, data_dir: Path, lucky_num: int) -> TrainResult:
    """Evaluate under a progress bar. Raises: see `Evaluator.evaluate`."""
    with progress_bar() as on_progress:
        return evaluator.evaluate(data_dir, lucky_num, on_progress)


def check_signature(receipt: Receipt) -> tuple[bool, str]:
    """Return whether the receipt's signature is bad, and its state in words."""
    if receipt.signer is None or receipt.signature is None:
        return False, "none"
    from template.chain.client import verify_signature

    if verify_signature(receipt.signer, receipt.message(), receipt.signature):
        return False, f"valid, by {receipt.signer}"
    return True, f"NOT VALID for {receipt.signer}"


class Auditor:
    """Replays of receipts of one competition, model and set of hyperparameters.

    Others are not replayed: a stranger's receipt could ask for any amount of work.
    """

    def __init__(self, context: ReplayContext, competition: Competition, training_args: TrainingArgs) -> None:
        self._context = context
        self._competition = competition
        self._training_args = training_args
        self._eval_set: EvalSetIndex | None = None

    def read_dataset(self, record: CommitmentRecord) -> Dataset:
        """Download and check a dataset of the competition.

        Raises: SubmissionError, RemoteError, HostError.
        """
        index = self._read_eval_set(self._context.evaluator(self._competition, self._training_args))
        with self._context.downloaded(record.namespace, record.commit, record.hotkey) as folder:
            content = (folder / DATA_FILE).read_bytes()
        return index.check(content, name=DATA_FILE, max_rows=self._competition.rows)

    def replay(self, receipt: Receipt, digest: str | None = None) -> ReplayComparison:
        """Evaluate the receipt's dataset again and compare.

        DIFFERENT also when the dataset is not the recorded file, one that validators must reject, or one of other
        counted rows than `digest`.
        Raises: SubmissionError when it is no longer on the Hub; RemoteError; HostError; ConfigError for the context.
        """
        recorded, submission = receipt.result, receipt.submission
        if submission is None:
            return compare_without_loss(ReplayVerdict.NOT_COMPARABLE, "receipt of a local file")
        model_path = self._context.model_path
        if (mismatch := find_mismatch(receipt, self._competition, self._training_args, model_path)) is not None:
            return compare_without_loss(ReplayVerdict.NOT_COMPARABLE, mismatch)
        evaluator = self._context.replay_evaluator(receipt, "the receipt")
        with self._context.downloaded(submission.repo, submission.commit, submission.hotkey) as folder:
            content = (folder / DATA_FILE).read_bytes()
            if (sha256 := hashlib.sha256(content).hexdigest()) != recorded.train_sha256:
                reason = f"sha256 {sha256} of {submission.repo} at {submission.commit}"
                return compare_without_loss(
                    ReplayVerdict.DIFFERENT, f"{reason}, {recorded.train_sha256} in the receipt"
                )
            try:
                index, max_rows = self._read_eval_set(evaluator), self._competition.rows
                dataset = index.check(content, name=DATA_FILE, max_rows=max_rows)
                if digest not in (None, dataset.digest):
                    reason = f"the counted rows have the digest {dataset.digest}, {digest} in the file"
                    return compare_without_loss(ReplayVerdict.DIFFERENT, reason)
                return compare_receipt(receipt, evaluate_once(evaluator, folder, recorded.lucky_num))
            except SubmissionError as error:
                # Divergence may depend on the machine; the content of a file does not.
                verdict = ReplayVerdict.NOT_COMPARABLE if error.reason is Reason.DIVERGED else ReplayVerdict.DIFFERENT
                return compare_without_loss(verdict, f"evaluation fails here ({error.reason}): {error}")

    def _read_eval_set(self, evaluator: Evaluator) -> "EvalSetIndex":
        from template.data.eval_set import read_eval_set_index

        if self._eval_set is None:
            self._eval_set = read_eval_set_index(evaluator.eval_data_dir / DATA_FILE)
        return self._eval_set


def find_mismatch(
    receipt: Receipt, competition: Competition, expected: TrainingArgs, model_path: Path | None
) -> str | None:
    """Return why a receipt has another competition, model or training arguments.

    None for a receipt that can be compared.
    """
    recorded = receipt.result
    revision = recorded.model_revision
    if receipt.competition != competition:
        return "receipt of another competition; name it with --competition"
    if recorded.model_id != expected.model_id:
        return f"model {recorded.model_id}, not {expected.model_id}; name it with --training_args"
    # Anyone may propose weights for a public model on the Hub, and a proposal has a commit as well.
    if revision is not None and not (is_commit(revision) and expected.revision in (None, revision)):
        return f"model revision {revision} is not the one of --training_args"
    if dict(recorded.hyperparameters) != expected.hyperparameters.to_dict():
        return "receipt of other hyperparameters; name them with --training_args"
    if revision is None and model_path is None:
        return "the model was a local folder; pass it with --model_path"
    if recorded.environment.get("dtype") not in _DTYPES or not 0 <= recorded.lucky_num < 2**32:
        return "invalid dtype or lucky_num"
    return None


def compare_without_loss(verdict: ReplayVerdict, reason: str) -> ReplayComparison:
    """Return the comparison of a receipt that was not replayed."""
    return ReplayComparison(verdict=verdict, difference=None, reasons=(reason,))
