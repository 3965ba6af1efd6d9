"""Faults of the machine that come upon a crash run's validator, one at a time, each followed by the way out of it.

The process may end with a status that says whose fault it is, and is then started again, as a supervisor does it; or it
goes on by itself. In the end its verdicts are an undisturbed run's. How each fault was made is noted: real ones
wherever this machine permits.
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
from dataclasses import dataclass, replace
from pathlib import Path

from tests.campaigns.crash.checks import STATE_FILE, EndState
from tests.campaigns.crash.launcher import CLOCK_FILE
from tests.campaigns.crash.run import Outcome, Run
from tests.campaigns.crash.scenario import Base
from tests.campaigns.crash.scorer import STAGE_FILE, is_reached

# The exit status of `template.errors.HostError`.
_HOST_FAILED = 4
# How often a supervisor starts it while a fault lasts, before it is mended.
_TRIES = 2
_TMPFS_BYTES = 24 * 2**20
_YEAR_S = 365 * 86_400.0
# Of a pipe that nobody reads.
_PIPE_BYTES = 4096
_F_SETPIPE_SZ = 1031
# From linux/sched.h.
_CLONE_NEWNS = 0x00020000


@dataclass(frozen=True)
class Fault:
    """One kind. work: brings it about in a run of its own and finishes that."""

    name: str
    work: Callable[[Base, Path, EndState], Outcome]


def has_judged(count: int) -> Callable[[Run], bool]:
    """True once there are so many verdicts."""
    return lambda run: run.glance.verdicts >= count


def is_paid(run: Run) -> bool:
    """True once the chain took the round's weights."""
    return run.glance.accepted > 0


