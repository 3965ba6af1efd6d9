"""The Hub's HTTP API over a `HubStore`: requests in, responses out, no sockets.

Covers the requests of huggingface_hub to create dataset and model repos, and to commit, list and download regular
files. No large-file storage, deletions, branches, pull requests, gating or spaces.
"""

import base64
import binascii
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from template.localnet.hub.store import BRANCH, KINDS, Blob, Commit, HubError, HubStore, Repo, check_path

_COMMITS_PER_PAGE = 50
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request; the target is path and query, header names are lower-case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    endpoint: str


@dataclass(frozen=True, kw_only=True)
class FileSlice:
    """A part of a file on disk."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response; the server adds Content-Length."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileSlice = b""

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.length


def respond(store: HubStore, request: Request) -> Response:
    """Return the Hub's response to a request."""
    path = urlsplit(request.target).path
    try:
        user = _authenticate(store, request)
        for methods, pattern, handler in _ROUTES:
            if request.method in methods and (match := pattern.fullmatch(path)):
                return handler(store, request, user, {key: unquote(text) for key, text in match.groupdict("").items()})
        raise HubError(404, "No such page")
    except HubError as error:
        return _error_response(error)


def _error_response(error: HubError) -> Response:
    message = str(error).encode("ascii", "backslashreplace").decode()
    headers = {"X-Error-Message": "".join(char if char.isprintable() else "?" for char in message)}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return _json({"error": str(error)}, status=error.status, headers=headers)


