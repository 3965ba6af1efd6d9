"""Serve files of the local hub: small ones, and large ones from a second origin."""

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote, urlencode, urlsplit

from template.localnet.hub.answers import Answer, access_denied
from template.localnet.hub.call import Call
from template.localnet.hub.messages import FileSlice, Request, Response, error_response
from template.localnet.hub.store import Blob, Commit, HubError, HubStore, Repo

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_STORED = re.compile(r"/storage/(datasets|models)/[^/]+/[^/]+/([0-9a-f]{64})")


def resolve(call: Call) -> Response:
    """Return a file's address, or the file itself in a repo that is not public."""
    repo = call.repo()
    if Answer.GATED in call.rules and call.user != repo.id.partition("/")[0]:
        raise _gated(call, repo)
    commit = call.commit(repo)
    blob = commit.files.get(call.names["path"])
    if blob is None:
        # By this header the client caches that the file does not exist.
        return missing_entry(commit)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if blob.sha256 is not None:
        return _to_storage(call, repo, blob, headers)
    if repo.private or not blob.size:
        return serve(call.request, call.store, blob, headers)
    path = f"{repo.kind}/{repo.id}/{commit.sha}/{quote(call.names['path'])}"
    page = quote(urlsplit(call.request.target).path, safe="")
    location = f"/api/resolve-cache/{path}?{page}=&{urlencode({'etag': _quoted(blob.oid)})}"
    return Response(status=307, headers={"Location": location, "Content-Type": "text/plain", **headers})


def missing_entry(commit: Commit) -> Response:
    """Return the answer for a file that a commit does not have."""
    missing = error_response(HubError(404, "Entry not found", "EntryNotFound"), is_text=True)
    return replace(missing, headers={**missing.headers, "X-Repo-Commit": commit.sha})


def resolve_cached(call: Call) -> Response:
    """Return a small file of a public repo, compressed for a client that accepts it."""
    commit = call.store.commit_at(call.repo(), call.revision)
    blob = commit.files.get(call.names["path"])
    if blob is None:
        return missing_entry(commit)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes", "Vary": "Accept-Encoding"}
    encodings = re.split(r"[ ,]+", call.request.headers.get("accept-encoding", ""))
    if "gzip" not in encodings or "range" in call.request.headers:
        return serve(call.request, call.store, blob, headers)
    headers |= {"Content-Encoding": "gzip", "ETag": f"W/{_quoted(blob.oid)}"}
    body = gzip.compress(call.store.blob_path(blob).read_bytes())
    return Response(headers={"Content-Type": "text/plain; charset=utf-8", **headers}, body=body, is_chunked=True)


def _gated(call: Call, repo: Repo) -> HubError:
    restricted = f"Access to {repo.kind.removesuffix('s')} {repo.id} is restricted"
    if call.user is None:
        return HubError(401, f"{restricted}. You must have access to it and be authenticated.", "GatedRepo")
    return HubError(403, f"{restricted} and you are not in the authorized list.", "GatedRepo")


def _to_storage(call: Call, repo: Repo, blob: Blob, headers: Mapping[str, str]) -> Response:
    linked = {
        "X-Linked-Size": str(blob.size),
        "X-Linked-ETag": _quoted(str(blob.sha256)),
        "X-Xet-Hash": xet_hash(str(blob.sha256)),
        "Location": storage_url(call.request, repo, str(blob.sha256), call.names["path"]),
    }
    return Response(status=302, headers={"Content-Type": "text/plain", **headers, **linked})


def storage_url(request: Request, repo: Repo, sha256: str, path: str = "") -> str:
    """Return the signed address of a large file on the second origin."""
    query = urlencode({"X-Amz-SignedHeaders": "host", "filename": path.rpartition("/")[2]})
    return f"{request.storage}/storage/{repo.kind}/{repo.id}/{sha256}?{query}"


def xet_hash(sha256: str) -> str:
    """Return a hash in place of Xet's, which the client only hands on."""
    return hashlib.sha256(f"xet {sha256}".encode()).hexdigest()


def _quoted(text: str) -> str:
    return f'"{text}"'


def serve(request: Request, store: HubStore, blob: Blob, headers: Mapping[str, str]) -> Response:
    """Return the requested range of a file."""
    start, end = 0, blob.size
    headers = {"Content-Type": "application/octet-stream", "ETag": _quoted(blob.sha256 or blob.oid), **headers}
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is not None and (match[1] or match[2]):
        start = int(match[1]) if match[1] else max(blob.size - int(match[2]), 0)
        end = min(int(match[2]) + 1, blob.size) if match[1] and match[2] else blob.size
        if start >= end:
            return Response(status=416, headers={**headers, "Content-Range": f"bytes */{blob.size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
    body = FileSlice(path=store.blob_path(blob), start=start, length=end - start)
    return Response(status=206 if "Content-Range" in headers else 200, headers=headers, body=body)


def respond_from_storage(store: HubStore, request: Request) -> Response:
    """Send or store a large file's bytes at its signed address.

    As at a real storage, the address is the permission, and a token beside it is an error.
    """
    match = _STORED.fullmatch(urlsplit(request.target).path)
    if match is None or "authorization" in request.headers:
        return access_denied()
    blob = Blob(oid="", size=len(request.body), sha256=match[2])
    path = store.blob_path(blob)
    if request.method == "PUT" and hashlib.sha256(request.body).hexdigest() == match[2]:
        store.add_blob(request.body, is_large=True)
        return Response(headers={"ETag": _quoted(match[2][:32])})
    if request.method not in ("GET", "HEAD") or not path.exists():
        return access_denied()
    return serve(request, store, replace(blob, size=path.stat().st_size), {"Accept-Ranges": "bytes"})