def keep_mounts_private() -> None:
    """What this process mounts from here on, nobody else sees, and it is gone with the process. For its main thread."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0:
        _call("mount", "--make-rprivate", "/")


@contextmanager
def _disk(folder: Path) -> Iterator[bool]:
    """A small file system of its own in `folder`, where this process may mount one; False where it may not."""
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
    """No space left in the midst of the scores, twice, with starts in vain while it lasts."""
    with (
        _disk(folder / "disk") as is_mounted,
        Run(base, folder, phases=2, may_end=(_HOST_FAILED,), state_dir=folder / "disk") as run,
    ):
        run.outcome.notes.append("a full tmpfs" if is_mounted else "RLIMIT_FSIZE: nothing may be mounted here")
        for count in (3, 7):
            run.go(has_judged(count))
            if is_mounted:
                _fill(folder / "disk" / "filler")
            else:
                run.kill()
                run.plan = replace(run.plan, fsize=1024)
                run.start()
            for _ in range(_TRIES):
                run.await_end()
                run.start()
            (folder / "disk" / "filler").unlink(missing_ok=True)
            if not is_mounted:
                run.kill()
                run.plan = replace(run.plan, fsize=None)
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
    """A state that may not be written to when the validator starts."""
    with (
        _disk(folder / "disk") as is_mounted,
        Run(base, folder, phases=1, may_end=(_HOST_FAILED,), state_dir=folder / "disk") as run,
    ):
        run.go(has_judged(3))
        run.kill()
        if is_mounted or os.geteuid() != 0:
            run.outcome.notes.append("a tmpfs mounted read-only" if is_mounted else "no permission to write")
            _permit(folder / "disk", is_mounted=is_mounted, may_write=False)
            for _ in range(_TRIES):
                run.start()
                run.await_end()
            _permit(folder / "disk", is_mounted=is_mounted, may_write=True)
        else:
            run.outcome.notes.append("NOT RUN: root may write anywhere, and nothing may be mounted here")
        run.go()
        return run.finish(expected)


def _permit(folder: Path, *, is_mounted: bool, may_write: bool) -> None:
    if is_mounted:
        if not _call("mount", "-o", "remount,rw" if may_write else "remount,ro", str(folder)):
            raise RuntimeError(f"{folder} cannot be mounted anew")
        return
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if may_write else mode & ~0o222)


def damage(
    change: Callable[[Path], None], *, after: Callable[[Run], bool], is_closed: bool = False, is_fatal: bool = False
) -> Callable[[Base, Path, EndState], Outcome]:
    """Something happens to the state file, or to its log, while no validator runs.

    is_closed: it ended properly before, so that the log is empty. is_fatal: it must be refused, and the operator puts
    it aside then; else the validator has to go on with what is left.
    """

    def work(base: Base, folder: Path, expected: EndState) -> Outcome:
        with Run(base, folder, phases=1, may_end=(_HOST_FAILED,)) as run:
            run.go(after)
            if is_closed:
                run.stop()
            else:
                run.kill()
            state = run.state_dir / STATE_FILE
            change(state)
            run.start()
            if is_fatal:
                run.await_end()
                # It is damaged, as was to be.
                run.outcome.findings = [one for one in run.outcome.findings if "state file" not in one]
                run.outcome.notes.append(f"refused: {run.outcome.ends[-1][1].partition('ERROR')[2].strip()}")
                for path in run.state_dir.glob(f"{STATE_FILE}*"):
                    path.unlink()
                run.start()
            run.go()
            said = run.finish(expected)
            if said.doubled and not is_fatal:
                # With the record that they were set went the knowledge of it. They are the same weights again.
                said.notes.append(", ".join(said.doubled))
                said.doubled.clear()
            return said

    return work


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def cut_log(path: Path) -> None:
    """A third is gone, not at a frame's end."""
    log = _log_of(path)
    os.truncate(log, log.stat().st_size * 2 // 3 + 1)


def cut_log_end(path: Path) -> None:
    """The last transactions are gone."""
    log = _log_of(path)
    os.truncate(log, log.stat().st_size - 5 * 4096)


def flip_log(path: Path) -> None:
    """One bit in the midst of it."""
    _flip(_log_of(path), _log_of(path).stat().st_size // 2)


def lose_log(path: Path) -> None:
    _log_of(path).unlink()


def cut_state(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty_state(path: Path) -> None:
    os.truncate(path, 0)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def move_clock(base: Base, folder: Path, expected: EndState) -> Outcome:
    """A year ahead while somebody's next try is put off, then back; hours back in the next round, and ahead again."""
    with Run(base, folder, phases=2) as run:
        clock = folder / CLOCK_FILE
        clock.write_text(str(_YEAR_S))
        run.go(has_attempts)
        clock.write_text("0")
        run.go(has_judged(6))
        clock.write_text(str(-7 * 3600.0))
        run.go(has_judged(8))
        clock.write_text(str(7 * 3600.0))
        run.go()
        # What was missing is looked for again after six hours, as it should be, and so has a turn in the next round.
        return run.finish(expected, but=("entries",))


def has_attempts(run: Run) -> bool:
    """True once a try came to nothing and that is recorded."""
    return run.glance.attempts > 0


def kill_worker(base: Base, folder: Path, expected: EndState) -> Outcome:
    """The worker is killed while it loads, while it trains and while it evaluates."""
    # A worker that cannot even load ends the validator, whose supervisor starts it again.
    with Run(base, folder, phases=1, may_end=(_HOST_FAILED,)) as run:
        for stage in ("load", "train", "evaluate"):
            worker = _stop_in(run, stage)
            os.kill(worker, signal.SIGKILL)
            run.outcome.kills[f"worker in stage {stage} |"] += 1
            (run.folder / STAGE_FILE).unlink()
        run.go()
        return run.finish(expected)


def freeze_worker(base: Base, folder: Path, expected: EndState) -> Outcome:
    """The worker is stopped for good, as by SIGSTOP: only its time limits tell."""
    with Run(base, folder, phases=1, executor_speed=200.0) as run:
        worker = _stop_in(run, "train")
        os.kill(worker, signal.SIGSTOP)
        (run.folder / STAGE_FILE).unlink()
        run.go()
        if Path(f"/proc/{worker}").exists():
            run.outcome.findings.append(f"the stopped worker {worker} is still there")
        return run.finish(expected)


def freeze_validator(base: Base, folder: Path, expected: EndState) -> Outcome:
    """The validator is stopped for a while, so that nobody reads what its worker says, and goes on."""
    with Run(base, folder, phases=1) as run:
        run.go(has_judged(4))
        assert run.process is not None
        os.kill(run.process.pid, signal.SIGSTOP)
        time.sleep(2.0)
        os.kill(run.process.pid, signal.SIGCONT)
        run.go()
        return run.finish(expected)


def _stop_in(run: Run, stage: str) -> int:
    """Has the worker stay in a stage; its process, once it is there."""
    (run.folder / STAGE_FILE).write_text(stage, encoding="utf-8")
    run.go(lambda _: is_reached(run.folder) is not None)
    worker = is_reached(run.folder)
    assert worker is not None, run.last_words()
    return worker


def kill_real_worker(base: Base, folder: Path, expected: EndState) -> Outcome:
    """The worker that trains is killed while it loads, and twice while it scores."""
    with Run(base, folder, phases=1, is_real=True, may_end=(_HOST_FAILED,)) as run:
        for stage in ("load", "score", "score"):
            run.go(Run.is_at_work if stage == "score" else lambda run: run.worker() is not None)
            time.sleep(1.0 if stage == "load" else 0.05)
            if (worker := run.worker()) is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                run.outcome.kills[f"real worker in stage {stage} |"] += 1
        run.go()
        return run.finish(expected)


def block_pipes(base: Base, folder: Path, expected: EndState) -> Outcome:
    """Nobody reads what the validator logs: the pipes on stderr and stdout are full after the first lines."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(writing, _F_SETPIPE_SZ, _PIPE_BYTES)
        with Run(base, folder, phases=2) as run:
            run.start(stderr=writing, stdout=writing)
            run.go()
            said = run.finish(expected)
            said.notes.append(f"a pipe of {_PIPE_BYTES} bytes")
            return said
    finally:
        os.close(reading)
        os.close(writing)


def take_descriptors(base: Base, folder: Path, expected: EndState) -> Outcome:
    """No more files can be opened for a while, in the midst of the scores."""
    with Run(base, folder, phases=2, may_end=(_HOST_FAILED,)) as run:
        run.go(has_judged(2))
        process = run.process
        assert process is not None
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used, hard))
        until = time.monotonic() + 3.0
        run.go(lambda run: time.monotonic() > until or run.process is not process)
        if run.process is process:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        run.go()
        return run.finish(expected)


FAULTS = (
    Fault("disk full", fill_disk),
    Fault("state read-only", forbid_writing),
    Fault("log cut short", damage(cut_log, after=has_judged(4))),
    Fault("log's end lost after weights", damage(cut_log_end, after=is_paid)),
    Fault("log with a flipped bit", damage(flip_log, after=has_judged(4))),
    Fault("log lost", damage(lose_log, after=has_judged(4))),
    Fault("state cut short", damage(cut_state, after=has_judged(4), is_closed=True, is_fatal=True)),
    Fault("state empty", damage(empty_state, after=has_judged(4), is_closed=True)),
    Fault("state empty beside its log", damage(empty_state, after=has_judged(4))),
    Fault("clock a year ahead, and back", move_clock),
    Fault("worker killed in each stage", kill_worker),
    Fault("worker stopped", freeze_worker),
    Fault("validator stopped", freeze_validator),
    Fault("stderr and stdout full", block_pipes),
    Fault("no descriptors left", take_descriptors),
)
REAL_FAULTS = (Fault("worker killed", kill_real_worker),)
