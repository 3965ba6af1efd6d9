"""Faults of the machine, each in a run of its own, and the way out of them.

The process may end with an exit status that names the fault, and is then restarted as by a supervisor, or it goes on by
itself. Its verdicts must be an undisturbed run's in the end. Faults are real ones wherever this machine permits.
"""

import ctypes
import errno
import fcntl
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from template.errors import HostError
from tests.campaigns.crash.checks import EndState
from tests.campaigns.crash.points import CLOCK_FILE
from tests.campaigns.crash.run import Outcome, Run
from tests.campaigns.crash.scenario import Base
from tests.campaigns.crash.scorer import STAGE_FILE, pid_in_stage

# Starts while a fault lasts.
_TRIES = 2
_TMPFS_BYTES = 24 * 2**20
_YEAR_S, _HOUR_S = 365 * 86_400.0, 3600.0
_PIPE_BYTES = 4096
# From linux/fcntl.h and linux/sched.h.
_F_SETPIPE_SZ, _CLONE_NEWNS = 1031, 0x00020000
_HOST_FAILED = (HostError.exit_code,)

Fault = Callable[[Base, Path, EndState], Outcome]
Condition = Callable[[Run], bool]


def has_verdicts(count: int) -> Condition:
    return lambda run: run.snapshot.verdicts >= count


def keep_mounts_private() -> None:
    """Hide what this process mounts from now on. For the main thread."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0:
        _call("mount", "--make-rprivate", "/")


@contextmanager
def _disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system in `folder`; yields False where this process may not."""
    folder.mkdir(parents=True)
    is_mounted = _call("mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=700", "tmpfs", str(folder))
    try:
        yield is_mounted
    finally:
        if is_mounted:
            _call("umount", "--lazy", str(folder))


def _call(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def fill_disk(base: Base, folder: Path, expected: EndState) -> Outcome:
    """Fill the disk between evaluations, twice, with failing starts meanwhile."""
    disk = folder / "disk"
    with _disk(disk) as is_mounted, Run(base, folder, phases=2, may_end=_HOST_FAILED, state_dir=disk) as run:
        run.outcome.notes.append("a full tmpfs" if is_mounted else "RLIMIT_FSIZE: this process may not mount")
        for count in (3, 7):
            run.go(has_verdicts(count))
            if is_mounted:
                _fill(disk / "filler")
            else:
                run.kill()
                run.validator.file_size_limit = 1024
                run.start()
            for _ in range(_TRIES):
                run.await_end()
                run.start()
            (disk / "filler").unlink(missing_ok=True)
            if not is_mounted:
                run.kill()
                run.validator.file_size_limit = None
        run.go()
        return run.finish(expected)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**12))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def forbid_writing(base: Base, folder: Path, expected: EndState) -> Outcome:
    """Start the validator on a state that it may not write to."""
    disk = folder / "disk"
    with _disk(disk) as is_mounted, Run(base, folder, phases=1, may_end=_HOST_FAILED, state_dir=disk) as run:
        run.go(has_verdicts(3))
        run.kill()
        if is_mounted or os.geteuid() != 0:
            run.outcome.notes.append("a tmpfs mounted read-only" if is_mounted else "no permission to write")
            _set_writable(disk, False, is_mounted=is_mounted)
            for _ in range(_TRIES):
                run.start()
                run.await_end()
            _set_writable(disk, True, is_mounted=is_mounted)
        else:
            run.outcome.notes.append("NOT RUN: root may write anywhere, and this process may not mount")
        run.go()
        return run.finish(expected)


def _set_writable(folder: Path, is_writable: bool, *, is_mounted: bool) -> None:
    if is_mounted:
        if not _call("mount", "-o", "remount,rw" if is_writable else "remount,ro", str(folder)):
            raise RuntimeError(f"{folder} cannot be mounted again")
        return
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if is_writable else mode & ~0o222)


