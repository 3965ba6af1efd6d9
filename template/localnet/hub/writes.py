"""Handle an owner's writes to the local hub: repos, commits, large files, branches."""

import base64
import binascii
import json
from collections.abc import Mapping

from template.localnet.hub.answers import Answer, gateway_timeout
from template.localnet.hub.call import Call
from template.localnet.hub.files import storage_url
from template.localnet.hub.messages import Response, json_response
from template.localnet.hub.store import BRANCH, KINDS, Blob, HubError, HubStore, Repo, check_path, large_blob


def create_repo(call: Call) -> Response:
    body = parse_object(call.request.body)
    owner, kind = str(body.get("organization") or call.user), f"{body.get('type') or 'model'}s"
    call.require_owner(owner)
    if kind not in KINDS:
        raise HubError(400, "Only dataset and model repos are served here")
    repo_id = f"{owner}/{body.get('name')}"
    is_private = body.get("visibility") == "private" or body.get("private") is True
    is_new = call.store.create(kind, repo_id, private=is_private)
    url = call.repo_url(call.store.repo(kind, repo_id))
    if is_new:
        return json_response({"url": url, "name": repo_id})
    error = "You already created this repo"
    return json_response({"url": url, "error": error}, status=409, headers={"X-Error-Message": error})


def auth_check(call: Call) -> Response:
    _writable(call)
    return json_response({})


def set_branch(call: Call) -> Response:
    repo = _writable(call)
    if call.request.method == "DELETE":
        call.store.set_branch(repo, call.names["branch"], None)
    else:
        start = str(parse_object(call.request.body).get("startingPoint") or BRANCH)
        call.store.set_branch(repo, call.names["branch"], call.store.commit_at(repo, start).sha)
    return json_response({})


def preupload(call: Call) -> Response:
    repo = _writable(call)
    commit = call.store.commit_at(repo, call.revision)
    rows = []
    items = parse_object(call.request.body).get("files")
    for item in items if isinstance(items, list) else []:
        path = check_path(str(item.get("path"))) if isinstance(item, dict) else check_path("")
        size = item.get("size")
        is_large = call.store.is_large(commit, path, size if isinstance(size, int) else 0)
        row: dict[str, object] = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
        rows.append(row | ({"oid": commit.files[path].oid} if path in commit.files else {}))
    return json_response({"files": rows})


def lfs_batch(call: Call) -> Response:
    repo = _writable(call)
    items = parse_object(call.request.body).get("objects")
    rows = []
    for item in items if isinstance(items, list) else []:
        sha256, size = _large_file(item)
        row: dict[str, object] = {"oid": sha256, "size": size}
        if not call.store.blob_path(large_blob(sha256, size)).exists():
            row["actions"] = {"upload": {"href": storage_url(call.request, repo, sha256), "header": {}}}
        rows.append(row)
    return json_response({"transfer": "basic", "objects": rows})


def commit(call: Call) -> Response:
    repo = _writable(call)
    if call.revision != BRANCH and call.revision not in repo.branches:
        raise HubError(404, f"Invalid rev id: {call.revision[:80]}", "RevisionNotFound")
    header: dict[str, object] = {}
    changes: dict[str, Blob] = {}
    for line in filter(None, call.request.body.splitlines()):
        item = parse_object(line)
        key, value = item.get("key"), item.get("value")
        if not isinstance(value, dict):
            raise HubError(400, "A commit line needs a value")
        if key == "header":
            header = value
        elif key == "file":
            changes[check_path(str(value.get("path")))] = call.store.add_blob(_content(value))
        elif key == "lfsFile":
            changes[check_path(str(value.get("path")))] = _stored(call.store, value)
        else:
            raise HubError(400, f"Commit lines of kind {str(key)[:40]!r} are not served here")
    parent = header.get("parentCommit")
    sha = call.store.commit(
        repo,
        changes,
        branch=call.revision,
        parent=None if parent is None else str(parent),
        message=str(header.get("summary", "")),
    )
    if Answer.COMMIT_LOST in call.rules:
        return gateway_timeout()
    slow = call.rules.get(Answer.COMMIT_SLOW)
    url = f"{call.repo_url(repo)}/commit/{sha}"
    return json_response(
        {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}, delay_s=slow.seconds if slow else 0.0
    )


def parse_object(text: bytes) -> dict[str, object]:
    """Return a JSON object. Raises: HubError (400)."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise HubError(400, "Malformed JSON") from exc
    if not isinstance(value, dict):
        raise HubError(400, "A JSON object was expected")
    return value


def _writable(call: Call) -> Repo:
    repo = call.repo()
    call.require_owner(repo.id.partition("/")[0])
    return repo


def _content(value: Mapping[str, object]) -> bytes:
    if value.get("encoding") != "base64":
        raise HubError(400, "File content must be base64")
    try:
        return base64.b64decode(str(value.get("content")), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise HubError(400, "File content is not base64") from exc


def _stored(store: HubStore, value: Mapping[str, object]) -> Blob:
    blob = large_blob(*_large_file(value))
    if not store.blob_path(blob).exists():
        raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value.get('path')!r}")
    return blob


def _large_file(value: object) -> tuple[str, int]:
    """Return the digest and size of a large file. Raises: HubError (400)."""
    sha256, size = (value.get("oid"), value.get("size")) if isinstance(value, dict) else (None, None)
    is_digest = isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
    if not is_digest or type(size) is not int or size < 0:
        raise HubError(400, "A large file needs a sha256 as oid, and a size")
    return str(sha256), size
