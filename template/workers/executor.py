"""The inputs of an evaluation, and the interface of executors.

torch is imported lazily: the validator's own process never evaluates, so it never loads it.
"""

import dataclasses
import gc
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol
from urllib.parse import unquote_to_bytes

from pydantic import PlainValidator

from template.competition import Competition
from template.config import TrainingArgs
from template.constants import LOSS_VERSIONS
from template.errors import SubnetError
from template.records import Progress, RunningEvaluation, SubmissionKey, TrainResult

if TYPE_CHECKING:
    from template.train import RunOptions
    from template.training.row_features import RowFeatures

QuotedPath = Annotated[Path, PlainValidator(lambda text: Path(os.fsdecode(unquote_to_bytes(text))))]
"""Path that `template.workers.messages` sends percent-encoded, since its bytes need not be UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """All inputs of an evaluation but dataset and seed."""

    competition: Competition
    training_args: TrainingArgs
    eval_data_dir: QuotedPath
    cache_dir: QuotedPath | None = None
    model_path: QuotedPath | None = None  # None for the Hub
    device: str | None = None  # None for the best, as with dtype
    dtype: str | None = None

    def evaluate(
        self, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None] | None = None
    ) -> TrainResult:
        """Fine-tune on `data_dir/data.jsonl`, measure the loss; as `train_lora`."""
        options = self._options(on_progress)
        from template.train import train_and_evaluate

        with self._shown_download():
            return train_and_evaluate(
                lucky_num,
                self.competition.bench,
                self.competition.rows,
                cache_dir=self.cache_dir,
                data_dir=data_dir,
                eval_data_dir=self.eval_data_dir,
                options=options,
            )

    def gradient_features(
        self, content: bytes, lucky_num: int, on_progress: Callable[[Progress], None] | None = None
    ) -> "RowFeatures":
        """Return the features of a pool's rows; as `compute_gradient_features`."""
        options = self._options(on_progress)
        from template.train import compute_gradient_features

        with self._shown_download():
            return compute_gradient_features(content, lucky_num, self.cache_dir, options)

    def load_model(self) -> str:
        """Load the model and return its name: all that makes losses comparable."""
        options = self._options(None)
        from template.train import load_resident_model
        from template.training.environment import machine_fingerprint

        with self._shown_download():
            model = load_resident_model(options, self.cache_dir)
        dtype = str(model.dtype).removeprefix("torch.")
        source = f"{model.source.model_id}@{model.source.revision or model.source.digest}"
        machine = machine_fingerprint(model.device, model.dtype)
        return f"{source} {model.device.type} {dtype} score {LOSS_VERSIONS[model.device.type]} on {machine}"

    def with_pinned_revision(self, model: str) -> "Evaluator":
        """Return an evaluator pinned to the commit in a name of `load_model`."""
        if self.model_path is not None:
            return self
        revision = model.removeprefix(f"{self.training_args.model_id}@").split()[0]
        return dataclasses.replace(self, training_args=dataclasses.replace(self.training_args, revision=revision))

    def _shown_download(self) -> AbstractContextManager[None]:
        """Show the model's download in the block, if there is one."""
        from template.hub.model_progress import show_model_download

        if self.model_path is not None:
            return nullcontext()
        return show_model_download(self.training_args.model_id, self.training_args.revision, self.cache_dir)

    def _options(self, on_progress: Callable[[Progress], None] | None) -> "RunOptions":
        import_libraries()
        from template.hub.client import configure_client
        from template.train import RunOptions

        # transformers may download the model, and sets no timeouts of its own.
        configure_client()
        options = RunOptions(
            training_args=self.training_args, model_path=self.model_path, device=self.device, dtype=self.dtype
        )
        return options if on_progress is None else dataclasses.replace(options, on_progress=on_progress)


def import_libraries() -> None:
    """Import torch, transformers and peft without garbage collection, and exempt their objects from it.

    They live as long as the process. Collecting during the imports, and once more at the exit, takes two seconds.
    """
    if "template.train" in sys.modules:
        return
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        import template.train  # noqa: F401
    finally:
        if was_collecting:
            gc.enable()
    gc.freeze()


@dataclass(frozen=True, kw_only=True)
class CompletedJob:
    """End of a job: a result, or an error that names the device if it failed."""

    key: SubmissionKey
    result: TrainResult | None
    error: SubnetError | None


class Executor(Protocol):
    """Workers with one evaluation each, for one thread. No method waits for a result."""

    @property
    def training_args(self) -> TrainingArgs:
        """Hyperparameters of every evaluation."""

    def start(self) -> str | None:
        """Start missing workers; return the model's name once one has loaded it.

        Raises each failure once, and tries again later: a ConfigError when the operator has to act, a RemoteError or
        HostError when all workers failed to load the model.
        """

    def idle_workers(self) -> int:
        """Return how many workers would accept a job."""

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        """Start to evaluate `data_dir/data.jsonl`. Raises: RuntimeError if all are busy."""

    def collect(self) -> list[CompletedJob]:
        """Return newly completed jobs and enforce timeouts, so call it often."""

    def running(self) -> tuple[RunningEvaluation, ...]:
        """Return the running jobs, as the last `collect` or `start` saw them."""

    def tokens_per_s(self) -> float | None:
        """Return the training speed of the last evaluation, None before the first."""

    def wait(self, timeout_s: float) -> None:
        """Wait for a completed job or a worker's change, at most `timeout_s`."""

    def close(self) -> None:
        """Kill every worker; its job is lost. May be called again."""
