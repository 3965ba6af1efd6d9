"""How long a score may take, from how long scores took: time limits for a worker process. Pure.

Seconds are of a clock that the caller reads, and that only goes forward.
"""

import dataclasses
from dataclasses import dataclass

from template.records import Progress, TrainResult

# The share by which the kept seconds per token sink towards a faster score; a slower one counts at once.
_DECAY = 0.1


@dataclass(frozen=True, kw_only=True)
class WorkerTimeouts:
    """Seconds a worker may take before it is replaced, and between two starts of one.

    stall_s: without a sign of progress. load_s: from its start until it holds the model, which may first be downloaded.
    stage_least_s: a stage may take this long whatever is expected, and `stage_slack` times what is expected.
    restart_first_s: the rest after one failure in a row, doubled with each more up to restart_most_s.
    """

    stall_s: float = 900.0
    load_s: float = 1800.0
    stage_least_s: float = 60.0
    stage_slack: float = 5.0
    restart_first_s: float = 5.0
    restart_most_s: float = 600.0

    def restart_pause_s(self, failures: int) -> float:
        """Seconds from the last of so many failures in a row to the next start."""
        return min(self.restart_first_s * 2.0 ** min(failures - 1, 30), self.restart_most_s) if failures else 0.0


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Seconds per token of training and of evaluation that scores took here; None while no score has told."""

    train: float | None = None
    evaluate: float | None = None

    def updated(self, result: TrainResult) -> "Throughput":
        """The pace once this score is known: a maximum that sinks slowly."""
        return Throughput(
            train=_slowest(self.train, result.train_seconds, trained_tokens(result)),
            evaluate=_slowest(self.evaluate, result.eval_seconds, result.eval_tokens),
        )

    def relaxed(self) -> "Throughput":
        """The pace once a score exceeded its limit: half as fast, so that a machine that became slow is seen through.

        A pace can come from another machine's receipts; without this, no score would ever end in time on this one.
        """
        return Throughput(
            train=None if self.train is None else 2 * self.train,
            evaluate=None if self.evaluate is None else 2 * self.evaluate,
        )

    def limit_s(self, progress: Progress, timeouts: WorkerTimeouts) -> float | None:
        """Seconds that the stage of `progress` may take as a whole; None while no score has told."""
        per_token = {"train": self.train, "evaluate": self.evaluate}.get(progress.stage)
        if per_token is None:
            return None
        return max(timeouts.stage_least_s, timeouts.stage_slack * per_token * progress.total)


def trained_tokens(result: TrainResult) -> int:
    """Tokens that training went through: those of the dataset, once for each epoch."""
    return int(result.train_tokens * result.hyperparameters.get("num_train_epochs", 1))


def tokens_per_s(result: TrainResult) -> float | None:
    """Training speed of a score; None for one that took no measurable time."""
    return trained_tokens(result) / result.train_seconds if result.train_seconds > 0 else None


def _slowest(kept: float | None, seconds: float, tokens: int) -> float | None:
    if tokens <= 0:
        return kept
    measured = seconds / tokens
    return measured if kept is None else max(measured, kept + _DECAY * (measured - kept))


@dataclass(frozen=True, kw_only=True)
class StageTimer:
    """How far a job is and since when: its stage began at `began_at` and last moved at `moved_at`.

    The stage "load", before the first sign of progress, is reading the files and turning them into tokens.
    """

    progress: Progress
    began_at: float
    moved_at: float

    @classmethod
    def begin(cls, now: float) -> "StageTimer":
        """A job that was just given away."""
        return cls(progress=Progress(stage="load", done=0, total=0), began_at=now, moved_at=now)

    def advanced(self, progress: Progress, now: float) -> "StageTimer":
        """The phase after a sign of progress. A stage that goes back begins anew: a broken run is replayed."""
        is_same_stage = progress.stage == self.progress.stage and progress.done >= self.progress.done
        return dataclasses.replace(
            self, progress=progress, began_at=self.began_at if is_same_stage else now, moved_at=now
        )

    def timeout_reason(self, pace: Throughput, timeouts: WorkerTimeouts, now: float) -> str | None:
        """Why the job is to be given up, None while it is in time."""
        stage = self.progress.stage
        if now - self.moved_at > timeouts.stall_s:
            return f"timed out: no progress for {now - self.moved_at:.0f} s in stage {stage}"
        limit_s = pace.limit_s(self.progress, timeouts)
        if limit_s is not None and now - self.began_at > limit_s:
            return f"timed out: stage {stage} of {self.progress.total} tokens took more than {limit_s:.0f} s"
        return None
