"""A worker process that evaluates without a model, and stays in a stage on demand.

Only loading and evaluating are replaced; signals, pipes and messages are the product's.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from template.constants import DATA_FILE
from template.records import Progress, TrainResult
from template.workers import messages, worker
from template.workers.executor import Evaluator
from tests.fixtures.results import fake_result

# Names the stage in which the worker stays: load, train or evaluate.
STAGE_FILE = "stage"
_REACHED_FILE = "stage-reached"
_STEPS, _STEP_S = 3, 0.01


def write_program(folder: Path) -> Path:
    """Write an executable that becomes a worker, to be run in place of Python."""
    path = folder / "scorer"
    path.write_text(f"#!{sys.executable}\nfrom tests.campaigns.crash.scorer import main\nmain({str(folder)!r})\n")
    path.chmod(0o755)
    return path


def pid_in_stage(folder: Path) -> int | None:
    """Return the worker's process once it is in the stage in which it stays."""
    try:
        stage, pid = (folder / _REACHED_FILE).read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if stage == (folder / STAGE_FILE).read_text() else None


def main(folder: str) -> None:
    """Run a worker whose losses depend on the file and the seed alone."""

    def stay(stage: str) -> None:
        path = Path(folder) / STAGE_FILE
        while path.exists() and path.read_text() == stage:
            path.with_name(_REACHED_FILE).write_text(f"{stage} {os.getpid()}")
            time.sleep(_STEP_S)

    def load(evaluator: Evaluator) -> messages.Loaded:
        stay("load")
        return messages.Loaded(model=f"{evaluator.training_args.model_id}@{'0' * 64} cpu", device="cpu", environment={})

    def evaluate(
        evaluator: Evaluator, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None]
    ) -> TrainResult:
        content = (data_dir / DATA_FILE).read_bytes()
        for stage in ("train", "evaluate"):
            for done in range(_STEPS):
                on_progress(Progress(stage=stage, done=done, total=_STEPS))
                time.sleep(_STEP_S)
            stay(stage)
        rows = content.count(b"\n")
        return fake_result(evaluator, hashlib.sha256(content).hexdigest(), rows=rows, lucky_num=lucky_num)

    patched: Any = worker
    patched.load, patched.peak_memory_bytes = load, lambda: 0
    Evaluator.evaluate = evaluate  # type: ignore[method-assign, assignment]
    worker.main()
