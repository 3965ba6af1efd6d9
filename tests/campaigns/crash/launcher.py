"""Runs a program of this repository as it is, watched from outside, and kills it where it is told to.

    python -m tests.campaigns.crash.launcher PLAN.json ARGUMENTS...

Started by `tests.campaigns.crash.run`, never by hand. Before the program is imported, what it calls at its crash
points is wrapped: the transactions of its state file, each change of a name and each fsync below its folders, and the
submission of extrinsics. Each passage of such a point gets a name that the next process gives it, too. A process that
comes to a point at which none was killed yet writes the name down and sends SIGKILL to itself. The clocks that the
validator and its executor were given are replaced by faster ones. The product has no part in any of this.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import runpy
import shutil
import signal
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote

import template

ROUND_BLOCKS = 360
KILLS_FILE, EVENTS_FILE, CLOCK_FILE = "kills", "events", "clock"

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1

_PACKAGE = str(Path(template.__file__).resolve().parent)
_PLACES = {"receipts": "receipt", "rounds": "round file"}
# What stands between a statement and the method of the store that it is for.
_PLUMBING = ("store/database.py", "hub/storage.py")
_MADE_UP = (
    (re.compile(r"^\.(.*\.json)\.\w+$"), r".\1.TMP"),
    (re.compile(r"^\.(.*\.jsonl)\.\w+$"), r".\1.TMP"),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to one process.

    folder: of the run, where kills and events are written down. watched: the folder below which a file counts.
    share: this run kills at the points whose name falls to `share` of `shares`; none when shares is 0. is_once: at one
    point of each kind only. targets: points that it kills at whatever their share. scorer: what is
    started in place of a worker, None for the real one. speed: seconds that the validator's clock makes of one since
    began_at, the run's beginning; executor_speed: the same of the clock that its workers' time limits go by. nofile,
    fsize: limits of the process.
    """

    folder: str
    script: str
    watched: str
    began_at: float
    share: int = 0
    shares: int = 0
    is_once: bool = False
    targets: tuple[str, ...] = ()
    evaluator: str | None = None
    speed: float = 1.0
    executor_speed: float = 1.0
    nofile: int | None = None
    fsize: int | None = None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def kind_of(point: str) -> str:
    """The kind of a crash point, by its name: what happens there, and to what."""
    what, _, detail = point.partition(" | ")
    what = what.removesuffix(" |")
    if what.split()[-1] in ("replace", "rename", "unlink", "remove", "rmdir", "fsync"):
        what = f"{what} {_PLACES.get(detail.partition('/')[0], 'dataset')}"
    return what


class Watch:
    """Writes down every crash point that is passed, and ends the process at those that are due."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        folder = Path(plan.folder)
        self._events = os.open(folder / EVENTS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._kills = os.open(folder / KILLS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._done = set((folder / KILLS_FILE).read_text(encoding="utf-8").splitlines())
        self._watched = str(Path(plan.watched).resolve())

    def is_watched(self, path: str) -> bool:
        return path == self._watched or path.startswith(self._watched + os.sep)

    def point(self, kind: str, detail: str) -> None:
        """The process is at a point. It may not return."""
        name = " ".join(f"{kind} | {detail}".split())
        # A limit on the size of files is a fault that is meant for others.
        with contextlib.suppress(OSError):
            os.write(self._events, f"{name}\n".encode())
        if name not in self._done and self._is_target(name):
            os.write(self._kills, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
            # Until the kernel has done it, no other thread may pass a point either: the interpreter is held.
            while True:
                pass

    def _is_target(self, name: str) -> bool:
        plan = self._plan
        if name in plan.targets:
            return True
        if not plan.shares or zlib.crc32(name.encode()) % plan.shares != plan.share:
            return False
        return not plan.is_once or kind_of(name) not in map(kind_of, self._done)

    def around(self, what: str, detail: str, work: Callable[[], Any]) -> Any:
        self.point(f"before {what}", detail)
        done = work()
        self.point(f"after {what}", detail)
        return done


def describe_caller() -> str:
    """For what the product does this: the method it is in, and the submission, round or intent that it is about."""
    name, about = "", ""
    for frame in _product_frames():
        name = name or frame.f_code.co_name
        about = about or _about(frame)
        if name and about:
            break
    return f"{name} {about}".strip()


def _product_frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE) and "localnet" not in path and not path.endswith(_PLUMBING):
            yield frame
        frame = frame.f_back


def _about(frame: FrameType) -> str:
    values = frame.f_locals
    key: Any = values.get("key")
    if hasattr(key, "entry"):
        return f"{key.hotkey[:10]} {key.commitment[-40:]}"
    if "metrics" in values:
        metrics = values["metrics"]
        return f"{metrics.doing}, round {metrics.round_id}"
    current: Any = values.get("current") or values.get("opened")
    if hasattr(current, "start_block"):
        return f"round of block {current.start_block}"
    for name in ("round_id", "intent_id", "competition"):
        if name in values:
            return f"{name} {getattr(values[name], 'id', values[name])}"
    return f"{len(values['seen'])} seen" if "seen" in values else ""


def watch_sqlite(watch: Watch) -> None:
    """Every transaction of a state file: before and after its BEGIN, before and after its COMMIT."""
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            word = sql.split(maxsplit=1)[0]
            if word in ("BEGIN", "COMMIT"):
                found: sqlite3.Cursor = watch.around(word, describe_caller(), lambda: super(Watched, self).execute(sql))
                return found
            if sql.startswith("PRAGMA journal_mode"):
                return watch.around("journal_mode", "", lambda: super(Watched, self).execute(sql))  # type: ignore[no-any-return]
            return super().execute(sql, *values)

    def watched_connect(database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        path = unquote(str(database).removeprefix("file://").partition("?")[0])
        if watch.is_watched(path):
            options["factory"] = Watched
        return connect(database, *args, **options)

    sqlite3.connect = watched_connect  # type: ignore[assignment]


def watch_files(watch: Watch) -> None:
    """Every new name, every removal and every fsync below the watched folder."""
    # It asks what the calls can do when it is imported.
    assert shutil

    def wrap(name: str, describe: Callable[..., str | None]) -> None:
        original = getattr(os, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            detail = describe(*args, **options)
            if detail is None:
                return original(*args, **options)
            return watch.around(name, f"{detail} {describe_caller()}", lambda: original(*args, **options))

        # Which of them take a folder's descriptor is told by what stands in these sets.
        for capable in (os.supports_dir_fd, os.supports_follow_symlinks, os.supports_fd):
            if original in capable:
                capable.add(wrapped)
        setattr(os, name, wrapped)

    def of_path(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
        folder = Path() if dir_fd is None else _find(dir_fd)
        whole = folder / os.fsdecode(path)
        return _spell(whole) if watch.is_watched(str(whole)) else None

    def of_target(_: Any, target: Any, **__: Any) -> str | None:
        return of_path(target)

    def of_file(fd: Any) -> str | None:
        path = _find(fd if isinstance(fd, int) else fd.fileno())
        return _spell(path) if watch.is_watched(str(path)) else None

    for name in ("replace", "rename"):
        wrap(name, of_target)
    for name in ("unlink", "remove", "rmdir"):
        wrap(name, of_path)
    wrap("fsync", of_file)


def _find(fd: int) -> Path:
    """Where the file of a descriptor is."""
    return Path(f"/proc/self/fd/{fd}").readlink()


def _spell(path: Path) -> str:
    """A file's name without what is another in each process."""
    name = path.name
    for pattern, plain in _MADE_UP:
        name = pattern.sub(plain, name)
    return f"{path.parent.name}/{name}"


