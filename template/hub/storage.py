"""A folder that holds one dataset file and the record of where it came from, never two revisions mixed.

The record carries the file's sha256 and counts only while the file still matches it, so whatever a crash or an
editor leaves behind reads as "nothing known". The order of the steps says the same without the digest: the old
record goes first, then the file is renamed into place, then the new record. Standard library only.
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from template import constants
from template.errors import HostError

SOURCE_FILE = ".source.json"
_PART_PREFIX = ".incoming-"
_CHUNK_BYTES = 2**20
_MAX_SOURCE_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file fetched from the Hub: `path` is the folder's `data.jsonl`, `revision` as asked for, `size` in bytes."""

    path: Path
    repo: str
    revision: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked of the Hub. filename None stands for "the one .jsonl file of the repo".

    revision: a full commit, or the sha256 of the file, wherever `main` is when it is fetched.
    """

    repo: str
    revision: str
    filename: str | None


class PartialDownload:
    """A file on its way into `folder`: hashed and counted while it is written, and invisible until installed.

    size: the bytes that are to come, which the git blob id depends on. It is removed by `abort`, or, when the
    process was killed, by the next one in the same folder. Raises: HostError when the disk does not play along.
    """

    def __init__(self, folder: Path, size: int) -> None:
        with translate_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                _sweep(folder)
                handle, name = tempfile.mkstemp(prefix=_PART_PREFIX, dir=folder)
                self._file = os.fdopen(handle, "wb")
                # Held for as long as this process lives: how `_sweep` tells a live part from a dead one.
                fcntl.flock(handle, fcntl.LOCK_EX)
        self.folder = folder
        self.received = 0
        self._part = Path(name)
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    @property
    def sha256(self) -> str:
        """The digest, in hex, of what was written so far."""
        return self._sha256.hexdigest()

    @property
    def git_oid(self) -> str:
        """The git blob id of what was written, true once `size` bytes are there."""
        return self._git.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append `chunk`."""
        with translate_disk_errors(self.folder):
            self._file.write(chunk)
        self.received += len(chunk)
        self._sha256.update(chunk)
        self._git.update(chunk)

    def commit(self, request: Request) -> HubFile:
        """Make this the folder's file, with the record that it answers `request`."""
        record = {**asdict(request), "sha256": self.sha256, "size": self.received}
        path = self.folder / constants.DATA_FILE
        with translate_disk_errors(self.folder), _locked(self.folder) as folder_fd:
            self._file.flush()
            os.fchmod(self._file.fileno(), 0o644)
            os.fsync(self._file.fileno())
            (self.folder / SOURCE_FILE).unlink(missing_ok=True)
            os.fsync(folder_fd)
            os.replace(self._part, path)
            _write_source(self.folder, record)
            os.fsync(folder_fd)
        self._file.close()
        return HubFile(path=path, repo=request.repo, revision=request.revision, sha256=self.sha256, size=self.received)

    def abort(self) -> None:
        """Forget the part; harmless after `commit` and when called again."""
        try:
            # Closing flushes, which fails on a full disk: the reason for discarding is already on its way up.
            with suppress(OSError):
                self._file.close()
        finally:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)


def find_cached(folder: Path, request: Request) -> HubFile | None:
    """The folder's file when its record says it answers `request` and its bytes still match; else None.

    A record that names `request` but no longer fits the file is removed, so that nobody trusts it later.
    Raises: HostError when the folder is there but cannot be read.
    """
    if not folder.is_dir():
        return None
    path = folder / constants.DATA_FILE
    with translate_disk_errors(folder), _locked(folder):
        record = _read_source(folder)
        if record is None or any(record.get(key) != value for key, value in asdict(request).items()):
            return None
        sha256, size = record.get("sha256"), record.get("size")
        if isinstance(sha256, str) and isinstance(size, int) and _matches(path, sha256, size):
            return HubFile(path=path, repo=request.repo, revision=request.revision, sha256=sha256, size=size)
        (folder / SOURCE_FILE).unlink(missing_ok=True)
    return None


def copy_cached(held: HubFile, folder: Path, request: Request) -> HubFile:
    """Install the bytes of `held` in `folder` too. Raises: HostError when they changed under our hands."""
    incoming = PartialDownload(folder, held.size)
    try:
        with translate_disk_errors(held.path.parent), held.path.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                incoming.write(chunk)
        if incoming.sha256 != held.sha256:
            raise HostError(f"{held.path} changed while it was being copied")
        return incoming.commit(request)
    finally:
        incoming.abort()


def _matches(path: Path, sha256: str, size: int) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _read_source(folder: Path) -> dict[str, object] | None:
    try:
        with (folder / SOURCE_FILE).open("rb") as file:
            record = json.loads(file.read(_MAX_SOURCE_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _write_source(folder: Path, record: dict[str, object]) -> None:
    handle, name = tempfile.mkstemp(prefix=_PART_PREFIX, dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fchmod(handle, 0o644)
        os.fsync(handle)
    os.replace(name, folder / SOURCE_FILE)


def _sweep(folder: Path) -> None:
    """Remove the parts of processes that died, telling them by their lock being free."""
    for part in folder.glob(f"{_PART_PREFIX}*"):
        with suppress(FileNotFoundError, BlockingIOError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the folder against other processes and threads, which a kill releases; yields its descriptor."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def translate_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise HostError(f"cannot keep a dataset in {folder}: {exc.strerror or type(exc).__name__}") from exc
