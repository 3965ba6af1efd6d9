"""A worker process that returns recorded losses, or records them.

Only loading and evaluating are replaced; signals, pipes and messages are the product's. In the mode `record` nothing
is replaced, and what the real worker sends is written to the table.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from template.constants import DATA_FILE
from template.errors import HostError
from template.records import Progress, TrainResult
from template.workers import messages, worker

STAGE_FILE, _REACHED_FILE = "stage", "stage-reached"
_STEPS, _STEP_S = 3, 0.01


def write_program(path: Path, mode: str, table: Path) -> Path:
    """Write an executable that becomes a worker, to be run in place of Python."""
    text = f"#!{sys.executable}\nfrom tests.campaigns.crash.scorer import main\nmain({mode!r}, {str(table)!r})\n"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


class TableEvaluator:
    """Returns recorded results; the file `stage` names a stage to stay in."""

    def __init__(self, table: Path) -> None:
        self._stage = table.with_name(STAGE_FILE)
        self._results: dict[tuple[str, int], TrainResult] = {}
        for line in table.read_bytes().splitlines(keepends=True):
            event = messages.decode_event(line)
            if isinstance(event, messages.Loaded):
                self.loaded = event
            elif isinstance(event, messages.Evaluated):
                self._results[event.result.train_sha256, event.result.lucky_num] = event.result

    def load(self) -> messages.Loaded:
        self._stay("load")
        return self.loaded

    def evaluate(self, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None]) -> TrainResult:
        """Raises: HostError when the table has no result for the file and the seed."""
        sha256 = hashlib.sha256((data_dir / DATA_FILE).read_bytes()).hexdigest()
        if (result := self._results.get((sha256, lucky_num))) is None:
            raise HostError(f"the table has no loss for sha256={sha256[:12]} lucky_num={lucky_num}")
        for stage in ("train", "evaluate"):
            for done in range(_STEPS):
                on_progress(Progress(stage=stage, done=done, total=_STEPS))
                time.sleep(_STEP_S)
            self._stay(stage)
        return result

    def _stay(self, stage: str) -> None:
        while self._stage.exists() and self._stage.read_text(encoding="utf-8") == stage:
            self._stage.with_name(_REACHED_FILE).write_text(f"{stage} {os.getpid()}", encoding="utf-8")
            time.sleep(_STEP_S)


def pid_in_stage(folder: Path) -> int | None:
    """Return the worker's process once it is in the stage in which it stays."""
    try:
        stage, pid = (folder / _REACHED_FILE).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return int(pid) if stage == (folder / STAGE_FILE).read_text(encoding="utf-8") else None


def main(mode: str, table: str) -> None:
    """Run a worker that records, or one that answers from the table."""
    if mode == "record":
        _record(Path(table))
        worker.main()
    else:
        evaluator = TableEvaluator(Path(table))
        patched: Any = worker
        patched.load = lambda evaluator: evaluator.load()
        patched.peak_memory_bytes = lambda: 0
        patched.main(evaluator)


def _record(table: Path) -> None:
    send = worker.EventWriter.send

    def send_and_record(self: worker.EventWriter, event: messages.Event) -> None:
        if isinstance(event, messages.Loaded | messages.Evaluated):
            with table.open("ab") as file:
                file.write(messages.encode(event))
        send(self, event)

    worker.EventWriter.send = send_and_record  # type: ignore[method-assign]
