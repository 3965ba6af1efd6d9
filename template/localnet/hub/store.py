"""Content of the local hub on disk: repos, commits, and files by git blob id.

::

    ROOT/tokens.json                      {token: owner}, besides the built-in `hf_local_OWNER`
    ROOT/blobs/ab/abcdef...               one file's content, named by its git blob id
    ROOT/datasets/OWNER/NAME/repo.json    {head, private, created}; models likewise
    ROOT/datasets/OWNER/NAME/commits/SHA  {parent, message, time, files: {path: [blob id, size]}}

Every file but repo.json is written once, and repo.json is replaced in one rename under the repo's lock, so several
servers and direct readers share one root. Paths inside repos never become paths on disk.
"""

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from template.competition import is_repo_id

KINDS = ("datasets", "models")
BRANCH = "main"
LOCAL_TOKEN_PREFIX = "hf_local_"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIRST_FILE = {".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n"}
_MAX_PATH_CHARS = 500


class HubError(Exception):
    """A refused request: HTTP status, message, and the X-Error-Code for the client."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file's git blob id and its size in bytes."""

    oid: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit of a repo: `files` by path, `time_s` in seconds since the epoch."""

    sha: str
    parent: str | None
    message: str
    time_s: int
    files: Mapping[str, Blob]


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repo of kind "datasets" or "models"; `head` is main's commit."""

    kind: str
    id: str
    head: str
    private: bool
    created_s: int


def check_path(path: str) -> str:
    """Return a path that a repo may hold. Raises: HubError (400)."""
    parts = path.split("/")
    is_odd = len(path) > _MAX_PATH_CHARS or not path.isprintable() or "\\" in path
    if is_odd or any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f"Invalid path in repo: {path[:80]!r}")
    return path


class HubStore:
    """The repos under `root`, which is created if missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    def owner_of(self, token: str) -> str | None:
        """Return the user of a token, None for an unknown token."""
        tokens = self._tokens()
        if token in tokens:
            return tokens[token]
        owner = token.removeprefix(LOCAL_TOKEN_PREFIX)
        return owner if owner != token and is_repo_id(f"{owner}/x") else None

    def add_token(self, token: str, owner: str) -> None:
        """Let `token` act as `owner` from now on, in every server on this root."""
        with locked(self.root):
            write_json(self.root / "tokens.json", {**self._tokens(), token: owner})

    def _tokens(self) -> dict[str, str]:
        path = self.root / "tokens.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def create(self, kind: str, repo_id: str, *, private: bool = False) -> bool:
        """Create a repo with only .gitattributes; return False for an existing one."""
        folder = self._folder(kind, repo_id)
        folder.joinpath("commits").mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if (folder / "repo.json").exists():
                return False
            files = {path: self.add_blob(content) for path, content in _FIRST_FILE.items()}
            first = self._write_commit(folder, files, None, "initial commit")
            now_s = int(time.time())
            write_json(folder / "repo.json", {"head": first, "private": private, "created_s": now_s})
        return True

    def set_private(self, kind: str, repo_id: str, private: bool) -> None:
        """Make a repo private or public. Raises: HubError (RepoNotFound)."""
        folder = self._folder(kind, repo_id)
        with locked(folder):
            repo = self.repo(kind, repo_id)
            write_json(folder / "repo.json", {"head": repo.head, "private": private, "created_s": repo.created_s})

    def repo(self, kind: str, repo_id: str) -> Repo:
        """Return a repo. Raises: HubError (RepoNotFound)."""
        if kind in KINDS and is_repo_id(repo_id):
            try:
                state = json.loads((self._folder(kind, repo_id) / "repo.json").read_text())
                return Repo(kind=kind, id=repo_id, **state)
            except FileNotFoundError:
                pass
        raise HubError(404, "Repository not found", "RepoNotFound")

    def commit_at(self, repo: Repo, revision: str) -> Commit:
        """Return a commit by its id or "main". Raises: HubError (RevisionNotFound)."""
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

    def commit(self, repo: Repo, changes: Mapping[str, Blob], *, parent: str | None = None, message: str = "") -> str:
        """Add `changes` to main; return main's commit, the old one if nothing changed.

        Raises: HubError (412) when main is not at `parent`, (400) for a file below another file.
        """
        folder = self._folder(repo.kind, repo.id)
        with locked(folder):
            repo = self.repo(repo.kind, repo.id)
            if parent is not None and parent != repo.head:
                raise HubError(
                    412, f"A commit has happened since. Expected parent {parent[:40]}, main is at {repo.head}"
                )
            before = self.commit_at(repo, BRANCH).files
            files = {**before, **changes}
            _check_tree(files)
            if files == dict(before):
                return repo.head
            sha = self._write_commit(folder, files, repo.head, message)
            write_json(folder / "repo.json", {"head": sha, "private": repo.private, "created_s": repo.created_s})
        return sha

    def add_blob(self, content: bytes | Path) -> Blob:
        """Store a file's content, bytes or a file to copy, under its git blob id."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        blob = Blob(oid=oid, size=len(data))
        if not self.blob_path(blob).exists():
            _write_atomically(self.blob_path(blob), data)
        return blob

    def blob_path(self, blob: Blob) -> Path:
        """Return the file that holds a blob."""
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
        # Repos with equal histories get different commit ids.
        nonce = os.urandom(16).hex()
        sha = hashlib.sha1(json.dumps([record, nonce]).encode(), usedforsecurity=False).hexdigest()
        write_json(folder / "commits" / sha, record)
        return sha


def upload_files(
    root: Path,
    repo_id: str,
    files: Mapping[str, bytes | Path],
    repo_type: str = "dataset",
    *,
    private: bool = False,
    message: str = "uploaded directly",
) -> str:
    """Commit `files` to a new or old repo without a server; return main's commit.

    Other files stay; unchanged content makes no commit. Raises: HubError for an invalid repo id or path.
    """
    store = HubStore(root)
    kind = f"{repo_type}s"
    store.create(kind, repo_id, private=private)
    changes = {check_path(path): store.add_blob(content) for path, content in files.items()}
    return store.commit(store.repo(kind, repo_id), changes, message=message)


def _check_tree(files: Mapping[str, Blob]) -> None:
    for path in files:
        parents = path.split("/")[:-1]
        if any("/".join(parents[: depth + 1]) in files for depth in range(len(parents))):
            raise HubError(400, f"{path!r} lies below another file")


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file in one step."""
    _write_atomically(path, json.dumps(value).encode())


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(name, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder, across threads and processes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
