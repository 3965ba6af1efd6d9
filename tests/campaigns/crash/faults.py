"""Faults of the machine, each in a run of its own, and the way out of them.

The process may end with an exit status that names the fault, and is then restarted as by a supervisor, or it goes on by
itself. Its verdicts must be an undisturbed run's in the end. Faults are real ones wherever this machine permits.
"""

import errno
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from template.errors import HostError
from tests.campaigns.crash.points import CLOCK_FILE
from tests.campaigns.crash.run import Outcome, Run
from tests.campaigns.crash.scenario import Base
from tests.campaigns.crash.scorer import STAGE_FILE, pid_in_stage
from tests.campaigns.process_under_test import STATE_FILE

# Starts while a fault lasts.
_TRIES = 2
_LOG = "-wal"
_TMPFS_BYTES = 24 * 2**20
_FILE_BYTES, _PIPE_BYTES = 1024, 4096
_YEAR_S, _HOUR_S = 365 * 86_400.0, 3600.0


@dataclass(frozen=True)
class Fault:
    """A disturbance of a run, after which the run goes on to its end.

    Args:
        has_disk: the state lies on a small file system of its own, where this process may mount one.
        is_fatal: the validator may end with the exit status of a host's failure.
        ignore: beginnings of keys of the end state that the fault may change.
        may_repeat: weights may be set twice, since the record of the first time is lost.
    """

    disturb: Callable[[Run], None]
    phases: int = 1
    is_real: bool = False
    has_disk: bool = False
    is_fatal: bool = False
    executor_speed: float = 20.0
    ignore: tuple[str, ...] = ()
    may_repeat: bool = False

    def run(self, base: Base, folder: Path, undisturbed: Path) -> Outcome:
        may_end = (HostError.exit_code,) if self.is_fatal else ()
        options = {"phases": self.phases, "is_real": self.is_real, "executor_speed": self.executor_speed}
        with (
            _mounted(folder / "state") if self.has_disk else nullcontext(),
            Run(base, folder, may_end=may_end, **options) as run,  # type: ignore[arg-type]
        ):
            self.disturb(run)
            run.go()
            outcome = run.finish(undisturbed, ignore=self.ignore)
            if self.may_repeat:
                outcome.notes.update(outcome.faults.pop("doubled"))
            return outcome


@contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=700", "tmpfs", str(folder))
    try:
        yield
    finally:
        if folder.is_mount():
            _call("umount", "--lazy", str(folder))


def _call(*command: str) -> None:
    with suppress(OSError):
        subprocess.run(command, capture_output=True, check=False)


def fill_disk(run: Run) -> None:
    """Fill the disk between evaluations, twice, with failing starts meanwhile."""
    filler = run.validator.state_dir / "filler"
    for verdicts in (3, 7):
        run.go(has("verdicts", verdicts))
        for _ in range(_TRIES):
            if filler.parent.is_mount():
                _fill(filler)
            else:
                run.outcome.notes["RLIMIT_FSIZE: this process may not mount"] += 1
                _limit(run, resource.RLIMIT_FSIZE, _FILE_BYTES)
            run.await_end()
            run.start()
        filler.unlink(missing_ok=True)


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**12))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _limit(run: Run, kind: int, soft: int) -> int:
    """Set a limit of the validator's process; return the one before."""
    before, hard = resource.prlimit(run.validator.pid, kind)
    resource.prlimit(run.validator.pid, kind, (soft, hard))
    return before


def forbid_writing(run: Run) -> None:
    """Start the validator on a state that it may not write to."""
    run.go(has("verdicts", 3))
    run.kill()
    if not run.validator.state_dir.is_mount():
        run.outcome.notes["NOT RUN: this process may not mount"] += 1
        return
    _call("mount", "-o", "remount,ro", str(run.validator.state_dir))
    for _ in range(_TRIES):
        run.start()
        run.await_end()
    _call("mount", "-o", "remount,rw", str(run.validator.state_dir))


def has(name: str, count: int) -> Callable[[Run], bool]:
    """Return the condition that the state file has at least so many of something."""
    return lambda run: run.counts[name] >= count


def damage(change: Callable[[Path], None], run: Run, *, after: Callable[[Run], bool], is_stopped: bool = False) -> None:
    """Change the state file or SQLite's log while no validator runs.

    Args:
        is_stopped: the validator was stopped, so that the log is empty, rather than killed.
    """
    run.go(after)
    (run.stop if is_stopped else run.kill)()
    change(run.validator.state_file)


