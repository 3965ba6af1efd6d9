"""Timeouts of an evaluation, derived from the speed of earlier ones. Pure."""

import dataclasses
from dataclasses import dataclass

from template.records import Progress, TrainResult

# Weight of a faster evaluation in the kept speed; a slower one replaces it.
_DECAY = 0.1


@dataclass(frozen=True, kw_only=True)
class WorkerTimeouts:
    """Seconds until a worker is replaced, and until it is started again."""

    stall_s: float = 900.0  # without progress
    load_s: float = 1800.0  # to load the model, which may first be downloaded
    stage_least_s: float = 60.0  # of a stage, or stage_slack times the expected time
    stage_slack: float = 5.0
    restart_first_s: float = 5.0  # backoff, doubled with each failure in a row
    restart_most_s: float = 600.0

    def restart_pause_s(self, failures: int) -> float:
        """Return the backoff after so many failures in a row."""
        return min(self.restart_first_s * 2.0 ** min(failures - 1, 30), self.restart_most_s) if failures else 0.0


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Seconds per token of training and of evaluation; None before the first result."""

    train: float | None = None
    evaluate: float | None = None

    def updated(self, result: TrainResult) -> "Throughput":
        """Return the throughput after a result: a slowly decaying maximum."""
        return Throughput(
            train=_slowest(self.train, result.train_seconds, trained_tokens(result)),
            evaluate=_slowest(self.evaluate, result.eval_seconds, result.eval_tokens),
        )

    def relaxed(self) -> "Throughput":
        """Return half the speed, after a timeout: the machine may have become slow."""
        return Throughput(
            train=None if self.train is None else 2 * self.train,
            evaluate=None if self.evaluate is None else 2 * self.evaluate,
        )

    def limit_s(self, progress: Progress, timeouts: WorkerTimeouts) -> float | None:
        """Return the limit for the stage of `progress`, None before the first result."""
        per_token = {"train": self.train, "evaluate": self.evaluate}.get(progress.stage)
        if per_token is None:
            return None
        return max(timeouts.stage_least_s, timeouts.stage_slack * per_token * progress.total)


def trained_tokens(result: TrainResult) -> int:
    """Return the tokens of all epochs."""
    return int(result.train_tokens * result.hyperparameters.get("num_train_epochs", 1))


def tokens_per_s(result: TrainResult) -> float | None:
    """Return the training speed, None for a result without measurable time."""
    return trained_tokens(result) / result.train_seconds if result.train_seconds > 0 else None


def _slowest(previous: float | None, seconds: float, tokens: int) -> float | None:
    if tokens <= 0:
        return previous
    measured = seconds / tokens
    return measured if previous is None else max(measured, previous + _DECAY * (measured - previous))


@dataclass(frozen=True, kw_only=True)
class StageTimer:
    """Progress of a job, and when its stage began and last advanced."""

    progress: Progress
    began_at: float
    advanced_at: float

    @classmethod
    def begin(cls, now: float) -> "StageTimer":
        """Return the timer of a new job."""
        return cls(progress=Progress(stage="load", done=0, total=0), began_at=now, advanced_at=now)

    def advanced(self, progress: Progress, now: float) -> "StageTimer":
        """Return the timer after progress; a replayed stage begins again."""
        is_same_stage = progress.stage == self.progress.stage and progress.done >= self.progress.done
        return dataclasses.replace(
            self, progress=progress, began_at=self.began_at if is_same_stage else now, advanced_at=now
        )

    def timeout_reason(self, throughput: Throughput, timeouts: WorkerTimeouts, now: float) -> str | None:
        """Describe the exceeded timeout, None while the job is in time."""
        stage = self.progress.stage
        if now - self.advanced_at > timeouts.stall_s:
            return f"timed out: no progress for {now - self.advanced_at:.0f} s in stage {stage}"
        limit_s = throughput.limit_s(self.progress, timeouts)
        if limit_s is not None and now - self.began_at > limit_s:
            return f"timed out: stage {stage} of {self.progress.total} tokens took more than {limit_s:.0f} s"
        return None
