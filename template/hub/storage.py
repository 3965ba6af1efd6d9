"""A folder with one downloaded file and a record of its repo, revision and digest.

A folder may be used for one revision after another. The record is valid only while the file has its digest, so a
file damaged by a crash or an edit counts as not downloaded.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from template.constants import DATA_FILE
from template.errors import HostError
from template.files import write_atomic

_RECORD_FILE = ".source.json"
_CHUNK_BYTES = 2**20
# Older than this, a temporary file belongs to a process that was killed: no download takes so long.
_STALE_S = 7_200.0
# `.incoming-*` is what version 0.3 called them.
_TEMPORARY = (f".{DATA_FILE}.*", f".{_RECORD_FILE}.*", ".incoming-*")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A downloaded file; `revision` as requested, `size` in bytes."""

    path: Path
    repo: str
    revision: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """A file of a dataset repo; filename None is the repo's only .jsonl file.

    revision: a full commit, or the sha256 of the file on the branch `main`.
    """

    repo: str
    revision: str
    filename: str | None


def find_cached(folder: Path, request: Request) -> HubFile | None:
    """Return the folder's file if it is the requested one and intact."""
    path = folder / DATA_FILE
    with _translate_disk_errors(folder):
        try:
            record = json.loads((folder / _RECORD_FILE).read_bytes())
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None
        size = path.stat().st_size
    if record != _make_record(request, sha256, size):
        return None
    return HubFile(path=path, repo=request.repo, revision=request.revision, sha256=sha256, size=size)


def save(folder: Path, request: Request, chunks: Iterable[bytes]) -> HubFile:
    """Replace the folder's file by `chunks` once all of them have arrived."""
    digest, size = hashlib.sha256(), 0

    def count() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    path = folder / DATA_FILE
    with _translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale_files(folder)
        write_atomic(path, count(), mode=0o644)
        record = _make_record(request, digest.hexdigest(), size)
        write_atomic(folder / _RECORD_FILE, [json.dumps(record).encode()], mode=0o644)
    return HubFile(path=path, repo=request.repo, revision=request.revision, sha256=digest.hexdigest(), size=size)


def copy_cached(source: HubFile, folder: Path, request: Request) -> HubFile:
    """Copy a downloaded file into another folder. Raises: HostError."""
    with _translate_disk_errors(source.path.parent), source.path.open("rb") as file:
        return save(folder, request, iter(lambda: file.read(_CHUNK_BYTES), b""))


def _make_record(request: Request, sha256: str, size: int) -> dict[str, object]:
    return {**asdict(request), "sha256": sha256, "size": size}


def _remove_stale_files(folder: Path) -> None:
    for path in (path for pattern in _TEMPORARY for path in folder.glob(pattern)):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - _STALE_S:
                path.unlink()


@contextmanager
def _translate_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"cannot read or write the dataset in {folder}: {error.strerror or error}") from error