def cut_state(run: Run) -> None:
    """Truncate the state file, which must be refused, and remove it then."""
    damage(_truncate("", lambda size: size // 2), run, after=has("verdicts", 4), is_stopped=True)
    run.start()
    run.await_end()
    run.outcome.faults.pop("state")
    for file in run.validator.state_dir.glob(f"{STATE_FILE}*"):
        file.unlink()


def _truncate(ending: str, size_from: Callable[[int], int]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path.with_name(path.name + ending)
        os.truncate(file, size_from(file.stat().st_size))

    return change


def _flip_log(path: Path) -> None:
    log = path.with_name(path.name + _LOG)
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)


def move_clock(run: Run) -> None:
    """Put the clock a year ahead during a backoff, back, and by hours."""
    # A validator does not start with a clock that its node contradicts.
    run.go(has("start", 1))
    for offset_s, until in (
        (_YEAR_S, has("attempts", 1)),
        (0.0, has("verdicts", 6)),
        (-7 * _HOUR_S, has("verdicts", 8)),
    ):
        (run.folder / CLOCK_FILE).write_text(str(offset_s))
        run.go(until)
    (run.folder / CLOCK_FILE).write_text(str(7 * _HOUR_S))


def _hold_worker(run: Run, stage: str) -> int:
    """Have the worker stay in a stage; return its process once it is there."""
    (run.folder / STAGE_FILE).write_text(stage)
    run.go(lambda _: pid_in_stage(run.folder) is not None)
    worker = pid_in_stage(run.folder)
    assert worker is not None, run.validator.last_log_line()
    return worker


def kill_worker(run: Run) -> None:
    """Kill the worker while it loads, trains and evaluates."""
    for stage in ("load", "train", "evaluate"):
        os.kill(_hold_worker(run, stage), signal.SIGKILL)
        run.outcome.kills[f"worker in stage {stage} |"] += 1
        (run.folder / STAGE_FILE).unlink()


def freeze_worker(run: Run) -> None:
    """Stop the worker for ever with SIGSTOP: only its time limits end it."""
    worker = _hold_worker(run, "train")
    os.kill(worker, signal.SIGSTOP)
    (run.folder / STAGE_FILE).unlink()
    run.go()
    if Path(f"/proc/{worker}").exists():
        run.outcome.faults["other"].append(f"the stopped worker {worker} is still alive")


def freeze_validator(run: Run) -> None:
    """Stop the validator for two seconds, in which its worker's messages are not read."""
    run.go(has("verdicts", 4))
    os.kill(run.validator.pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(run.validator.pid, signal.SIGCONT)


def kill_real_worker(run: Run) -> None:
    """Kill the worker that trains: once while it loads and twice at work."""

    def is_working(run: Run) -> bool:
        return "evaluating" in run.validator.last_log_line() and run.validator.worker_pid() is not None

    for is_reached, pause_s in ((lambda run: run.validator.worker_pid(), 1.0), (is_working, 0.05), (is_working, 0.05)):
        run.go(is_reached)
        time.sleep(pause_s)
        if (worker := run.validator.worker_pid()) is not None:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            run.outcome.kills["real worker |"] += 1


def take_descriptors(run: Run) -> None:
    """Forbid new open files for three seconds between evaluations."""
    run.go(has("verdicts", 2))
    starts, until = run.outcome.starts, time.monotonic() + 3.0
    used = len(list(Path(f"/proc/{run.validator.pid}/fd").iterdir()))
    before = _limit(run, resource.RLIMIT_NOFILE, used)
    run.go(lambda run: time.monotonic() > until or run.outcome.starts > starts)
    if run.outcome.starts == starts:
        _limit(run, resource.RLIMIT_NOFILE, before)


def block_pipes(run: Run) -> None:
    """Leave the validator's output unread: its pipes are full after the first lines."""
    run.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=_PIPE_BYTES)


def _damage(change: Callable[[Path], None], *, is_stopped: bool = False) -> Fault:
    return Fault(partial(damage, change, after=has("verdicts", 4), is_stopped=is_stopped), is_fatal=True)


FAULTS = {
    "disk full": Fault(fill_disk, phases=2, has_disk=True, is_fatal=True),
    "state read-only": Fault(forbid_writing, has_disk=True, is_fatal=True),
    # Not at a frame's end.
    "log cut short": _damage(_truncate(_LOG, lambda size: size * 2 // 3 + 1)),
    "log's end lost after weights": Fault(
        partial(damage, _truncate(_LOG, lambda size: size - 5 * 4096), after=has("accepted", 1)),
        is_fatal=True,
        may_repeat=True,
    ),
    "log with a flipped bit": _damage(_flip_log),
    "log lost": _damage(lambda path: path.with_name(path.name + _LOG).unlink()),
    "state cut short": Fault(cut_state, is_fatal=True),
    "state empty": _damage(_truncate("", lambda _: 0), is_stopped=True),
    "state empty beside its log": _damage(_truncate("", lambda _: 0)),
    # A missing file is downloaded again after half an hour, and so has a turn in the next round.
    "clock a year ahead, and back": Fault(move_clock, phases=2, ignore=("entry",)),
    # A worker that cannot load ends the validator, whose supervisor restarts it.
    "worker killed in each stage": Fault(kill_worker, is_fatal=True),
    "worker stopped": Fault(freeze_worker, executor_speed=200.0),
    "validator stopped": Fault(freeze_validator),
    "stderr and stdout full": Fault(block_pipes, phases=2),
    "no descriptors left": Fault(take_descriptors, phases=2, is_fatal=True),
    "worker killed": Fault(kill_real_worker, is_real=True, is_fatal=True),
}