def _json(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(value).encode()
    typed = {"Content-Type": "application/json; charset=utf-8", "ETag": _express_etag(body), **(headers or {})}
    return Response(status=status, headers=typed, body=body)


def _express_etag(body: bytes) -> str:
    """Compute an ETag like Express, the real Hub's framework: base64 with slashes."""
    digest = base64.b64encode(hashlib.sha1(body, usedforsecurity=False).digest()).decode()
    return f'W/"{len(body):x}-{digest[:27]}"'


def _authenticate(store: HubStore, request: Request) -> str | None:
    """Return the token's user, None without a token. Raises: HubError (401)."""
    header = request.headers.get("authorization")
    user = None if header is None else store.owner_of(header.removeprefix("Bearer "))
    if header is not None and user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def _find_repo(store: HubStore, user: str | None, names: Mapping[str, str]) -> Repo:
    """Return the named repo; to others than its owner a private one does not exist."""
    try:
        repo = store.repo(names["kind"] or "models", f"{names['owner']}/{names['name']}")
        if repo.private and user != names["owner"]:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo
    except HubError as error:
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound") from error
        raise


def _require_owner(user: str | None, owner: str) -> None:
    if user is None:
        raise HubError(401, "Invalid username or password.")
    if user != owner:
        raise HubError(403, f"You don't have the rights to write under the namespace {owner[:100]!r}")


def _object(text: bytes) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise HubError(400, "Malformed JSON") from exc
    if not isinstance(value, dict):
        raise HubError(400, "A JSON object was expected")
    return value


def _create_repo(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    body = _object(request.body)
    owner, kind = str(body.get("organization") or user), f"{body.get('type') or 'model'}s"
    _require_owner(user, owner)
    if kind not in KINDS:
        raise HubError(400, "Only dataset and model repos are served here")
    repo_id = f"{owner}/{body.get('name')}"
    is_private = body.get("visibility") == "private" or body.get("private") is True
    is_new = store.create(kind, repo_id, private=is_private)
    url = f"{request.endpoint}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"
    if is_new:
        return _json({"url": url, "name": repo_id})
    error = "You already created this repo"
    return _json({"url": url, "error": error}, status=409, headers={"X-Error-Message": error})


def _auth_check(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    _find_repo(store, user, names)
    _require_owner(user, names["owner"])
    return _json({})


def _commits(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    repo = _find_repo(store, user, names)
    rows: list[dict[str, object]] = []
    sha: str | None = names["revision"]
    while sha is not None and len(rows) < _COMMITS_PER_PAGE:
        commit = store.commit_at(repo, sha)
        rows.append(
            {"id": commit.sha, "title": commit.message, "message": "", "date": _iso(commit.time_s), "authors": []}
        )
        sha = commit.parent
    return _json(rows)


def _preupload(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    repo = _find_repo(store, user, names)
    _require_owner(user, names["owner"])
    files = store.commit_at(repo, names["revision"]).files
    rows = []
    items = _object(request.body).get("files")
    for item in items if isinstance(items, list) else []:
        path = check_path(str(item.get("path"))) if isinstance(item, dict) else check_path("")
        row: dict[str, object] = {"path": path, "uploadMode": "regular", "shouldIgnore": False}
        rows.append(row | ({"oid": files[path].oid} if path in files else {}))
    return _json({"files": rows})


def _commit(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    repo = _find_repo(store, user, names)
    _require_owner(user, names["owner"])
    if names["revision"] != BRANCH:
        raise HubError(404, f"Invalid rev id: {names['revision'][:80]}", "RevisionNotFound")
    header: dict[str, object] = {}
    changes: dict[str, Blob] = {}
    for line in filter(None, request.body.splitlines()):
        item = _object(line)
        key, value = item.get("key"), item.get("value")
        if not isinstance(value, dict):
            raise HubError(400, "A commit line needs a value")
        if key == "header":
            header = value
        elif key == "file":
            changes[check_path(str(value.get("path")))] = store.add_blob(_content(value))
        else:
            raise HubError(400, f"Commit lines of kind {str(key)[:40]!r} are not served here")
    parent = header.get("parentCommit")
    sha = store.commit(
        repo, changes, parent=None if parent is None else str(parent), message=str(header.get("summary", ""))
    )
    url = f"{request.endpoint}/{'datasets/' if repo.kind == 'datasets' else ''}{repo.id}/commit/{sha}"
    return _json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def _content(value: Mapping[str, object]) -> bytes:
    if value.get("encoding") != "base64":
        raise HubError(400, "File content must be base64")
    try:
        return base64.b64decode(str(value.get("content")), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise HubError(400, "File content is not base64") from exc


def _repo_info(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    repo = _find_repo(store, user, names)
    commit = store.commit_at(repo, names.get("revision") or BRANCH)
    query = parse_qs(urlsplit(request.target).query)
    if query.get("expand") == ["sha"]:
        return _json({"_id": repo.head[:24], "id": repo.id, "sha": commit.sha})
    has_blobs = "blobs" in query
    siblings = [
        {"rfilename": path} | ({"size": blob.size, "blobId": blob.oid} if has_blobs else {})
        for path, blob in commit.files.items()
    ]
    info = {"_id": repo.head[:24], "id": repo.id, "author": names["owner"], "sha": commit.sha, "siblings": siblings}
    times = {"lastModified": _iso(commit.time_s), "createdAt": _iso(repo.created_s)}
    flags = {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    return _json(info | times | flags)


def _paths_info(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    commit = store.commit_at(_find_repo(store, user, names), names["revision"])
    paths = parse_qs(request.body.decode("utf-8", "replace")).get("paths", [])
    rows = [row for path in paths if (row := _row(commit, path.rstrip("/"))) is not None]
    return _json(rows)


def _tree(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    commit = store.commit_at(_find_repo(store, user, names), names["revision"])
    top = names["path"].strip("/")
    prefix = f"{top}/" if top else ""
    inside = [path for path in commit.files if path.startswith(prefix)]
    if top and not inside:
        raise HubError(404, f"{top[:80]} does not exist on {names['revision'][:80]}", "EntryNotFound")
    paths: dict[str, None] = {}
    is_recursive = parse_qs(urlsplit(request.target).query).get("recursive", [""])[0].lower() in ("true", "1")
    for path in inside:
        steps = path.removeprefix(prefix).split("/")
        depths = range(1, len(steps) + 1) if is_recursive else [1]
        paths.update(dict.fromkeys(prefix + "/".join(steps[:depth]) for depth in depths))
    return _json([_row(commit, path) for path in paths])


def _row(commit: Commit, path: str) -> dict[str, object] | None:
    """Return the listing row of a file or folder, None if the path names neither."""
    if (blob := commit.files.get(path)) is not None:
        return {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if path and any(name.startswith(f"{path}/") for name in commit.files):
        return {"type": "directory", "path": path, "size": 0, "oid": commit.sha}
    return None


def _resolve(store: HubStore, request: Request, user: str | None, names: Mapping[str, str]) -> Response:
    commit = store.commit_at(_find_repo(store, user, names), names["revision"])
    blob = commit.files.get(names["path"])
    if blob is None:
        missing = _error_response(HubError(404, "Entry not found", "EntryNotFound"))
        # By this header the client caches that the file does not exist.
        return replace(missing, headers={**missing.headers, "X-Repo-Commit": commit.sha})
    headers = {
        "Content-Type": "application/octet-stream",
        "ETag": f'"{blob.oid}"',
        "X-Repo-Commit": commit.sha,
        "Accept-Ranges": "bytes",
    }
    start, end = 0, blob.size
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is not None and (match[1] or match[2]):
        start = int(match[1]) if match[1] else max(blob.size - int(match[2]), 0)
        end = min(int(match[2]) + 1, blob.size) if match[1] and match[2] else blob.size
        if start >= end:
            return Response(status=416, headers={**headers, "Content-Range": f"bytes */{blob.size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
    body = FileSlice(path=store.blob_path(blob), start=start, length=end - start)
    return Response(status=206 if "Content-Range" in headers else 200, headers=headers, body=body)


def _iso(time_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time_s))


_Handler = Callable[[HubStore, Request, str | None, Mapping[str, str]], Response]
_API = r"/api/(?P<kind>datasets|models)/(?P<owner>[^/]+)/(?P<name>[^/]+)"
_REVISION = r"/(?P<revision>[^/]+)"
_PAGE = r"/(?:(?P<kind>datasets)/)?(?P<owner>[^/]+)/(?P<name>[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], re.Pattern[str], _Handler]] = [
    (("GET", "HEAD"), re.compile(rf"{_PAGE}/resolve{_REVISION}/(?P<path>.+)"), _resolve),
    (("GET",), re.compile(_API), _repo_info),
    (("GET",), re.compile(rf"{_API}/revision{_REVISION}"), _repo_info),
    (("GET",), re.compile(rf"{_API}/tree{_REVISION}(?P<path>/.*)?"), _tree),
    (("POST",), re.compile(rf"{_API}/paths-info{_REVISION}"), _paths_info),
    (("GET",), re.compile(rf"{_API}/commits{_REVISION}"), _commits),
    (("GET",), re.compile(rf"{_API}/auth-check/write"), _auth_check),
    (("POST",), re.compile(rf"{_API}/preupload{_REVISION}"), _preupload),
    (("POST",), re.compile(rf"{_API}/commit{_REVISION}"), _commit),
    (("POST",), re.compile(r"/api/repos/create"), _create_repo),
]
