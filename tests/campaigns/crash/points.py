"""Crash points: where a validator's process is killed.

Its state file's transactions, each rename, removal and fsync below its folder, and each step of an extrinsic are
points. At a point that is due and not yet in the file `kills`, the process writes the name there and kills itself.
"""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote

import template
from tests.campaigns.process_under_test import set_default

ROUND_BLOCKS = 360
KILLS_FILE, EVENTS_FILE, CLOCK_FILE = "kills", "events", "clock_offset"
_PACKAGE = str(Path(template.__file__).resolve().parent)
_FOLDERS = {"receipts": "receipt", "rounds": "round file"}
_FILE_CALLS = ("replace", "rename", "unlink", "remove", "rmdir", "fsync")
# Between a statement and the method of the store that it is for.
_PLUMBING = ("store/database.py", "hub/storage.py", "files.py")
_RANDOM_NAME = re.compile(r"^\.(.*\.jsonl?)\.\w+$")


def kind_of(point: str) -> str:
    """Return the kind of a point: what happens there, and to what."""
    what, _, detail = point.partition(" | ")
    what = what.removesuffix(" |")
    return f"{what} {_FOLDERS.get(detail.partition('/')[0], 'dataset')}" if what.split()[-1] in _FILE_CALLS else what


class CrashPoints:
    """Writes down each point that is passed, and kills the process at due ones.

    Args:
        folder: of the run, with the files of kills and events.
        watched: files below this folder count.
        share, shares: points whose name's checksum falls to this share are due; none while `shares` is 0.
        is_once: only one point of each kind is due.
        targets: points that are due in any share.
    """

    def __init__(
        self, folder: Path, watched: Path, *, share: int, shares: int, is_once: bool, targets: Collection[str]
    ) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._events = os.open(folder / EVENTS_FILE, flags, 0o666)
        self._kills = os.open(folder / KILLS_FILE, flags, 0o666)
        self._done = set((folder / KILLS_FILE).read_text(encoding="utf-8").splitlines())
        self._watched = str(watched)
        self._share, self._shares, self._is_once, self._targets = share, shares, is_once, targets

    def is_watched(self, path: str) -> bool:
        return path == self._watched or path.startswith(self._watched + os.sep)

    def reach(self, kind: str, detail: str) -> None:
        """Note a point; does not return when it is due."""
        name = " ".join(f"{kind} | {detail}".split())
        # A limit on the size of files is a fault meant for the validator.
        with contextlib.suppress(OSError):
            os.write(self._events, f"{name}\n".encode())
        if name not in self._done and self._is_due(name):
            os.write(self._kills, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
            # No other thread may pass a point until the kernel has ended the process: this one keeps the interpreter.
            while True:
                pass

    def _is_due(self, name: str) -> bool:
        if name in self._targets:
            return True
        if not self._shares or zlib.crc32(name.encode()) % self._shares != self._share:
            return False
        return not self._is_once or kind_of(name) not in map(kind_of, self._done)

    def around(self, what: str, detail: str, call: Callable[[], Any]) -> Any:
        self.reach(f"before {what}", detail)
        result = call()
        self.reach(f"after {what}", detail)
        return result


def install(
    folder: str, watched: str, began_at: float, speed: float, executor_speed: float, evaluator: str | None, **due: Any
) -> None:
    """Prepare a validator's process.

    Args:
        began_at, speed: its clock runs so many times as fast since then.
        executor_speed: the same for its workers' time limits.
        evaluator: program to run in place of a worker, None for the real one.
    """
    points = CrashPoints(Path(folder), Path(watched), **due)
    _watch_sqlite(points)
    _watch_files(points)
    _watch_extrinsics(points)
    _replace_clocks(Path(folder), began_at, speed, executor_speed)
    if evaluator is not None:
        sys.executable = evaluator


def _describe_caller() -> str:
    """Return the product's method that makes the call, and its subject."""
    name, subject = "", ""
    for frame in _product_frames():
        name = name or frame.f_code.co_name
        subject = subject or _subject(frame.f_locals)
        if name and subject:
            break
    return f"{name} {subject}".strip()


def _product_frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE) and "localnet" not in path and not path.endswith(_PLUMBING):
            yield frame
        frame = frame.f_back


