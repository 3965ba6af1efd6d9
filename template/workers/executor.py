"""Where scores run. The one call of `train_and_evaluate` that validator and offline script share stands here.

A score loads torch; everything else of the validator does not, so the import is made when the first score is. What a
validator hands its scores to is an `Executor`: processes of this machine, see `template.workers.supervisor`, or others.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from template.competition import Competition
from template.config import TrainingArgs
from template.constants import LOSS_VERSION
from template.errors import SubnetError
from template.records import Progress, RunningEvaluation, SubmissionKey, TrainResult

if TYPE_CHECKING:
    from template.train import RunOptions


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """The competition and the machine's choices: all that a score needs beyond the dataset and the seed.

    model_path: a local folder with the model's weights, None for the Hub. device, dtype: None for the best here.
    """

    competition: Competition
    training_args: TrainingArgs
    eval_data_dir: Path
    cache_dir: Path | None = None
    model_path: Path | None = None
    device: str | None = None
    dtype: str | None = None

    def evaluate(
        self, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None] | None = None
    ) -> TrainResult:
        """The score of `data_dir/data.jsonl`. Raises: as `template.train.train_and_evaluate`."""
        from template.train import train_and_evaluate

        return train_and_evaluate(
            lucky_num,
            self.competition.bench,
            self.competition.rows,
            cache_dir=self.cache_dir,
            data_dir=data_dir,
            eval_data_dir=self.eval_data_dir,
            options=self._options(on_progress),
        )

    def load_model(self) -> str:
        """Loads the model and names it: Hub commit or folder digest, kind of device, dtype, version of the score, and
        a digest of what else of this machine moves the number.

        Losses under different names are not compared.

        Raises: as `template.train.train_and_evaluate` does for the model.
        """
        from template.train import load_resident_model
        from template.training.environment import machine_fingerprint

        held = load_resident_model(self._options(None), self.cache_dir)
        dtype = str(held.dtype).removeprefix("torch.")
        source = f"{held.source.model_id}@{held.source.revision or held.source.digest}"
        machine = machine_fingerprint(held.device, held.dtype)
        return f"{source} {held.device.type} {dtype} score {LOSS_VERSION} on {machine}"

    def with_pinned_revision(self, model: str) -> "Evaluator":
        """This scorer for exactly the model that `load_model` named, whatever becomes of the branch it was found at."""
        if self.model_path is not None:
            return self
        revision = model.removeprefix(f"{self.training_args.model_id}@").split()[0]
        return dataclasses.replace(self, training_args=dataclasses.replace(self.training_args, revision=revision))

    def _options(self, on_progress: Callable[[Progress], None] | None) -> "RunOptions":
        from template.hub import datasets
        from template.train import RunOptions

        # The model may come from the Hub, by another library, which knows no time-outs of its own.
        datasets.configure_client()
        chosen = RunOptions(
            training_args=self.training_args, model_path=self.model_path, device=self.device, dtype=self.dtype
        )
        return chosen if on_progress is None else dataclasses.replace(chosen, on_progress=on_progress)


@dataclass(frozen=True, kw_only=True)
class CompletedJob:
    """The end of one job: exactly one of result and error.

    error: SubmissionError is a verdict. HostError says what befell the worker and on which device: its death, a
    time-out, a CUDA fault, no memory. RemoteError and ConfigError are as `Evaluator.evaluate` raises them; a
    RemoteError is also that another machine went away, for which nobody is to blame.
    """

    key: SubmissionKey
    result: TrainResult | None
    error: SubnetError | None


class Executor(Protocol):
    """Workers that score, each one job at a time. No call waits for a score; none is safe beside another thread's."""

    @property
    def training_args(self) -> TrainingArgs:
        """What every score trains with."""

    def start(self) -> str | None:
        """Starts missing workers; the model's name as `Evaluator.load_model` has it, once a worker has it, else None.

        Raises: ConfigError when the operator has to act; RemoteError or HostError when no worker could load the model
        and none is still at it. Each failure is raised once; the next call tries again, after a rest that grows.
        """

    def idle_workers(self) -> int:
        """Workers that would take a job now."""

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        """Gives a free worker the dataset `data_dir/data.jsonl`. Raises: RuntimeError when there is none."""

    def collect(self) -> list[CompletedJob]:
        """The jobs that ended since the last call, those among them whose time was up; replaces lost workers.

        Call it often: a worker that hangs is noticed here.
        """

    def running(self) -> tuple[RunningEvaluation, ...]:
        """The jobs under way, as the last `collect` or `start` saw them."""

    def tokens_per_s(self) -> float | None:
        """Training speed of the last score, None before the first."""

    def wait(self, timeout_s: float) -> None:
        """Returns when a job ended or a worker's state changed, or else after `timeout_s`."""

    def close(self) -> None:
        """Ends every worker at once, whatever it is doing; nothing of its job is kept. May be called again."""
