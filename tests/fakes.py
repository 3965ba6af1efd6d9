"""Stand-ins for what is slow: plain classes with the contract of what they stand in for."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from template.constants import DATA_FILE
from template.data import SUBMISSION_LIMITS, parse_rows
from template.errors import HostError, SubnetError
from template.fetching import Fetcher
from template.pace import tokens_per_s
from template.records import Progress, TrainResult
from template.settings import TrainingArgs
from template.state import Running, SubmissionKey
from template.workers import Finished, Scorer


@dataclass(frozen=True, kw_only=True)
class FakeScorer(Scorer):
    """Scores without a model: the loss depends on the file and the seed alone, and more rows make it lower.

    before: what is called, or raised, in place of the next score's start; one is used up by each score.
    scored: (sha256 of the file, lucky_num) of every score that was finished.
    """

    before: list[Callable[[], object] | Exception] = field(default_factory=list)
    scored: list[tuple[str, int]] = field(default_factory=list)

    def load(self) -> str:
        return f"{self.training_args.model_id}@{'0' * 64} none float32"

    def score(
        self, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None] | None = None
    ) -> TrainResult:
        content = (data_dir / DATA_FILE).read_bytes()
        rows = parse_rows(content, name=DATA_FILE, limits=SUBMISSION_LIMITS)[: self.competition.rows]
        if self.before:
            step = self.before.pop(0)
            if isinstance(step, Exception):
                raise step
            step()
        if on_progress is not None:
            on_progress(Progress(stage="train", done=1, total=2))
        sha256 = hashlib.sha256(content).hexdigest()
        self.scored.append((sha256, lucky_num))
        return make_result(self, sha256, rows=len(rows), lucky_num=lucky_num)


def make_result(scorer: Scorer, sha256: str, *, rows: int, lucky_num: int) -> TrainResult:
    """A result as `template.train.run_lora` would give it, with a loss between 5.9 and 6.6 for 12 rows and more."""
    noise = int.from_bytes(hashlib.sha256(f"{sha256}:{lucky_num}".encode()).digest()[:4], "big") / 2**32
    return TrainResult(
        loss=5.9 + 7.0 / rows + 0.05 * noise,
        benchmark_loss=scorer.competition.bench,
        lucky_num=lucky_num,
        model_id=scorer.training_args.model_id,
        model_revision=None,
        model_digest="0" * 64,
        hyperparameters=scorer.training_args.hyperparameters.to_dict(),
        hyperparameters_digest=scorer.training_args.hyperparameters.digest,
        train_sha256=sha256,
        train_rows=rows,
        train_tokens=rows * 20,
        eval_sha256="1" * 64,
        eval_rows=rows,
        eval_skipped_rows=0,
        eval_tokens=rows * 20,
        step_losses=(1.0,),
        environment={"device": "none"},
        load_seconds=0.0,
        train_seconds=0.0,
        eval_seconds=0.0,
    )


class PromptFetcher(Fetcher):
    """A `Fetcher` that has ended what it begins when `begin` returns: blocks that pass by ticks wait for no thread."""

    def begin(self, key: SubmissionKey, folder: Path, block: int, deadline_s: float = 60.0) -> None:
        before = len(self._ended)
        super().begin(key, folder, block, deadline_s)
        deadline = time.monotonic() + 60.0
        while len(self._ended) == before:
            assert time.monotonic() < deadline, f"the download of {key} does not end"
            self._stirred.wait(0.05)


class FakeExecutor:
    """An `Executor` without processes: a job is computed by the scorer when it is collected.

    hold: while True, jobs stay under way. load_errors: raised by the next calls of `prepare`, one each.
    """

    def __init__(self, scorer: FakeScorer, *, workers: int = 1) -> None:
        self.scorer = scorer
        self.hold = False
        self.load_errors: list[SubnetError] = []
        self.is_closed = False
        self._workers = workers
        self._jobs: list[tuple[Running, Path, int]] = []
        self._tokens_per_s: float | None = None

    @property
    def training_args(self) -> TrainingArgs:
        return self.scorer.training_args

    def prepare(self) -> str | None:
        if self.load_errors:
            raise self.load_errors.pop(0)
        return self.scorer.load()

    def free(self) -> int:
        return self._workers - len(self._jobs)

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        if not self.free():
            raise RuntimeError("no worker is free")
        device = f"fake:{len(self._jobs)}"
        self._jobs.append((Running(key=key, device=device, started_at=time.time()), data_dir, lucky_num))

    def collect(self) -> list[Finished]:
        if self.hold:
            return []
        jobs, self._jobs = self._jobs, []
        return [self._finish(running.key, data_dir, lucky_num) for running, data_dir, lucky_num in jobs]

    def _finish(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> Finished:
        try:
            result = self.scorer.score(data_dir, lucky_num)
        except SubnetError as error:
            return Finished(key=key, result=None, error=error)
        except Exception as error:
            return Finished(key=key, result=None, error=HostError(f"fake: {type(error).__name__}: {error}"))
        self._tokens_per_s = tokens_per_s(result)
        return Finished(key=key, result=result, error=None)

    def running(self) -> tuple[Running, ...]:
        return tuple(running for running, _, _ in self._jobs)

    def tokens_per_s(self) -> float | None:
        return self._tokens_per_s

    def wait(self, timeout_s: float) -> None:
        if self.hold or not self._jobs:
            time.sleep(timeout_s)

    def close(self) -> None:
        self.is_closed = True
        self._jobs = []