def _subject(values: dict[str, Any]) -> str:
    key: Any = values.get("key")
    if hasattr(key, "commitment"):
        return f"{key.hotkey[:10]} {key.commitment[-40:]}"
    if "metrics" in values:
        return f"{values['metrics'].doing}, round {values['metrics'].round_id}"
    current: Any = values.get("current") or values.get("opened")
    if hasattr(current, "start_block"):
        return f"round of block {current.start_block}"
    for name in ("round_id", "intent_id", "competition"):
        if name in values:
            return f"{name} {getattr(values[name], 'id', values[name])}"
    return f"{len(values['seen'])} seen" if "seen" in values else ""


def _watch_sqlite(points: CrashPoints) -> None:
    """Make points of each BEGIN, each COMMIT and the journal mode of a state file."""
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    class WatchedConnection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> Any:
            word = sql.split(maxsplit=1)[0]
            if word in ("BEGIN", "COMMIT"):
                return points.around(word, _describe_caller(), lambda: super(WatchedConnection, self).execute(sql))
            if sql.startswith("PRAGMA journal_mode"):
                return points.around("journal_mode", "", lambda: super(WatchedConnection, self).execute(sql))
            return super().execute(sql, *values)

    def watched_connect(database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        if points.is_watched(unquote(str(database).removeprefix("file://").partition("?")[0])):
            options["factory"] = WatchedConnection
        return connect(database, *args, **options)

    sqlite3.connect = watched_connect  # type: ignore[assignment]


def _watch_files(points: CrashPoints) -> None:
    """Make points of each rename, removal and fsync below the watched folder."""
    # It reads the sets of os.supports_* when it is imported.
    assert shutil

    def wrap(name: str, describe: Callable[..., str | None]) -> None:
        original = getattr(os, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            detail = describe(*args, **options)
            if detail is None:
                return original(*args, **options)
            return points.around(name, f"{detail} {_describe_caller()}", lambda: original(*args, **options))

        for capable in (os.supports_dir_fd, os.supports_follow_symlinks, os.supports_fd):
            if original in capable:
                capable.add(wrapped)
        setattr(os, name, wrapped)

    def describe_path(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
        whole = (Path() if dir_fd is None else _path_of(dir_fd)) / os.fsdecode(path)
        return _stable_name(whole) if points.is_watched(str(whole)) else None

    for name in ("replace", "rename"):
        wrap(name, lambda _, target, **__: describe_path(target))
    for name in ("unlink", "remove", "rmdir"):
        wrap(name, describe_path)
    wrap("fsync", lambda file: describe_path(_path_of(file if isinstance(file, int) else file.fileno())))


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _stable_name(path: Path) -> str:
    """Return a file's name without the part that differs in each process."""
    name = _RANDOM_NAME.sub(r".\1.TMP", path.name)
    return f"{path.parent.name}/{name}"


def _watch_extrinsics(points: CrashPoints) -> None:
    """Make points of an extrinsic: before it is sent, landed, answered."""
    from template.localnet.chain import substrate

    apply, submit = substrate._apply, substrate.LocalSubstrate.submit

    def describe(ledger: Any) -> str:
        return f"round of block {ledger.block() // ROUND_BLOCKS * ROUND_BLOCKS}"

    def watched_apply(ledger: Any, signer: str, data: bytes) -> Any:
        detail = describe(ledger)
        points.reach("before extrinsic is sent", detail)
        result = apply(ledger, signer, data)
        points.reach("after extrinsic has landed", detail)
        return result

    async def watched_submit(self: Any, *args: Any, **options: Any) -> Any:
        answer = await submit(self, *args, **options)
        points.reach("after extrinsic is answered", describe(self._open()))
        return answer

    substrate._apply = watched_apply
    substrate.LocalSubstrate.submit = watched_submit  # type: ignore[method-assign]


def _replace_clocks(folder: Path, began_at: float, speed: float, executor_speed: float) -> None:
    """Give validator and executor faster clocks; a file shifts the first."""
    from template.validator.loop import Validator
    from template.workers.supervisor import WorkerPool

    offset = folder / CLOCK_FILE

    def now() -> float:
        ahead = float(offset.read_text() or 0) if offset.exists() else 0.0
        return began_at + (time.time() - began_at) * speed + ahead

    set_default(Validator, "now", now)
    set_default(WorkerPool, "now", now)
    set_default(WorkerPool, "clock", lambda: time.monotonic() * executor_speed)
