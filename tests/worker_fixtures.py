"""Executors whose workers are real processes: those of the product, or scripts that do what no sane worker would."""

import dataclasses
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from loguru import logger

from template.competition import Competition
from template.pace import Limits
from template.records import TrainResult
from template.settings import load_training_args
from template.state import SubmissionKey
from template.worker_process import LocalExecutor
from template.workers import Finished, Scorer

PATIENCE_S = 120.0
KEY = SubmissionKey("alice", "alice/data:1:" + "a" * 40)
OTHER = SubmissionKey("bob", "bob/data:1:" + "b" * 40)

# No rest after a first failure, so that a test need not wait for it.
EAGER = Limits(restart_first_s=0.0)

_PREAMBLE = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
from template import wire
from template.errors import *
from template.records import Progress

def hear():
    line = sys.stdin.buffer.readline()
    return wire.decode_command(line) if line else os._exit(0)

def tell(event):
    sys.stdout.buffer.write(wire.encode(event))
    sys.stdout.buffer.flush()

def load(kind="cpu"):
    args = setup.training_args
    model = f"{{args.model_id}}@{{args.revision or '0' * 40}} {{kind}} float32"
    tell(wire.Loaded(model=model, device=setup.device or "cpu"))

def advance(done, total):
    tell(wire.Advanced(progress=Progress(stage="train", done=done, total=total), memory_bytes=5))

folder = pathlib.Path(__file__).parent
setup = hear()
with (folder / "starts").open("a") as starts:
    starts.write(f"{{setup.device}} {{setup.training_args.revision}} {{os.getpid()}}\\n")
nth = len((folder / "starts").read_text().splitlines())
"""


class Clock:
    """A monotonic clock that a test can put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class Script:
    """An executable that stands in for the worker, whatever it is called with."""

    def __init__(self, folder: Path, body: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "worker"
        self.path.write_text(_PREAMBLE + body)
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def starts(self) -> list[list[str]]:
        """Of every start: the device, the model's revision and the process's id."""
        log = self.folder / "starts"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


@contextmanager
def scripted(
    script: Script,
    *devices: str | None,
    limits: Limits = EAGER,
    known: Sequence[TrainResult] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[LocalExecutor]:
    """An executor of which every worker is the script; all are gone in the end."""
    args = dataclasses.replace(load_training_args(), revision=None)
    scorer = Scorer(competition=Competition.from_defaults(), training_args=args, eval_data_dir=script.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(script.path))
        executor = LocalExecutor(scorer, devices or ("cpu",), limits=limits, known=known, clock=clock)
        try:
            yield executor
        finally:
            executor.close()
            assert children(script.path) == []


def children(named: object) -> list[int]:
    """This process's children that live and have this in their command line: as soon as they are started."""
    shown = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    found = [int(line.split()[0]) for line in shown.stdout.splitlines() if str(named) in line]
    return [pid for pid in found if is_alive(pid)]


def is_alive(pid: int) -> bool:
    """True while the process runs; one that is dead and only waits to be asked after counts as gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def until(is_reached: Callable[[], object], executor: LocalExecutor | None = None) -> None:
    """Waits for the condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_reached():
        assert time.monotonic() < deadline, "not reached in time"
        executor.wait(0.05) if executor else time.sleep(0.05)


def ready(executor: LocalExecutor, workers: int = 1) -> str:
    """The model's name, once so many workers are free."""

    def is_ready() -> bool:
        return executor.prepare() is not None and executor.free() == workers

    until(is_ready, executor)
    model = executor.prepare()
    assert model is not None
    return model


def collect(executor: LocalExecutor, count: int = 1) -> list[Finished]:
    """The next jobs to end, once there are so many."""
    found: list[Finished] = []

    def are_enough() -> bool:
        found.extend(executor.collect())
        return len(found) >= count

    until(are_enough, executor)
    assert len(found) == count
    return found


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="DEBUG", format="{level} {message}")
    try:
        yield lines
    finally:
        logger.remove(sink)
