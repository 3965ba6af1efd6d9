"""The local hub's listings: info, tree, paths and history of a repo."""

import time
from urllib.parse import parse_qs

from template.localnet.hub.answers import Answer
from template.localnet.hub.call import Call
from template.localnet.hub.files import xet_hash
from template.localnet.hub.messages import Response, json_response
from template.localnet.hub.store import Blob, Commit, HubError, lfs_pointer

_COMMITS_PER_PAGE = 50


def whoami(call: Call) -> Response:
    """Answer about the account and the role of a token."""
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    role = "read" if call.has_read_token else "write"
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": role}}
    return json_response({"type": "user", "id": call.user, "name": call.user, "orgs": [], "auth": auth})


def repo_info(call: Call) -> Response:
    repo = call.repo()
    commit = call.commit(repo, is_info=True)
    query = call.query()
    if query.get("expand") == ["sha"]:
        return json_response({"_id": repo.head[:24], "id": repo.id, "sha": commit.sha})
    has_blobs = "blobs" in query
    siblings = [
        {"rfilename": path} | ({"size": blob.size, "blobId": blob.oid} | _lfs(blob, "sha256") if has_blobs else {})
        for path, blob in commit.files.items()
    ]
    owner = repo.id.partition("/")[0]
    info = {"_id": repo.head[:24], "id": repo.id, "author": owner, "sha": commit.sha, "siblings": siblings}
    times = {"lastModified": _iso(commit.time_s), "createdAt": _iso(repo.created_s)}
    states = {
        "private": repo.private,
        "gated": "auto" if Answer.GATED in call.rules else False,
        "disabled": Answer.DISABLED_LISTED in call.rules,
    }
    return json_response(info | times | states | {"downloads": 0, "likes": 0, "tags": []})


def paths_info(call: Call) -> Response:
    commit = call.commit(call.repo())
    paths = parse_qs(call.request.body.decode("utf-8", "replace")).get("paths", [])
    rows = [row for path in paths if (row := _row(commit, path.rstrip("/"))) is not None]
    return json_response(rows)


def tree(call: Call) -> Response:
    commit = call.commit(call.repo())
    top = call.names["path"].strip("/")
    prefix = f"{top}/" if top else ""
    inside = [path for path in commit.files if path.startswith(prefix)]
    if top and not inside:
        raise HubError(404, f"{top[:80]} does not exist on {call.revision[:80]}", "EntryNotFound")
    paths: dict[str, None] = {}
    is_recursive = call.query().get("recursive", [""])[0].lower() in ("true", "1")
    for path in inside:
        steps = path.removeprefix(prefix).split("/")
        depths = range(1, len(steps) + 1) if is_recursive else [1]
        paths.update(dict.fromkeys(prefix + "/".join(steps[:depth]) for depth in depths))
    return json_response([_row(commit, path) for path in paths])


def commits(call: Call) -> Response:
    repo = call.repo()
    rows: list[dict[str, object]] = []
    sha: str | None = repo.head_of(call.revision)
    while sha is not None and len(rows) < _COMMITS_PER_PAGE:
        commit = call.store.commit_at(repo, sha)
        rows.append(
            {"id": commit.sha, "title": commit.message, "message": "", "date": _iso(commit.time_s), "authors": []}
        )
        sha = commit.parent
    return json_response(rows)


def _row(commit: Commit, path: str) -> dict[str, object] | None:
    """Return the listing row of a file or folder, None if the path names neither."""
    if (blob := commit.files.get(path)) is not None:
        row: dict[str, object] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
        return row | _lfs(blob, "oid") | ({"xetHash": xet_hash(blob.sha256)} if blob.sha256 is not None else {})
    if path and any(name.startswith(f"{path}/") for name in commit.files):
        return {"type": "directory", "path": path, "size": 0, "oid": commit.sha}
    return None


def _lfs(blob: Blob, name: str) -> dict[str, object]:
    """Return what a listing has about a large file. name: of its digest there."""
    if blob.sha256 is None:
        return {}
    return {
        "lfs": {name: blob.sha256, "size": blob.size, "pointerSize": len(lfs_pointer(blob.sha256, blob.size))},
    }


def _iso(time_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time_s))
