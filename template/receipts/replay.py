"""Scoring again what a receipt names: what `compute_loss --verify` and `audit` share.

A receipt's dataset is fetched as a validator fetches it, without a token; only what that cannot read is asked for
again with the user's own.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from template import files
from template.competition import Competition, is_commit
from template.config import Hyperparameters, TrainingArgs
from template.constants import DATA_FILE
from template.errors import ConfigError, Reason, SubmissionError
from template.receipts.receipt import Receipt, ReplayComparison, ReplayVerdict, compare_receipt
from template.records import TrainResult
from template.terminal import progress_bar
from template.workers.executor import Evaluator

if TYPE_CHECKING:
    from template.data.eval_set import EvalSetIndex

# The Hub's client is imported where it is used: it reads the environment then, which an entry point sets first.

_DTYPES = ("bfloat16", "float32")
_HIDDEN = (Reason.MISSING_REPO, Reason.MISSING_FILE)


@dataclass(frozen=True, kw_only=True)
class ReplayContext:
    """This machine's choices for scores that nobody publishes.

    work_dir: where downloaded evaluation sets are kept. eval_data_dir: the one to use instead. model_path: a folder
    with the model's weights, None for the Hub. device, dtype: None for the best here, or a receipt's own dtype.
    """

    work_dir: Path
    eval_data_dir: Path | None = None
    cache_dir: Path | None = None
    model_path: Path | None = None
    device: str | None = None
    dtype: str | None = None
    token: str | None = field(default=None, repr=False)

    def eval_dir(self, competition: Competition) -> Path:
        """The folder of the evaluation set: the one given, else one that is filled from the Hub when it is not yet.

        Raises: as `template.hub.datasets.fetch_eval_set`.
        """
        if self.eval_data_dir is not None:
            return self.eval_data_dir
        from template.hub.datasets import fetch_eval_set

        folder = files.check_folder(self.work_dir / competition.digest[:12], "--work_dir")
        return fetch_eval_set(competition, folder, None, self.token).parent

    def evaluator(self, competition: Competition, training_args: TrainingArgs, dtype: str | None = None) -> Evaluator:
        """What scores in this competition; dtype: the one to use where the desk names none."""
        return Evaluator(
            competition=competition,
            training_args=training_args,
            eval_data_dir=self.eval_dir(competition),
            cache_dir=self.cache_dir,
            model_path=self.model_path,
            device=self.device,
            dtype=self.dtype or dtype,
        )

    def replay_evaluator(self, receipt: Receipt, source: str) -> Evaluator:
        """What scores with the receipt's own model, hyperparameters and dtype, whatever this repository's are now.

        Raises: ConfigError naming `source` when the receipt's are none; as `eval_dir`.
        """
        recorded = receipt.result
        try:
            hyperparameters = Hyperparameters(**recorded.hyperparameters)  # type: ignore[arg-type]
        except TypeError as error:
            raise ConfigError(f"{source}: result.hyperparameters: {error}") from error
        training_args = TrainingArgs(
            model_id=recorded.model_id, revision=recorded.model_revision, hyperparameters=hyperparameters
        )
        if recorded.model_revision is None and self.model_path is None:
            raise ConfigError(f"{source}: the model was a local folder; give it with --model_path")
        return self.evaluator(receipt.competition, training_args, recorded.environment.get("dtype"))

    @contextmanager
    def fetched(self, repo: str, revision: str) -> Iterator[Path]:
        """A folder with the dataset of `repo` at `revision`, removed afterwards.

        Raises: SubmissionError when it is not to be had; RemoteError; ConfigError for an id that is none.
        """
        from template.hub.datasets import download_dataset

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            try:
                download_dataset(repo, revision, folder)
            except SubmissionError as error:
                if self.token is None or error.reason not in _HIDDEN:
                    raise
                download_dataset(repo, revision, folder, token=self.token)
            yield folder


def evaluate_once(evaluator: Evaluator, data_dir: Path, lucky_num: int) -> TrainResult:
    """Evaluate a dataset under one seed, with a progress bar. Raises: see `Evaluator.evaluate`."""
    with progress_bar() as on_progress:
        return evaluator.evaluate(data_dir, lucky_num, on_progress)


def check_signature(receipt: Receipt) -> tuple[bool, str]:
    """Whether the signature is bad, and what to say of it."""
    if receipt.signer is None or receipt.signature is None:
        return False, "none"
    from template.chain.client import verify_signature

    if verify_signature(receipt.signer, receipt.message(), receipt.signature):
        return False, f"valid, by {receipt.signer}"
    return True, f"NOT VALID for {receipt.signer}"


class Auditor:
    """Replays a stranger's receipts in one competition: nothing but what the auditor named decides what is run.

    A receipt of another competition, model or hyperparameters is not replayed: it could ask for any work at all.
    """

    def __init__(self, context: ReplayContext, competition: Competition, training_args: TrainingArgs) -> None:
        self._context = context
        self._competition = competition
        self._training_args = training_args
        self._pool: EvalSetIndex | None = None

    def replay(self, receipt: Receipt) -> ReplayComparison:
        """Scores again what the receipt names and compares.

        DIFFERENT also when the dataset is not the file that was scored, or one that no validator may score.
        Raises: SubmissionError when it is no longer on the Hub; RemoteError; HostError; ConfigError for the desk.
        """
        from template.data.eval_set import check_dataset

        recorded, submission = receipt.result, receipt.submission
        if submission is None:
            return _verdict(ReplayVerdict.NOT_COMPARABLE, "it is of a local file")
        if (why := self._mismatch_reason(receipt)) is not None:
            return _verdict(ReplayVerdict.NOT_COMPARABLE, why)
        evaluator = self._context.replay_evaluator(receipt, "the receipt")
        with self._context.fetched(submission.repo, submission.commit) as folder:
            content = (folder / DATA_FILE).read_bytes()
            if (sha256 := hashlib.sha256(content).hexdigest()) != recorded.train_sha256:
                reason = f"{submission.repo} at {submission.commit} has the sha256 {sha256}"
                return _verdict(ReplayVerdict.DIFFERENT, f"{reason}, and what was scored {recorded.train_sha256}")
            try:
                check_dataset(content, self._read_pool(evaluator), name=DATA_FILE, max_rows=self._competition.rows)
                return compare_receipt(receipt, evaluate_once(evaluator, folder, recorded.lucky_num))
            except SubmissionError as error:
                # Whether training diverges may hang on the machine; what a file holds does not.
                verdict = ReplayVerdict.NOT_COMPARABLE if error.reason is Reason.DIVERGED else ReplayVerdict.DIFFERENT
                return _verdict(verdict, f"it cannot be scored here ({error.reason}): {error}")

    def _mismatch_reason(self, receipt: Receipt) -> str | None:
        """Why the receipt is not of what this auditor replays, None when it is."""
        recorded, wanted = receipt.result, self._training_args
        if receipt.competition != self._competition:
            return "it is of another competition than the one to audit; name that one with --competition"
        if recorded.model_id != wanted.model_id:
            return f"its model is {recorded.model_id}, not {wanted.model_id}; name that one with --training_args"
        if recorded.model_revision is not None and not _is_revision_of(recorded.model_revision, wanted):
            # Anyone may propose weights for a public model, and what is proposed has a commit as well.
            return f"its model is of the revision {recorded.model_revision}, which --training_args does not name"
        if dict(recorded.hyperparameters) != wanted.hyperparameters.to_dict():
            return "its hyperparameters are others than those to audit; name those with --training_args"
        if recorded.model_revision is None and self._context.model_path is None:
            return "its model was a local folder; give that with --model_path"
        if recorded.environment.get("dtype") not in _DTYPES or not 0 <= recorded.lucky_num < 2**32:
            return "its dtype or lucky_num is none"
        return None

    def _read_pool(self, evaluator: Evaluator) -> "EvalSetIndex":
        from template.data.eval_set import read_eval_set_index

        if self._pool is None:
            self._pool = read_eval_set_index(evaluator.eval_data_dir / DATA_FILE)
        return self._pool


def _is_revision_of(revision: str, wanted: TrainingArgs) -> bool:
    """True for the commit that `wanted` pins, and for any commit where it pins none."""
    return is_commit(revision) and wanted.revision in (None, revision)


def _verdict(verdict: ReplayVerdict, reason: str) -> ReplayComparison:
    return ReplayComparison(verdict=verdict, difference=None, reasons=(reason,))
