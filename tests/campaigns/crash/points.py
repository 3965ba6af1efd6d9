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
import traceback
import zlib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bittensor._transport.interface import SubstrateConnection
from bittensor._transport.rpc import RpcSession

import template
from template.localnet.chain.ledger import Ledger
from tests.campaigns.process_under_test import set_default

ROUND_BLOCKS = 360
KILLS_FILE, EVENTS_FILE, CLOCK_FILE = "kills", "events", "clock_offset"
_PACKAGE = str(Path(template.__file__).resolve().parent)
_FOLDERS = {"receipts": "receipt", "rounds": "round file"}
_FILE_CALLS = ("replace", "rename", "unlink", "remove", "rmdir", "fsync")
# Between a statement and the method of the store that it is for.
_PLUMBING = ("store/database.py", "hub/storage.py", "files.py")
_RANDOM_NAME = re.compile(r"^\.(.*\.jsonl?)\.\w+$")
# Variables by which the points of a method differ, and the attribute to compare: of an int, itself.
_SUBJECTS = {
    "evaluation": "lucky_num",
    "key": "commitment",
    "metrics": "doing",
    "current": "start_block",
    "opened": "start_block",
    "snapshot": "block",
    "round_id": "real",
    "intent_id": "real",
    "competition": "id",
}


def kind_of(point: str) -> str:
    """Return the kind of a point: its action and the subject."""
    what, _, detail = point.partition(" | ")
    what = what.removesuffix(" |")
    return f"{what} {_FOLDERS.get(detail.partition('/')[0], 'dataset')}" if what.split()[-1] in _FILE_CALLS else what


class CrashPoints:
    """Writes down each point that is passed, and kills the process at due ones.

    Args:
        folder: of the run, with the files of kills and events.
        watched: files below this folder count.
        share, shares: points whose name's checksum falls to this share are due; none while `shares` is 0.
        is_once: only one point of each kind is due, and the kind's checksum counts.
        targets: points that are due in any share.
    """

    def __init__(
        self, folder: Path, watched: str, *, share: int, shares: int, is_once: bool, targets: Collection[str]
    ) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._events, self._kills = (os.open(folder / name, flags) for name in (EVENTS_FILE, KILLS_FILE))
        self._done = (folder / KILLS_FILE).read_text().splitlines()
        self._watched = watched
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
        drawn = kind_of(name) if self._is_once else name
        if not self._shares or zlib.crc32(drawn.encode()) % self._shares != self._share:
            return name in self._targets
        return not self._is_once or kind_of(name) not in map(kind_of, self._done)

    def around(self, what: str, detail: str, call: Callable[[], Any]) -> Any:
        self.reach(f"before {what}", detail)
        result = call()
        self.reach(f"after {what}", detail)
        return result


def install(
    folder: str,
    watched: str,
    chain_file: str,
    began_at: float,
    speed: float,
    executor_speed: float,
    worker: str | None,
    **due: Any,
) -> None:
    """Prepare a validator's process.

    Args:
        chain_file: of the subnet, whose newest block names the points of extrinsics.
        began_at, speed: its clock runs so many times as fast since then.
        executor_speed: the same for its workers' time limits.
        worker: program to run in place of a worker, None for the real one.
    """
    points = CrashPoints(Path(folder), watched, **due)
    _watch_sqlite(points)
    _watch_files(points)
    _watch_extrinsics(points, Path(chain_file))
    _replace_clocks(Path(folder), began_at, speed, executor_speed)
    if worker is not None:
        sys.executable = worker


def _describe_caller() -> str:
    """Return the product's method that makes the call, and its subject."""
    paths = [(frame, frame.f_code.co_filename) for frame, _ in traceback.walk_stack(None)]
    frames = [
        frame
        for frame, path in paths
        if path.startswith(_PACKAGE) and "localnet" not in path and not path.endswith(_PLUMBING)
    ]
    subjects = (getattr(frame.f_locals.get(name), field, None) for frame in frames for name, field in _SUBJECTS.items())
    subject = next((value for value in subjects if value is not None), "")
    return f"{frames[0].f_code.co_name if frames else ''} {subject}".strip()


