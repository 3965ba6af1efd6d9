"""A worker process whose scores come from a table: what the real worker said of the same file and seed, bit by bit.

Between the pipes it is the product's own `template.workers.worker`, signals and all; only loading the model and the
score
itself are replaced. In the mode `record` nothing is replaced, and what the real one says is written down for the table.
"""

import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from template.constants import DATA_FILE
from template.errors import HostError
from template.records import Progress, TrainResult
from template.workers import messages, worker

STAGE_FILE, _REACHED_FILE = "stage", "stage-reached"

# Signs of progress in each stage, and seconds between two of them.
_STEPS = 3
_STEP_S = 0.01


def write_program(path: Path, mode: str, table: Path) -> Path:
    """An executable that is started in place of Python for a worker, and whatever it is called with is one."""
    text = f"#!{sys.executable}\nfrom tests.campaigns.crash.scorer import main\nmain({mode!r}, {str(table)!r})\n"
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path


class TableEvaluator:
    """Stands where `template.workers.executor.Evaluator` does. Its file `stage`, where there is one, names a stage to
    stay in."""

    def __init__(self, table: Path) -> None:
        self._stage = table.with_name(STAGE_FILE)
        self._results: dict[tuple[str, int], TrainResult] = {}
        for line in table.read_bytes().splitlines(keepends=True):
            event = messages.decode_event(line)
            if isinstance(event, messages.Loaded):
                self.loaded = event
            elif isinstance(event, messages.Evaluated):
                self._results[event.result.train_sha256, event.result.lucky_num] = event.result

    def load_model(self) -> messages.Loaded:
        self._stay("load")
        return self.loaded

    def evaluate(self, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None]) -> TrainResult:
        """The real result for the file's digest and the seed. Raises: HostError when the real worker had no such."""
        with (data_dir / DATA_FILE).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        result = self._results.get((sha256, lucky_num))
        if result is None:
            raise HostError(f"the table has no score of {sha256[:12]} under the seed {lucky_num}")
        for stage in ("train", "evaluate"):
            for done in range(_STEPS):
                on_progress(Progress(stage=stage, done=done, total=_STEPS))
                time.sleep(_STEP_S)
            self._stay(stage)
        return result

    def _stay(self, stage: str) -> None:
        """Time goes on and nothing else does, while somebody wants it so."""
        reached = self._stage.with_name(_REACHED_FILE)
        while self._stage.exists() and self._stage.read_text(encoding="utf-8") == stage:
            reached.write_text(f"{stage} {os.getpid()}", encoding="utf-8")
            time.sleep(_STEP_S)


def is_reached(folder: Path) -> int | None:
    """The worker's process, once it is in the stage in which it is to stay."""
    try:
        stage, pid = (folder / _REACHED_FILE).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return int(pid) if stage == (folder / STAGE_FILE).read_text(encoding="utf-8") else None


def main(mode: str, table: str) -> None:
    """Becomes a worker, which ends with its parent."""
    if mode == "record":
        _record(Path(table))
        worker.main()
    else:
        evaluator = TableEvaluator(Path(table))
        worker.load = lambda evaluator: evaluator.load_model()  # type: ignore[assignment, return-value]
        worker.peak_memory_bytes = lambda: 0
        worker.main(evaluator)  # type: ignore[arg-type]


def _record(table: Path) -> None:
    """Has what the worker says of models and scores written into the table as well."""
    tell = worker.EventWriter.send

    def tell_and_record(self: worker.EventWriter, event: messages.Event) -> None:
        if isinstance(event, messages.Loaded | messages.Evaluated):
            with table.open("ab") as file:
                file.write(messages.encode(event))
        tell(self, event)

    worker.EventWriter.send = tell_and_record  # type: ignore[method-assign]
