"""Stand-ins for what is slow: plain classes with the contract of what they stand in for."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from template.constants import DATA_FILE
from template.data import SUBMISSION_LIMITS, parse_rows
from template.records import Progress, TrainResult
from template.workers import Scorer


@dataclass(frozen=True, kw_only=True)
class FakeScorer(Scorer):
    """Scores without a model: the loss depends on the file and the seed alone, and more rows make it lower.

    before: what is called, or raised, in place of the next score's start; one is used up by each score.
    scored: (sha256 of the file, lucky_num) of every score that was finished.
    """

    before: list[Callable[[], object] | Exception] = field(default_factory=list)
    scored: list[tuple[str, int]] = field(default_factory=list)

    def load(self) -> str:
        return "fake/model@0"

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
