"""Executors that return losses without training."""

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from template.config import Hyperparameters, TrainingArgs
from template.constants import DATA_FILE
from template.records import RunningEvaluation, SubmissionKey, TrainResult
from template.workers.executor import CompletedJob
from tests.campaigns.synthetic_subnet import COMPETITION

HYPERPARAMETERS = Hyperparameters(
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    num_train_epochs=1,
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.1,
)
MODEL_ID = "Qwen/Qwen2.5-0.5B-Instruct"
MODEL = f"{MODEL_ID}@{'0' * 40} cpu float32"
_STEPS = 94


def make_result(key: SubmissionKey, *, loss: float) -> TrainResult:
    """Return a result with this loss, as large as a worker's."""
    return TrainResult(
        loss=loss,
        benchmark_loss=COMPETITION.bench,
        lucky_num=1,
        model_id=MODEL_ID,
        model_revision="0" * 40,
        model_digest=None,
        hyperparameters=HYPERPARAMETERS.to_dict(),
        hyperparameters_digest=HYPERPARAMETERS.digest,
        train_sha256=hashlib.sha256(key.commitment.encode()).hexdigest(),
        train_rows=COMPETITION.rows,
        train_tokens=75_000,
        eval_sha256="1" * 64,
        eval_rows=1_000,
        eval_skipped_rows=0,
        eval_tokens=300_000,
        step_losses=tuple(3.0 - number / _STEPS for number in range(_STEPS)),
        environment={"device": "cpu", "dtype": "float32", "threads": "1"},
        load_seconds=0.0,
        train_seconds=1.0,
        eval_seconds=1.0,
    )


class FakeExecutor:
    """An `Executor` of one worker; `loss_of` gives the loss of a data file."""

    training_args = TrainingArgs(model_id=MODEL_ID, revision=None, hyperparameters=HYPERPARAMETERS)

    def __init__(self, loss_of: Callable[[Path], float], *, seconds: float = 0.0) -> None:
        self.completed = 0
        self._loss_of = loss_of
        self._seconds = seconds
        self._job: tuple[RunningEvaluation, Path, int] | None = None
        self._ends_at = 0.0
        self._never = threading.Event()

    def start(self) -> str | None:
        return MODEL

    def idle_workers(self) -> int:
        return int(self._job is None)

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        assert self._job is None, "the worker is busy"
        running = RunningEvaluation(key=key, device="fake", started_at=time.time(), stage="train")
        self._job, self._ends_at = (running, data_dir, lucky_num), time.monotonic() + self._seconds

    def collect(self) -> list[CompletedJob]:
        if self._job is None or time.monotonic() < self._ends_at:
            return []
        (running, data_dir, lucky_num), self._job = self._job, None
        with (data_dir / DATA_FILE).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        result = make_result(running.key, loss=self._loss_of(data_dir / DATA_FILE))
        result = dataclasses.replace(result, train_sha256=sha256, lucky_num=lucky_num)
        self.completed += 1
        return [CompletedJob(key=running.key, result=result, error=None)]

    def running(self) -> tuple[RunningEvaluation, ...]:
        return () if self._job is None else (self._job[0],)

    def tokens_per_s(self) -> float | None:
        return None

    def wait(self, timeout_s: float) -> None:
        left_s = timeout_s if self._job is None else min(timeout_s, self._ends_at - time.monotonic())
        self._never.wait(max(left_s, 0.0))

    def close(self) -> None:
        pass
