"""What may be asked of the Hub's HTTP client and what is heard of an answer: the rules, below redirects and retries.

Everything that huggingface_hub, or another library by way of it, sends goes through `BoundedTransport`, each step of a
redirect by itself. The token goes to the endpoint alone. Elsewhere only reads and the storing of a large file go, over
a connection no weaker than the endpoint's, to hosts that `hub_network` allows, and never back: who answered is then
plain. Of an answer only the headers that someone reads are passed on, so no cookie is kept, no second page of a listing
is looked for, and no text for the log is taken in. A body comes as it is, uncompressed, and no longer than the budget.

A 429 or 5xx ends a call with a budget whatever the library would do: when to try again is the caller's decision. Other
libraries try again themselves, some seconds, and may know what to do without the Hub, as to use the model that they
have cached; for how long it asks them to wait is not passed on.
"""

import ipaddress
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from template.errors import RemoteError
from template.hub.network import BoundedBackend, RequestBudget, allowed_addresses, current_budget

# The real Hub's longest way: a renamed repo, its resolver, its store.
MAX_REDIRECTS = 5

SOCKET_TIMEOUT_S = 10.0

# Bytes of an answer that is not a file: what one path, one commit or one upload is told in, and what a whole repo is.
# Parsed, they may take forty times as much memory.
MAX_ANSWER_BYTES = 256 * 2**10
MAX_LISTING_BYTES = 4 * 2**20
_MAX_ERROR_BYTES = 64 * 2**10
_MAX_HEADER_CHARS = 8192
_MAX_RETRY_AFTER_S = 86_400.0

# For what other libraries fetch, which is a model: seconds for the answer to a question, which is tried again, and to
# the wish for a file, beside those of a declared length at the slowest pace; and the most that one file can have, with
# its length declared and without.
_QUESTION_S = 20.0
_ANSWER_S = 60.0
_SLOWEST_BYTES_PER_S = 128 * 2**10
_MAX_MODEL_FILE_BYTES = 16 * 2**30
_MAX_UNDECLARED_BYTES = 64 * 2**20

# What huggingface_hub and transformers read. Xet, pagination, cookies and warnings are not among it on purpose.
_HEADERS_HEARD = {
    "accept-ranges",
    "content-length",
    "content-range",
    "content-type",
    "etag",
    "location",
    "x-error-code",
    "x-error-message",
    "x-linked-etag",
    "x-linked-size",
    "x-repo-commit",
    "x-request-id",
}
# What the library calls files after, on this machine: no name may lead out of the folder that they are kept in. The Hub
# names its answers of other kinds by digests in base64, which has slashes.
_NAMING_HEADERS = {"etag", "x-linked-etag", "x-repo-commit"}
_NAME = re.compile(r'(W/)?"?[A-Za-z0-9][A-Za-z0-9._:+=-]{0,127}"?')
_SECRET_HEADERS = ("Authorization", "Cookie", "Proxy-Authorization")
_METHODS_ELSEWHERE = ("GET", "HEAD", "PUT")
_HAS_LEFT = "template.hub.transport.has_left"
_IS_QUESTION = "template.hub.transport.is_question"
_RATE_LIMIT = re.compile(r'"\w{1,40}" *; *r *= *0 *; *t *= *(\d{1,9})')


class BoundedTransport(httpx2.BaseTransport):
    """`inner` under the rules above. endpoint: tells the Hub's base address to who names none by a budget.

    is_proxied: the inner one speaks to a proxy of the operator's.
    """

    def __init__(self, inner: httpx2.HTTPTransport, *, endpoint: Callable[[], str], is_proxied: bool) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._is_proxied = is_proxied
        pool = inner._pool
        pool._network_backend = BoundedBackend(pool._network_backend, is_proxied=is_proxied)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer. Raises: RemoteError for what breaks a rule, httpx2's errors for what does not arrive."""
        budget = current_budget() or self._budget_of_another()
        is_question = request.method != "GET" or _is_listing(request.url, budget)
        is_file = not is_question and _IS_QUESTION not in request.extensions
        if not budget.is_ours and is_file:
            budget.deadline += _ANSWER_S - _QUESTION_S
        is_mild = not budget.is_ours and not is_file
        with _told(is_mild):
            self._check_request(request, budget)
            request.headers["Accept-Encoding"] = "identity"
            timeouts = httpx2.Timeout(min(SOCKET_TIMEOUT_S, budget.remaining_s())).as_dict()
            # A redirect takes them along.
            kind = {} if is_file else {_IS_QUESTION: True}
            request.extensions = {**request.extensions, **kind, "timeout": timeouts}
            with budget.activate():
                answer = self._inner.handle_request(request)
            try:
                _refuse(answer, is_busy_final=budget.is_ours)
                declared = _declared_bytes(answer.headers)
                if not budget.is_ours and is_file:
                    budget.deadline += (declared or 0) / _SLOWEST_BYTES_PER_S
                    budget.max_bytes = _MAX_UNDECLARED_BYTES if declared is None else _MAX_MODEL_FILE_BYTES
                # What a HEAD declares is not sent.
                known = 0 if request.method == "HEAD" or declared is None else declared
                return _heard(answer, budget, known, is_mild=is_mild)
            except BaseException:
                answer.close()
                raise

    def _budget_of_another(self) -> RequestBudget:
        return RequestBudget(time.monotonic() + _QUESTION_S, self._endpoint(), MAX_LISTING_BYTES, is_ours=False)

    def close(self) -> None:
        """Closes every connection."""
        self._inner.close()

    def _check_request(self, request: httpx2.Request, budget: RequestBudget) -> None:
        url, endpoint = request.url, httpx2.URL(budget.endpoint)
        if url.origin == endpoint.origin:
            if _HAS_LEFT in request.extensions:
                raise RemoteError("the Hub points to another host, and that one back; that is not followed")
            return
        schemes = ("https",) if endpoint.scheme == "https" else ("http", "https")
        if url.scheme not in schemes or request.method not in _METHODS_ELSEWHERE:
            raise RemoteError(
                f"the Hub points to {request.method} {url.scheme}://{url.host[:100]}; that is not followed"
            )
        if self._is_proxied:
            with suppress(ValueError):
                allowed_addresses([str(ipaddress.ip_address(url.host))], budget.endpoint)
        for name in _SECRET_HEADERS:
            request.headers.pop(name, None)
        request.extensions = {**request.extensions, _HAS_LEFT: True}


