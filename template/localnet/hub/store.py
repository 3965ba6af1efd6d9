"""Content of the local hub on disk: repos, commits, and files by git blob id.

::

    ROOT/tokens.json                      {token: owner}, besides the built-in `hf_local_OWNER` and `hf_read_OWNER`
    ROOT/blobs/ab/abcdef...               one file's content, named by its git blob id
    ROOT/lfs/ab/abcdef...                 a large file's content, named by its sha256
    ROOT/datasets/OWNER/NAME/repo.json    {head, private, created, branches}; models likewise
    ROOT/datasets/OWNER/NAME/moved.json   {to: the new id} of a renamed repo
    ROOT/datasets/OWNER/NAME/commits/SHA  {parent, message, time, files: {path: {oid, size, sha256}}}

Every file in commits, blobs and lfs is written once, and repo.json is replaced in one rename under the repo's lock, so
several servers and direct readers share one root. Paths inside repos never become paths on disk.
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
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from template.competition import is_repo_id

KINDS = ("datasets", "models")
BRANCH = "main"
LOCAL_TOKEN_PREFIX = "hf_local_"
READ_TOKEN_PREFIX = "hf_read_"
# Larger files are stored apart; so are those that .gitattributes names.
MAX_REGULAR_BYTES = 10 * 2**20

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ATTRIBUTES = ".gitattributes"
_LFS = "filter=lfs diff=lfs merge=lfs -text"
_FIRST_FILE = {_ATTRIBUTES: f"*.bin {_LFS}\n*.safetensors {_LFS}\n".encode()}
_MAX_PATH_CHARS = 500


class HubError(Exception):
    """A refused request: HTTP status, message, X-Error-Code and further headers."""

    def __init__(
        self, status: int, message: str, code: str | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class RepoMovedError(Exception):
    """The repo has another name: `repo_id`, by a rename or by its case."""

    def __init__(self, repo_id: str) -> None:
        super().__init__(repo_id)
        self.repo_id = repo_id


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file's git blob id and its size in bytes.

    sha256: of a large file, whose git blob is a pointer to it; None for others.
    """

    oid: str
    size: int
    sha256: str | None = None


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
    """A repo of kind "datasets" or "models"; `head` is main's commit.

    branches: commits of other branches, by name.
    """

    kind: str
    id: str
    head: str
    private: bool
    created_s: int
    branches: Mapping[str, str] = field(default_factory=dict)

    def head_of(self, revision: str) -> str:
        """Return the commit of a branch; any other revision unchanged."""
        return self.head if revision == BRANCH else self.branches.get(revision, revision)


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
        owner = token.removeprefix(LOCAL_TOKEN_PREFIX).removeprefix(READ_TOKEN_PREFIX)
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
            repo = Repo(kind=kind, id=repo_id, head=first, private=private, created_s=int(time.time()))
            _write_repo(folder, repo)
        return True

    def set_private(self, kind: str, repo_id: str, private: bool) -> None:
        """Make a repo private or public. Raises: HubError (RepoNotFound)."""
        folder = self._folder(kind, repo_id)
        with locked(folder):
            _write_repo(folder, replace(self.repo(kind, repo_id), private=private))

    def rename(self, kind: str, repo_id: str, new_id: str) -> None:
        """Give a repo another id, to which the old one leads."""
        old, new = self._folder(kind, repo_id), self._folder(kind, new_id)
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
        old.mkdir()
        write_json(old / "moved.json", {"to": new_id})

    def find_moved(self, kind: str, repo_id: str) -> str | None:
        """Return the present id of a renamed repo, or of a name in another case."""
        owner, _, name = repo_id.partition("/")
        for folder in _same_but_case(self.root / kind, owner):
            for path in _same_but_case(folder, name):
                if (path / "repo.json").exists():
                    return f"{folder.name}/{path.name}"
                if (path / "moved.json").exists():
                    return str(json.loads((path / "moved.json").read_text())["to"])
        return None

    def repo(self, kind: str, repo_id: str) -> Repo:
        """Return a repo. Raises: HubError (RepoNotFound); RepoMovedError."""
        if kind in KINDS and is_repo_id(repo_id):
            try:
                state = json.loads((self._folder(kind, repo_id) / "repo.json").read_text())
                return Repo(kind=kind, id=repo_id, **state)
            except FileNotFoundError:
                pass
            if (moved := self.find_moved(kind, repo_id)) is not None:
                raise RepoMovedError(moved)
        raise HubError(404, "Repository not found", "RepoNotFound")

    def commit_at(self, repo: Repo, revision: str) -> Commit:
        """Return a commit by its id or branch. Raises: HubError (RevisionNotFound)."""
        sha = repo.head_of(revision)
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
        branch: str = BRANCH,
        parent: str | None = None,
        message: str = "",
    ) -> str:
        """Add `changes` to a branch; return its commit, the old one if nothing changed.

        Raises: HubError (412) when the branch is not at `parent`, (400) for a file below another file.
        """
        folder = self._folder(repo.kind, repo.id)
        with locked(folder):
            repo = self.repo(repo.kind, repo.id)
            head = repo.head_of(branch)
            if parent is not None and parent != head:
                raise HubError(
                    412, f"A commit has happened since. Expected parent {parent[:40]}, {branch} is at {head}"
                )
            before = self.commit_at(repo, branch).files
            files = {**before, **changes}
            _check_tree(files)
            if files == dict(before):
                return head
            sha = self._write_commit(folder, files, head, message)
            if branch == BRANCH:
                _write_repo(folder, replace(repo, head=sha))
            else:
                _write_repo(folder, replace(repo, branches={**repo.branches, branch: sha}))
        return sha

    def set_branch(self, repo: Repo, branch: str, sha: str | None) -> None:
        """Create a branch at a commit; delete it for None. Raises: HubError (409; 404)."""
        folder = self._folder(repo.kind, repo.id)
        with locked(folder):
            repo = self.repo(repo.kind, repo.id)
            others = {name: head for name, head in repo.branches.items() if name != branch}
            if sha is not None and len(others) < len(repo.branches):
                raise HubError(409, f"Reference already exists: {branch[:80]}")
            if sha is None and len(others) == len(repo.branches):
                raise HubError(404, f"Invalid rev id: {branch[:80]}", "RevisionNotFound")
            _write_repo(folder, replace(repo, branches=others if sha is None else {**others, branch: sha}))

    def is_large(self, commit: Commit, path: str, size: int) -> bool:
        """Check whether a file is stored apart: by its size, or by .gitattributes."""
        attributes = commit.files.get(_ATTRIBUTES)
        text = self.blob_path(attributes).read_text("utf-8", "replace") if attributes is not None else ""
        rules = [line.split() for line in text.splitlines() if "filter=lfs" in line.split()]
        return size > MAX_REGULAR_BYTES or any(fnmatch(path.rpartition("/")[2], rule[0]) for rule in rules)

    def add_blob(self, content: bytes | Path, *, is_large: bool = False) -> Blob:
        """Store a file's content, bytes or a file to copy."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest() if is_large else None
        blob = Blob(oid=git_oid(data), size=len(data)) if sha256 is None else large_blob(sha256, len(data))
        if not self.blob_path(blob).exists():
            _write_atomically(self.blob_path(blob), data)
        return blob

    def blob_path(self, blob: Blob) -> Path:
        """Return the file that holds a blob."""
        folder, name = ("blobs", blob.oid) if blob.sha256 is None else ("lfs", blob.sha256)
        return self.root / folder / name[:2] / name

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
    repo = store.repo(kind, repo_id)
    before, changes = store.commit_at(repo, BRANCH), dict[str, Blob]()
    for path, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        changes[check_path(path)] = store.add_blob(content, is_large=store.is_large(before, path, size))
    return store.commit(repo, changes, message=message)


def git_oid(data: bytes) -> str:
    """Return the id of git's blob with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def large_blob(sha256: str, size: int) -> Blob:
    """Return the blob of a large file: git has a pointer to it."""
    return Blob(oid=git_oid(lfs_pointer(sha256, size)), size=size, sha256=sha256)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the pointer that git has in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _same_but_case(folder: Path, name: str) -> list[Path]:
    """Return the subfolders of this name in any case, the exact one first."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.name.lower() == name.lower()]
    return sorted(paths, key=lambda path: (path.name != name, path.name))


def _write_repo(folder: Path, repo: Repo) -> None:
    state = asdict(repo)
    write_json(folder / "repo.json", {key: state[key] for key in ("head", "private", "created_s", "branches")})


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
