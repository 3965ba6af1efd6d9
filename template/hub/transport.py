"""An httpx transport that limits size, time and redirects of Hub requests.

Requests of `template.hub.datasets` run under a `RequestBudget`. Requests of other libraries (transformers loading a
model) have none and get limits of their own. Each step of a redirect is a separate request here.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from template.errors import RemoteError

# The longest chain of the real Hub: a renamed repo, its resolver, its file store.
MAX_REDIRECTS = 5
# Of all requests but commits: the Hub takes up to a minute for one, which lands even if nobody waits.
SOCKET_TIMEOUT_S = 10.0

# Bytes of a JSON answer: about one file or commit, and about all files of a repo. Parsed, they take forty times as
# much memory.
MAX_ANSWER_BYTES = 256 * 2**10
MAX_LISTING_BYTES = 4 * 2**20
_MAX_MODEL_FILE_BYTES = 16 * 2**30
_MAX_RETRY_AFTER_S = 86_400.0

# Seconds for a metadata request of another library, which then uses the model that it has cached.
_METADATA_S = 20.0
# Upload bytes between two looks at the deadline.
_PIECE_BYTES = 16 * 2**10

# huggingface_hub makes file names of these; without them it refuses the answer.
_NAMING_HEADERS = ("ETag", "X-Linked-ETag", "X-Repo-Commit")
_PLAIN_NAME = re.compile(r'(W/)?"?[A-Za-z0-9][A-Za-z0-9._:+=-]{0,127}"?')
_SECRET_HEADERS = ("Authorization", "Cookie", "Proxy-Authorization")
# Seconds to wait, which huggingface_hub would sleep in full; without them it waits some seconds.
_WAIT_HEADERS = ("Retry-After", "RateLimit", "RateLimit-Policy")
_METHODS_ELSEWHERE = ("GET", "HEAD", "PUT")
_RATE_LIMIT = re.compile(r'"\w{1,40}" *; *r *= *0 *; *t *= *(\d{1,9})')


@dataclass
class RequestBudget:
    """Limits of one call: monotonic `deadline`, `max_bytes` of each answer as sent.

    endpoint: the Hub's base URL, the only origin that gets the token.
    """

    deadline: float
    endpoint: str
    max_bytes: int

    def remaining_s(self) -> float:
        """Return the seconds left. Raises: RemoteError when the deadline has passed."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise RemoteError("the Hub did not finish its answer in the time allowed")
        return remaining

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Apply this budget to the requests that this thread sends meanwhile."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[RequestBudget | None] = ContextVar("_CURRENT", default=None)