@contextmanager
def _told(is_mild: bool) -> Iterator[None]:
    """Tells another library whose question fails (is_mild) that the Hub is away, so that it uses what it has cached.

    Not one that fetches a file: there is none cached then, and the library would begin again as often as some of it
    comes. What it takes for an absent Hub is narrow: of all its own client's errors no time-out is in every list.
    """
    try:
        yield
    except (RemoteError, httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
        if not is_mild:
            raise
        raise httpx2.ConnectError(str(error)) from error


def _is_listing(url: httpx2.URL, budget: RequestBudget) -> bool:
    """Whether the Hub's API is asked, which answers in JSON that is parsed whole."""
    endpoint = httpx2.URL(budget.endpoint)
    path = url.path.removeprefix(endpoint.path.rstrip("/"))
    return url.origin == endpoint.origin and path.startswith("/api/") and not path.startswith("/api/resolve-cache/")


def _refuse(answer: httpx2.Response, *, is_busy_final: bool) -> None:
    """Passes an answer that may be read on. is_busy_final: 429 and 5xx end the call. Raises: RemoteError."""
    status, headers = answer.status_code, answer.headers
    if is_busy_final and (status == 429 or status >= 500):
        raise RemoteError(f"the Hub answered HTTP {status}", _retry_after_s(headers))
    if status < 200:
        raise RemoteError(f"the Hub answered HTTP {status}, which is no answer")
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise RemoteError("the Hub compressed an answer that was asked for plain")


def _heard(answer: httpx2.Response, budget: RequestBudget, declared: int, *, is_mild: bool) -> httpx2.Response:
    """The part of an answer that is passed on. declared: bytes of its body, 0 when not known. is_mild: as `_told`."""
    kept = [(name, value) for name, value in answer.headers.multi_items() if name.lower() in _HEADERS_HEARD]
    if any(len(value) > _MAX_HEADER_CHARS for _, value in kept):
        raise RemoteError("the Hub sent a header that is longer than any it needs")
    unfit = {name.lower() for name, value in kept if name.lower() in _NAMING_HEADERS and not _NAME.fullmatch(value)}
    if "x-linked-etag" in unfit:
        # The library would take the other one in its place, which names the redirect and not the file.
        unfit.add("etag")
    kept = [(name, value) for name, value in kept if name.lower() not in unfit]
    most = budget.max_bytes
    if answer.status_code >= 400:
        # Its text would be decoded by whatever codec it names.
        kept = [(name, value) for name, value in kept if name.lower() != "content-type"]
        kept.append(("Content-Type", "application/json; charset=utf-8"))
        most = min(_MAX_ERROR_BYTES, most)
    if declared > most:
        raise RemoteError(f"the Hub's answer is longer than {most} bytes")
    assert isinstance(answer.stream, httpx2.SyncByteStream)
    body = _CountedStream(answer.stream, budget, most, is_mild=is_mild)
    return httpx2.Response(answer.status_code, headers=kept, stream=body, extensions=answer.extensions)


def _declared_bytes(headers: httpx2.Headers) -> int | None:
    """Content-Length; None when there is none. The client has refused one that is no number."""
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


class _CountedStream(httpx2.SyncByteStream):
    """A body that ends in RemoteError at the first packet beyond `most` bytes or the budget's deadline.

    is_mild: as `_told`.
    """

    def __init__(self, stream: httpx2.SyncByteStream, budget: RequestBudget, most: int, *, is_mild: bool) -> None:
        self._stream = stream
        self._is_mild = is_mild
        self._budget = budget
        self._most = most

    def __iter__(self) -> Iterator[bytes]:
        received, chunks = 0, iter(self._stream)
        while True:
            with _told(self._is_mild):
                with self._budget.activate():
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                received += len(chunk)
                self._budget.remaining_s()
                if received > self._most:
                    raise RemoteError(f"the Hub's answer is longer than {self._most} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    """Seconds that the Hub asks us to wait, from Retry-After (seconds or a date) or its rate-limit header.

    The library's own reader of the latter takes seconds over hostile ones, with every other thread waiting.
    """
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
