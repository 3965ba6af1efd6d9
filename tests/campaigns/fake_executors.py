"""An executor that returns losses without training, as slowly as a real one."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from template.config import Hyperparameters, TrainingArgs
from template.constants import DATA_FILE
from template.records import Progress, SubmissionKey, TrainResult
from template.workers.executor import CompletedJob
from tests.campaigns.synthetic_subnet import COMPETITION
from tests.fixtures import fakes
from tests.fixtures.results import fake_result

HYPERPARAMETERS = Hyperparameters(
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    num_train_epochs=1,
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.1,
)
MODEL_ID = "Qwen/Qwen2.5-0.5B-Instruct"
MODEL = f"{MODEL_ID}@{'0' * 64} none float32"
_STEPS = 94


@dataclass(frozen=True, kw_only=True)
class _Evaluator(fakes.FakeEvaluator):
    loss_of: Callable[[Path], float]

    def evaluate(
        self, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None] | None = None
    ) -> TrainResult:
        with (data_dir / DATA_FILE).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return self.make_result(sha256, lucky_num, self.loss_of(data_dir / DATA_FILE))

    def make_result(self, sha256: str, lucky_num: int, loss: float) -> TrainResult:
        """Return a result as large as a worker's."""
        result = fake_result(self, sha256, rows=COMPETITION.rows, lucky_num=lucky_num)
        return replace(result, loss=loss, step_losses=tuple(3.0 - number / _STEPS for number in range(_STEPS)))


def _make_evaluator(loss_of: Callable[[Path], float]) -> _Evaluator:
    training_args = TrainingArgs(model_id=MODEL_ID, revision=None, hyperparameters=HYPERPARAMETERS)
    return _Evaluator(competition=COMPETITION, training_args=training_args, eval_data_dir=Path(), loss_of=loss_of)


def make_result(key: SubmissionKey, *, loss: float) -> TrainResult:
    """Return the result of a dataset whose bytes are the commitment."""
    sha256 = hashlib.sha256(key.commitment.encode()).hexdigest()
    return _make_evaluator(lambda _: loss).make_result(sha256, 1, loss)


class FakeExecutor(fakes.FakeExecutor):
    """An `Executor` of one worker; `loss_of` gives the loss of a data file."""

    def __init__(self, loss_of: Callable[[Path], float], *, seconds: float = 0.0) -> None:
        super().__init__(_make_evaluator(loss_of))
        self.completed = 0
        self._seconds, self._ends_at = seconds, 0.0

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        super().submit(key, data_dir, lucky_num)
        self._ends_at = time.monotonic() + self._seconds

    def collect(self) -> list[CompletedJob]:
        self.hold = time.monotonic() < self._ends_at
        jobs = super().collect()
        self.completed += len(jobs)
        return jobs

    def wait(self, timeout_s: float) -> None:
        left_s = min(timeout_s, self._ends_at - time.monotonic()) if self.running() else timeout_s
        time.sleep(max(left_s, 0.0))