def _watch_sqlite(points: CrashPoints) -> None:
    """Make points of each BEGIN, each COMMIT and the journal mode of a state file."""
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    class WatchedConnection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> Any:
            call = partial(super().execute, sql, *values)
            if sql.startswith("PRAGMA journal_mode"):
                return points.around("journal_mode", "", call)
            word = sql.split()[0]
            return points.around(word, _describe_caller(), call) if word in ("BEGIN", "COMMIT") else call()

    def watched_connect(database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        if points.is_watched(unquote(str(database).removeprefix("file://").partition("?")[0])):
            options["factory"] = WatchedConnection
        return connect(database, *args, **options)

    sqlite3.connect = watched_connect  # type: ignore[assignment]


def _watch_files(points: CrashPoints) -> None:
    """Make points of each rename, removal and fsync below the watched folder."""
    # It reads the sets of os.supports_* when it is imported.
    assert shutil

    def wrap(name: str, locate: Callable[..., Path]) -> None:
        original = getattr(os, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            path = locate(*args, **options)
            if not points.is_watched(str(path)):
                return original(*args, **options)
            # Without the part of a temporary file's name that differs in each process.
            stable_name = _RANDOM_NAME.sub(r".\1.TMP", path.name)
            detail = f"{path.parent.name}/{stable_name} {_describe_caller()}"
            return points.around(name, detail, lambda: original(*args, **options))

        setattr(os, name, wrapped)

    def whole(path: Any, *, dir_fd: int | None = None) -> Path:
        return (Path() if dir_fd is None else opened(dir_fd)) / os.fsdecode(path)

    def opened(file: Any) -> Path:
        return Path(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}").readlink()

    for name in ("replace", "rename"):
        wrap(name, lambda _, target, **__: whole(target))
    for name in ("unlink", "remove", "rmdir"):
        wrap(name, whole)
    wrap("fsync", opened)


def _watch_extrinsics(points: CrashPoints, chain_file: Path) -> None:
    """Make points of an extrinsic: before it is sent, landed, answered."""

    def reach(kind: str) -> None:
        with Ledger(chain_file) as ledger:
            points.reach(kind, f"round of block {ledger.block() // ROUND_BLOCKS * ROUND_BLOCKS}")

    request, submit = RpcSession.request, SubstrateConnection.submit_extrinsic

    async def watched_request(self: Any, method: str, params: Any = None) -> Any:
        if method != "author_submitAndWatchExtrinsic":
            return await request(self, method, params)
        reach("before extrinsic is sent")
        answer = await request(self, method, params)
        # The node puts a call into the next block before it answers.
        reach("after extrinsic has landed")
        return answer

    async def watched_submit(self: Any, *args: Any, **options: Any) -> Any:
        report = await submit(self, *args, **options)
        reach("after extrinsic is answered")
        return report

    RpcSession.request = watched_request  # type: ignore[method-assign]
    SubstrateConnection.submit_extrinsic = watched_submit  # type: ignore[method-assign]


def _replace_clocks(folder: Path, began_at: float, speed: float, executor_speed: float) -> None:
    """Give validator and executor faster clocks; a file shifts the first."""
    from template.chain.client import Chain
    from template.validator.loop import Validator
    from template.workers.supervisor import WorkerPool

    offset = folder / CLOCK_FILE

    def right_time() -> float:
        return began_at + (time.time() - began_at) * speed

    def now() -> float:
        return right_time() + (float(offset.read_text() or 0) if offset.exists() else 0.0)

    # The campaign makes no block while it waits for the validator, but the chain of a real one goes on.
    Chain.head_time = lambda self: right_time()  # type: ignore[method-assign]
    set_default(Validator, "now", now)
    set_default(WorkerPool, "now", now)
    set_default(WorkerPool, "clock", lambda: time.monotonic() * executor_speed)
