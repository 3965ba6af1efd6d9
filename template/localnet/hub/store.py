"""The local hub's content on disk: repos, their commits, and file contents by git blob id.

::

    ROOT/tokens.json                      {token: owner}, besides the built-in `hf_local_OWNER`
    ROOT/blobs/ab/abcdef...               one file's content, named by its git blob id
    ROOT/datasets/OWNER/NAME/repo.json    {head, private, created}; models likewise
    ROOT/datasets/OWNER/NAME/commits/SHA  {parent, message, time, files: {path: [blob id, size]}}

Everything but repo.json is written once, and repo.json is replaced in one rename under the repo's lock, so several
servers and direct readers share one root. Paths inside repos never become paths on disk.
"""

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from template.competition import is_repo_id

KINDS = ("datasets", "models")
BRANCH = "main"
LOCAL_TOKEN_PREFIX = "hf_local_"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK_BYTES = 2**20
_FIRST_FILE = {".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n"}
_MAX_PATH_CHARS = 500


class HubError(Exception):
    """What the Hub says no with: an HTTP status, a sentence, and the X-Error-Code its client reads, if any."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Blob:
    """One file's content: its git blob id and size in bytes."""

    oid: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One state of a repo: `files` by path, `time_s` in seconds since the epoch."""

    sha: str
    parent: str | None
    message: str
    time_s: int
    files: Mapping[str, Blob]


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repo as it is now. kind: "datasets" or "models". head: the commit that main names."""

    kind: str
    id: str
    head: str
    private: bool
    created_s: int


def check_path(path: str) -> str:
    """`path` itself when a repo may hold a file there. Raises: HubError (400) when it climbs, is absolute or odd."""
    parts = path.split("/")
    is_odd = len(path) > _MAX_PATH_CHARS or not path.isprintable() or "\\" in path
    if is_odd or any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f"Invalid path in repo: {path[:80]!r}")
    return path