def damage(
    change: Callable[[Path], None], *, after: Condition, is_closed: bool = False, is_fatal: bool = False
) -> Fault:
    """Change the state file or its log while no validator runs.

    Args:
        is_closed: the validator was stopped, so that the log is empty, rather than killed.
        is_fatal: the state must be refused, and is removed then; otherwise the validator goes on with what is left.
    """

    def run_fault(base: Base, folder: Path, expected: EndState) -> Outcome:
        with Run(base, folder, phases=1, may_end=_HOST_FAILED) as run:
            run.go(after)
            (run.stop if is_closed else run.kill)()
            change(run.validator.state_file)
            run.start()
            if is_fatal:
                run.await_end()
                run.outcome.findings = [fault for fault in run.outcome.findings if "state file" not in fault]
                for path in run.validator.state_dir.glob(f"{run.validator.state_file.name}*"):
                    path.unlink()
                run.start()
            run.go()
            outcome = run.finish(expected)
            if outcome.doubled and not is_fatal:
                # The record of accepted weights is lost, so the same weights are set again.
                outcome.notes.append(", ".join(outcome.doubled))
                outcome.doubled.clear()
            return outcome

    return run_fault


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _cut_log(path: Path) -> None:
    """Cut a third off the log, not at a frame's end."""
    os.truncate(_log_of(path), _log_of(path).stat().st_size * 2 // 3 + 1)


def _cut_log_end(path: Path) -> None:
    """Cut the last transactions off the log."""
    os.truncate(_log_of(path), _log_of(path).stat().st_size - 5 * 4096)


def _flip_log(path: Path) -> None:
    content = bytearray(_log_of(path).read_bytes())
    content[len(content) // 2] ^= 1
    _log_of(path).write_bytes(content)


def _cut_state(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _fault(*, phases: int, ignore: tuple[str, ...] = (), **options: Any) -> Callable[[Callable[[Run], None]], Fault]:
    """Turn what happens to a run into a fault, after which the run goes on to its end."""

    def decorate(disturb: Callable[[Run], None]) -> Fault:
        def run_fault(base: Base, folder: Path, expected: EndState) -> Outcome:
            with Run(base, folder, phases=phases, **options) as run:
                disturb(run)
                run.go()
                return run.finish(expected, ignore=ignore)

        return run_fault

    return decorate


# A missing file is downloaded again after six hours, and so has a turn in the next round.
@_fault(phases=2, ignore=("entries",))
def move_clock(run: Run) -> None:
    """Put the clock a year ahead during a backoff, back, and by hours."""
    steps: list[tuple[float, Condition]] = [
        (_YEAR_S, lambda run: run.snapshot.attempts > 0),
        (0.0, has_verdicts(6)),
        (-7 * _HOUR_S, has_verdicts(8)),
    ]
    for offset_s, until in steps:
        (run.folder / CLOCK_FILE).write_text(str(offset_s))
        run.go(until)
    (run.folder / CLOCK_FILE).write_text(str(7 * _HOUR_S))


def _hold_worker(run: Run, stage: str) -> int:
    """Have the worker stay in a stage; return its process once it is there."""
    (run.folder / STAGE_FILE).write_text(stage, encoding="utf-8")
    run.go(lambda _: pid_in_stage(run.folder) is not None)
    worker = pid_in_stage(run.folder)
    assert worker is not None, run.validator.last_log_line()
    return worker


# A worker that cannot load ends the validator, whose supervisor restarts it.
@_fault(phases=1, may_end=_HOST_FAILED)
def kill_worker(run: Run) -> None:
    """Kill the worker while it loads, trains and evaluates."""
    for stage in ("load", "train", "evaluate"):
        os.kill(_hold_worker(run, stage), signal.SIGKILL)
        run.outcome.kills[f"worker in stage {stage} |"] += 1
        (run.folder / STAGE_FILE).unlink()


@_fault(phases=1, executor_speed=200.0)
def freeze_worker(run: Run) -> None:
    """Stop the worker for ever with SIGSTOP: only its time limits end it."""
    worker = _hold_worker(run, "train")
    os.kill(worker, signal.SIGSTOP)
    (run.folder / STAGE_FILE).unlink()
    run.go()
    if Path(f"/proc/{worker}").exists():
        run.outcome.findings.append(f"the stopped worker {worker} is still alive")


@_fault(phases=1)
def freeze_validator(run: Run) -> None:
    """Stop the validator for two seconds, in which its worker's messages are not read."""
    run.go(has_verdicts(4))
    os.kill(run.validator.pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(run.validator.pid, signal.SIGCONT)


@_fault(phases=1, mode=None, may_end=_HOST_FAILED)
def kill_real_worker(run: Run) -> None:
    """Kill the worker that trains: once while it loads and twice at work."""
    for stage in ("load", "score", "score"):
        if stage == "load":
            run.go(lambda run: run.validator.worker_pid() is not None)
        else:
            run.go(lambda run: "evaluating" in run.validator.last_log_line())
        time.sleep(1.0 if stage == "load" else 0.05)
        if (worker := run.validator.worker_pid()) is not None:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            run.outcome.kills[f"real worker in stage {stage} |"] += 1


@_fault(phases=2, may_end=_HOST_FAILED)
def take_descriptors(run: Run) -> None:
    """Forbid new open files for three seconds between evaluations."""
    run.go(has_verdicts(2))
    process = run.validator.process
    assert process is not None
    soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used, hard))
    until = time.monotonic() + 3.0
    run.go(lambda run: time.monotonic() > until or run.validator.process is not process)
    if run.validator.process is process:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))


def block_pipes(base: Base, folder: Path, expected: EndState) -> Outcome:
    """Leave the validator's output unread: its pipes are full after the first lines."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(writing, _F_SETPIPE_SZ, _PIPE_BYTES)
        with Run(base, folder, phases=2) as run:
            run.start(stderr=writing, stdout=writing)
            run.go()
            return run.finish(expected)
    finally:
        os.close(reading)
        os.close(writing)


_damage_early = partial(damage, after=has_verdicts(4))

FAULTS: dict[str, Fault] = {
    "disk full": fill_disk,
    "state read-only": forbid_writing,
    "log cut short": _damage_early(_cut_log),
    "log's end lost after weights": damage(_cut_log_end, after=lambda run: run.snapshot.accepted > 0),
    "log with a flipped bit": _damage_early(_flip_log),
    "log lost": _damage_early(lambda path: _log_of(path).unlink()),
    "state cut short": _damage_early(_cut_state, is_closed=True, is_fatal=True),
    "state empty": _damage_early(lambda path: os.truncate(path, 0), is_closed=True),
    "state empty beside its log": _damage_early(lambda path: os.truncate(path, 0)),
    "clock a year ahead, and back": move_clock,
    "worker killed in each stage": kill_worker,
    "worker stopped": freeze_worker,
    "validator stopped": freeze_validator,
    "stderr and stdout full": block_pipes,
    "no descriptors left": take_descriptors,
    "worker killed": kill_real_worker,
}