class BoundedTransport(httpx2.BaseTransport):
    """`inner` within limits; `endpoint` is the Hub's URL for calls without a budget."""

    def __init__(self, inner: httpx2.BaseTransport, endpoint: Callable[[], str]) -> None:
        self._inner = inner
        self._endpoint = endpoint

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; raise RemoteError when a limit is exceeded."""
        budget = _CURRENT.get()
        if budget is not None:
            response = self._send(request, budget)
            if response.status_code == 429 or response.status_code >= 500:
                # Not left to the library, which would sleep and retry: that is for the caller to decide.
                response.close()
                raise RemoteError(f"the Hub answered HTTP {response.status_code}", _retry_after_s(response.headers))
            return response
        response = self._send_for_other_library(request, self._endpoint())
        for name in _WAIT_HEADERS:
            response.headers.pop(name, None)
        return response

    def close(self) -> None:
        self._inner.close()

    def _send_for_other_library(self, request: httpx2.Request, endpoint: str) -> httpx2.Response:
        if _is_file(request, httpx2.URL(endpoint)):
            return self._send(request, RequestBudget(math.inf, endpoint, _MAX_MODEL_FILE_BYTES))
        budget = RequestBudget(time.monotonic() + _METADATA_S, endpoint, MAX_LISTING_BYTES)
        try:
            response = self._send(request, budget)
            with budget.activate():
                response.read()
            return response
        except (RemoteError, httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            # The only error that all callers in transformers and huggingface_hub answer from the cache.
            raise httpx2.ConnectError(str(error)) from error

    def _send(self, request: httpx2.Request, budget: RequestBudget) -> httpx2.Response:
        self._check_target(request, httpx2.URL(budget.endpoint))
        request.headers["Accept-Encoding"] = "identity"
        remaining_s = budget.remaining_s()
        timeouts = httpx2.Timeout(min(SOCKET_TIMEOUT_S, remaining_s))
        if request.method == "POST" and "/commit/" in request.url.path:
            timeouts.read = remaining_s
        request.extensions = {**request.extensions, "timeout": timeouts.as_dict()}
        assert isinstance(request.stream, httpx2.SyncByteStream)
        request.stream = _BoundedStream(request.stream, budget, math.inf)
        with budget.activate():
            response = self._inner.handle_request(request)
        try:
            _clean_headers(response.headers)
        except RemoteError:
            response.close()
            raise
        max_bytes = budget.max_bytes
        if response.is_error:
            max_bytes = min(MAX_ANSWER_BYTES, max_bytes)
            # The library decodes the text by the named codec, which need not be one for text.
            response.headers["Content-Type"] = "application/json; charset=utf-8"
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _BoundedStream(response.stream, budget, max_bytes)
        return response

    def _check_target(self, request: httpx2.Request, endpoint: httpx2.URL) -> None:
        """Strip secrets from a request to another host; reject plain http."""
        url = request.url
        if url.origin == endpoint.origin:
            return
        schemes = ("https",) if endpoint.scheme == "https" else ("http", "https")
        if url.scheme not in schemes or request.method not in _METHODS_ELSEWHERE:
            raise RemoteError(f"redirect to {request.method} {url.scheme}://{url.host[:100]} is not followed")
        for name in _SECRET_HEADERS:
            request.headers.pop(name, None)


class DeadlineBackend:
    """`inner`, a backend of httpcore, whose connections read nothing after the deadline of the call.

    A socket's timeout begins anew with each byte. A header that comes byte by byte would keep its connection for hours,
    and the client has a hundred of them for everything.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, *args: Any, **kwargs: Any) -> "_DeadlineConnection":
        return _DeadlineConnection(self._inner.connect_tcp(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _DeadlineConnection:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        budget = _CURRENT.get()
        if budget is not None:
            budget.remaining_s()
        return bytes(self._inner.read(max_bytes, timeout))

    def start_tls(self, *args: Any, **kwargs: Any) -> "_DeadlineConnection":
        return _DeadlineConnection(self._inner.start_tls(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _BoundedStream(httpx2.SyncByteStream):
    """A body that raises RemoteError beyond `max_bytes` or the budget's deadline."""

    def __init__(self, stream: httpx2.SyncByteStream, budget: RequestBudget, max_bytes: float) -> None:
        self._stream = stream
        self._budget = budget
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for chunk in self._stream:
            received += len(chunk)
            if received > self._max_bytes:
                raise RemoteError(f"the Hub's answer is longer than {self._max_bytes} bytes")
            for start in range(0, len(chunk), _PIECE_BYTES):
                self._budget.remaining_s()
                yield chunk[start : start + _PIECE_BYTES]

    def close(self) -> None:
        self._stream.close()


def _is_file(request: httpx2.Request, endpoint: httpx2.URL) -> bool:
    """Return whether a request is for a file rather than about a repo."""
    path = request.url.path.removeprefix(endpoint.path.rstrip("/"))
    is_api = request.url.origin == endpoint.origin and path.startswith("/api/")
    return request.method == "GET" and (not is_api or path.startswith("/api/resolve-cache/"))


def _clean_headers(headers: httpx2.Headers) -> None:
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise RemoteError("the Hub compressed an answer that was requested uncompressed")
    unfit = [name for name in _NAMING_HEADERS if name in headers and not _PLAIN_NAME.fullmatch(headers[name])]
    # Without X-Linked-ETag the library would name the file by the ETag, which is the redirect's.
    for name in [*unfit, *(["ETag"] if "X-Linked-ETag" in unfit else [])]:
        headers.pop(name, None)


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    """Return the seconds to wait by Retry-After or RateLimit, None for neither."""
    text = headers.get("Retry-After", "").strip()[:100]
    seconds: float | None = None
    if re.fullmatch(r"[0-9]{1,9}", text):
        seconds = float(text)
    elif text:
        with suppress(ValueError, OverflowError, TypeError, IndexError):
            seconds = (parsedate_to_datetime(text).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    if seconds is None and (limit := _RATE_LIMIT.search(headers.get("RateLimit", "")[:200])):
        seconds = float(limit[1])
    return None if seconds is None else min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)