class HubStore:
    """Repos under `root`, which is made when it is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    def owner_of(self, token: str) -> str | None:
        """Who a token authenticates as; None when it is nobody's."""
        try:
            known = json.loads((self.root / "tokens.json").read_text())
        except FileNotFoundError:
            known = {}
        if token in known:
            return str(known[token])
        owner = token.removeprefix(LOCAL_TOKEN_PREFIX)
        return owner if owner != token and is_repo_id(f"{owner}/x") else None

    def add_token(self, token: str, owner: str) -> None:
        """Let `token` act as `owner` from now on, in every server on this root."""
        path = self.root / "tokens.json"
        with _locked(self.root):
            known = json.loads(path.read_text()) if path.exists() else {}
            _write_json(path, {**known, token: owner})

    def create(self, kind: str, repo_id: str, *, private: bool = False) -> bool:
        """Make a repo holding only .gitattributes; False when it is there already, left as it is."""
        folder = self._folder(kind, repo_id)
        folder.joinpath("commits").mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if (folder / "repo.json").exists():
                return False
            files = {path: self.add_blob(content) for path, content in _FIRST_FILE.items()}
            first = self._write_commit(folder, files, None, "initial commit")
            now_s = int(time.time())
            _write_json(folder / "repo.json", {"head": first, "private": private, "created_s": now_s})
        return True

    def set_private(self, kind: str, repo_id: str, private: bool) -> None:
        """Hides a repo from all but its owner, or shows it to everybody. Raises: HubError (RepoNotFound)."""
        folder = self._folder(kind, repo_id)
        with _locked(folder):
            repo = self.repo(kind, repo_id)
            _write_json(folder / "repo.json", {"head": repo.head, "private": private, "created_s": repo.created_s})

    def repo(self, kind: str, repo_id: str) -> Repo:
        """The repo as it is now. Raises: HubError (RepoNotFound)."""
        if kind in KINDS and is_repo_id(repo_id):
            try:
                state = json.loads((self._folder(kind, repo_id) / "repo.json").read_text())
                return Repo(kind=kind, id=repo_id, **state)
            except FileNotFoundError:
                pass
        raise HubError(404, "Repository not found", "RepoNotFound")

    def commit_at(self, repo: Repo, revision: str) -> Commit:
        """The commit that main, or a full commit id of this repo, names. Raises: HubError (RevisionNotFound)."""
        sha = repo.head if revision == BRANCH else revision
        if _COMMIT.fullmatch(sha):
            try:
                record = json.loads((self._folder(repo.kind, repo.id) / "commits" / sha).read_text())
            except FileNotFoundError:
                pass
            else:
                files = {path: Blob(**blob) for path, blob in record.pop("files").items()}
                return Commit(sha=sha, files=files, **record)
        raise HubError(404, f"Invalid rev id: {revision[:80]}", "RevisionNotFound")

    def commit(
        self,
        repo: Repo,
        changes: Mapping[str, Blob],
        *,
        removed: Iterable[str] = (),
        parent: str | None = None,
        message: str = "",
    ) -> str:
        """Put `changes` on top of main less `removed`, and return main's commit: the old one when nothing changed.

        parent: the commit that main must still be at. Raises: HubError (412) when it has moved on, (400) for a path
        that cannot be, such as a file below another file.
        """
        folder = self._folder(repo.kind, repo.id)
        with _locked(folder):
            repo = self.repo(repo.kind, repo.id)
            if parent is not None and parent != repo.head:
                raise HubError(
                    412, f"A commit has happened since. Expected parent {parent[:40]}, main is at {repo.head}"
                )
            before = self.commit_at(repo, BRANCH).files
            gone = set(removed)
            files = {**{path: blob for path, blob in before.items() if path not in gone}, **changes}
            _check_tree(files)
            if files == dict(before):
                return repo.head
            sha = self._write_commit(folder, files, repo.head, message)
            _write_json(folder / "repo.json", {"head": sha, "private": repo.private, "created_s": repo.created_s})
        return sha

    def add_blob(self, content: bytes | Path) -> Blob:
        """Store one file's content, given as bytes or as a file to copy, under its git blob id."""
        if isinstance(content, bytes):
            blob = Blob(oid=_git_oid(len(content), [content]), size=len(content))
            path = self.blob_path(blob)
            if not path.exists():
                _write_atomically(path, [content])
            return blob
        size = content.stat().st_size
        with content.open("rb") as file:
            blob = Blob(oid=_git_oid(size, _chunks(file)), size=size)
            path = self.blob_path(blob)
            if not path.exists():
                file.seek(0)
                _write_atomically(path, _chunks(file))
        return blob

    def blob_path(self, blob: Blob) -> Path:
        """Where the content of `blob` lies."""
        return self.root / "blobs" / blob.oid[:2] / blob.oid

    def _folder(self, kind: str, repo_id: str) -> Path:
        if kind not in KINDS or not is_repo_id(repo_id):
            raise HubError(400, f"Invalid repo: {kind[:20]!r} {repo_id[:100]!r}")
        return self.root / kind / repo_id

    def _write_commit(self, folder: Path, files: Mapping[str, Blob], parent: str | None, message: str) -> str:
        record = {
            "parent": parent,
            "message": message,
            "time_s": int(time.time()),
            "files": {path: asdict(blob) for path, blob in sorted(files.items())},
        }
        nonce = os.urandom(16).hex()  # or two equal histories would share commit ids, which git's do not
        sha = hashlib.sha1(json.dumps([record, nonce]).encode(), usedforsecurity=False).hexdigest()
        _write_json(folder / "commits" / sha, record)
        return sha


def upload_files(
    root: Path,
    repo_id: str,
    files: Mapping[str, bytes | Path],
    repo_type: str = "dataset",
    *,
    private: bool = False,
) -> str:
    """Add `files` to a repo under `root` without a server, making the repo if needed, and return main's commit.

    A Path is copied from disk, for model weights. Files that are there already and not named stay; unchanged
    content makes no new commit. Raises: HubError for an illegal repo id or path.
    """
    store = HubStore(root)
    kind = f"{repo_type}s"
    store.create(kind, repo_id, private=private)
    changes = {check_path(path): store.add_blob(content) for path, content in files.items()}
    return store.commit(store.repo(kind, repo_id), changes, message="published directly")


def _check_tree(files: Mapping[str, Blob]) -> None:
    for path in files:
        parents = path.split("/")[:-1]
        if any("/".join(parents[: depth + 1]) in files for depth in range(len(parents))):
            raise HubError(400, f"{path!r} lies below another file")


def _git_oid(size: int, chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _write_json(path: Path, value: object) -> None:
    _write_atomically(path, [json.dumps(value).encode()])


def _write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
    os.replace(name, path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