def watch_extrinsics(watch: Watch) -> None:
    """The way of an extrinsic: before it is sent, when it is on the chain, when its answer was read."""
    from template.localnet.chain import substrate

    apply, submit = substrate._apply, substrate.LocalSubstrate.submit_signed

    def watched_apply(ledger: Any, extrinsic: Any) -> Any:
        detail = f"round of block {ledger.block() // ROUND_BLOCKS * ROUND_BLOCKS}"
        watch.point("before extrinsic is sent", detail)
        included = apply(ledger, extrinsic)
        watch.point("after extrinsic has landed", detail)
        return included

    async def watched_submit(self: Any, *args: Any, **options: Any) -> Any:
        answer = await submit(self, *args, **options)
        head = self._open().block()
        watch.point("after extrinsic is answered", f"round of block {head // ROUND_BLOCKS * ROUND_BLOCKS}")
        return answer

    substrate._apply = watched_apply
    substrate.LocalSubstrate.submit_signed = watched_submit  # type: ignore[method-assign]


def replace_clocks(plan: Plan) -> None:
    """Gives the validator a clock that is faster and can be put forward and back, and its executor a faster one."""
    from template.validator.loop import Validator
    from template.workers.supervisor import WorkerPool

    clock = Path(plan.folder) / CLOCK_FILE

    def now() -> float:
        ahead = float(clock.read_text() or 0) if clock.exists() else 0.0
        return plan.began_at + (time.time() - plan.began_at) * plan.speed + ahead

    def steady() -> float:
        return time.monotonic() * plan.executor_speed

    for kind, name, value in ((Validator, "now", now), (WorkerPool, "now", now), (WorkerPool, "clock", steady)):
        defaults: Any = getattr(kind, "__init__").__kwdefaults__  # noqa: B009
        assert name in defaults, f"{kind.__name__} has no clock of the name {name} any more"
        defaults[name] = value


def set_parent_death_signal() -> None:
    """Whoever kills the campaign has no validators left."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Sets everything up and becomes the program."""
    set_parent_death_signal()
    plan = Plan.load(Path(sys.argv[1]))
    for kind, limit in ((resource.RLIMIT_NOFILE, plan.nofile), (resource.RLIMIT_FSIZE, plan.fsize)):
        if limit is not None:
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    watch = Watch(plan)
    watch_sqlite(watch)
    watch_files(watch)
    watch_extrinsics(watch)
    replace_clocks(plan)
    if plan.evaluator is not None:
        sys.executable = plan.evaluator
    sys.argv = [plan.script, *sys.argv[2:]]
    runpy.run_path(plan.script, run_name="__main__")


if __name__ == "__main__":
    main()
