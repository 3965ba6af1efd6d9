"""Requests and responses of the local hub, without sockets."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from template.localnet.hub.store import HubError


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request; the target is path and query, header names are lower-case.

    endpoint: the hub's base URL. storage: the base URL of its second origin, which sends the bytes of large files.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    endpoint: str
    storage: str


@dataclass(frozen=True, kw_only=True)
class FileSlice:
    """A part of a file on disk."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response; the server adds Content-Length, or sends it in chunks.

    delay_s: the server waits so long before it sends.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileSlice = b""
    is_chunked: bool = False
    delay_s: float = 0.0

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.length


def json_response(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None, delay_s: float = 0.0
) -> Response:
    """Return a JSON response with an ETag like the real Hub's."""
    body = json.dumps(value).encode()
    typed = {"Content-Type": "application/json; charset=utf-8", "ETag": express_etag(body), **(headers or {})}
    return Response(status=status, headers=typed, body=body, delay_s=delay_s)


def error_response(error: HubError, *, is_text: bool) -> Response:
    """Return an error: JSON on the API, the bare message on pages (is_text)."""
    message = str(error)
    printable = "".join(char if char.isprintable() else "?" for char in message)
    headers = {"X-Error-Message": printable.encode("ascii", "backslashreplace").decode(), **error.headers}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
    if not is_text:
        return json_response({"error": message}, status=error.status, headers=headers)
    body = message.encode()
    headers |= {"Content-Type": "text/plain; charset=utf-8", "ETag": express_etag(body)}
    return Response(status=error.status, headers=headers, body=body)


def express_etag(body: bytes) -> str:
    """Compute an ETag like Express, the real Hub's framework: base64 with slashes."""
    digest = base64.b64encode(hashlib.sha1(body, usedforsecurity=False).digest()).decode()
    return f'W/"{len(body):x}-{digest[:27]}"'
