"""The validator of a load run: neurons/validator.py as it stands, with a clock beside its ticks and paced workers.

    python -m tests.campaigns.load.validator --report FILE --score_seconds 0.2 --times_as_fast 1 -- VALIDATOR'S FLAGS

What the run asks is how the validator bears its load, so scores take the time of a real one, divided by as much as the
blocks are, and no processor. Linux only: the peak of the memory is the kernel's own.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from template import constants
from template.constants import DATA_FILE
from template.records import RunningEvaluation, SubmissionKey
from template.validator import evaluation, loop
from template.workers.executor import CompletedJob
from tests.campaigns.measure import memory_kib
from tests.campaigns.synthetic_subnet import COMPETITION, IdleExecutor, make_result

_SCRIPT = Path(__file__).resolve().parents[3] / "neurons" / "validator.py"


@dataclasses.dataclass
class Report:
    """What the validator's process tells of itself. *_s: seconds; ready: from the first tick with the pool in memory.

    tick_s and waking_s: the longest tick since then, and before it, what it rested left out.
    """

    tick_s: float = 0.0
    tick: str = ""
    waking_s: float = 0.0
    ticks: int = 0
    busy_s: float = 0.0
    datasets: int = 0
    peak_kib: int = 0

    def write(self, path: Path) -> None:
        """Leaves it in the file, whole."""
        self.peak_kib = memory_kib("VmHWM")
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        part.replace(path)


class TimedValidator(loop.Validator):
    """The validator, timed from tick to tick."""

    report = Report()
    _rested_s = 0.0

    def tick(self) -> bool:
        started, self._rested_s, is_waking = time.monotonic(), 0.0, self.evaluator is None
        try:
            return super().tick()
        finally:
            self._note(time.monotonic() - started - self._rested_s, is_waking=is_waking)

    def _note(self, busy_s: float, *, is_waking: bool) -> None:
        report = self.report
        if is_waking:
            report.waking_s = max(report.waking_s, busy_s)
            return
        report.ticks += 1
        report.busy_s += busy_s
        report.datasets = max(report.datasets, len(self.evaluator.datasets) if self.evaluator else 0)
        if busy_s > report.tick_s:
            report.tick_s, report.tick = busy_s, self._doing

    def _perform(self, action: Any, state: Any, view: Any) -> bool:
        self._doing = type(action).__name__
        return super()._perform(action, state, view)

    def _idle(self) -> None:
        started = time.monotonic()
        super()._idle()
        self._rested_s += time.monotonic() - started


class PacedExecutor(IdleExecutor):
    """An `Executor` of one worker whose scores take so many seconds each, and whose losses come from the datasets."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._job: tuple[RunningEvaluation, Path, int] | None = None
        self._ends_at = 0.0
        self._rest = threading.Event()

    def idle_workers(self) -> int:
        return int(self._job is None)

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        assert self._job is None, "there is one worker"
        self._job = (
            RunningEvaluation(key=key, device="paced", started_at=time.time(), stage="train"),
            data_dir,
            lucky_num,
        )
        self._ends_at = time.monotonic() + self._seconds

    def running(self) -> tuple[RunningEvaluation, ...]:
        return () if self._job is None else (self._job[0],)

    def collect(self) -> list[CompletedJob]:
        if self._job is None or time.monotonic() < self._ends_at:
            return []
        (running, folder, lucky_num), self._job = self._job, None
        with (folder / DATA_FILE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        loss = COMPETITION.minb + digest.digest()[0] / 2560
        result = dataclasses.replace(
            make_result(running.key, loss=loss), train_sha256=digest.hexdigest(), lucky_num=lucky_num
        )
        return [CompletedJob(key=running.key, result=result, error=None)]

    def wait(self, timeout_s: float) -> None:
        left_s = timeout_s if self._job is None else min(timeout_s, self._ends_at - time.monotonic())
        self._rest.wait(max(left_s, 0.0))


def quicken(times: float) -> None:
    """Divides what the validator waits for the Hub and between tries, as the blocks are."""
    for module, name in (
        (evaluation, "TIMEOUT_FIRST_S"),
        (evaluation, "RETRY_FIRST_S"),
        (evaluation, "RETRY_MOST_S"),
        (constants, "DOWNLOAD_DEADLINE_S"),
        (loop, "DOWNLOAD_POLL_S"),
        (loop, "MAX_BACKOFF_S"),
    ):
        setattr(module, name, getattr(module, name) / times)


def load_script(path: Path) -> Any:
    """The program at `path` as a module, not run."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="load_validator", description=__doc__)
    parser.add_argument("--report", type=Path, required=True, help="where to leave what was measured, as JSON")
    parser.add_argument("--score_seconds", type=float, required=True, help="that a score takes")
    parser.add_argument("--times_as_fast", type=float, default=1.0, help="that all waits are (default: %(default)g)")
    parser.add_argument("rest", nargs="+", metavar="-- FLAGS", help="of neurons/validator.py")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the validator; returns its exit status."""
    args = build_parser().parse_args(argv)
    quicken(args.times_as_fast)
    entry = load_script(_SCRIPT)
    entry.make_executor = lambda _args, _scorer: PacedExecutor(args.score_seconds)
    modules: Any = loop
    modules.Validator = TimedValidator
    try:
        return int(entry.main(args.rest))
    finally:
        TimedValidator.report.write(args.report)


if __name__ == "__main__":
    sys.exit(main())
