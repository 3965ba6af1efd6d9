"""The huggingface_hub client under a budget, with its exceptions translated: the lower half of the Hub seam.

The library's session waits for ever by default and its answers have no size limit. So every call of `template.hub`
runs under a budget: a deadline for the whole call, and a limit on the bytes of each answer as they come over the
wire. Two hooks on the library's client enforce it between packets, and the call runs in a thread of its own that
is abandoned at the deadline, since a name server or a header that drips is never seen by a hook. The library's
retries are cut short for the same calls: when to try again is the caller's decision.

No message made here holds a token or a foreign exception's text.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub import constants as hf_constants
from huggingface_hub.errors import (
    DeviceCodeError,
    DisabledRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    OIDCError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError

_TOKEN = re.compile(r"[!-~]{1,512}")
_SOCKET_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 16 * 2**20
_MAX_RETRY_AFTER_S = 86_400.0

T = TypeVar("T")


@dataclass
class Budget:
    """What one call may cost: `deadline` on the monotonic clock, `max_bytes` of each answer on the wire."""

    deadline: float
    max_bytes: int = _MAX_ANSWER_BYTES

    def remaining_s(self) -> float:
        """Seconds left. Raises: RemoteError when there are none."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise RemoteError("the Hub did not finish its answer in the time allowed")
        return remaining


_BUDGET: ContextVar[Budget | None] = ContextVar("_BUDGET", default=None)
_CONFIGURE_LOCK = threading.Lock()
_is_configured = False


def configure() -> None:
    """Give huggingface_hub a client with time-outs and our budget hooks; no progress bars, Xet or telemetry.

    Every call here does it first. A process whose other libraries use the Hub (transformers) may call it sooner.
    Xet transfers run in native code that no hook sees. A second call changes nothing.
    """
    global _is_configured
    with _CONFIGURE_LOCK:
        if _is_configured:
            return
        # The library reads its environment once, when first imported, which may be long before this.
        hf_constants.HF_HUB_DISABLE_XET = True
        hf_constants.HF_HUB_DISABLE_TELEMETRY = True
        if not are_progress_bars_disabled():
            disable_progress_bars()
        huggingface_hub.set_client_factory(_make_client)
        _is_configured = True


def saved_token() -> str | None:
    """The token of this machine's user as the Hub's own tools keep it: HF_TOKEN, else the login file; None if none.

    Raises: HostError when there is one that cannot be read or renewed.
    """
    try:
        return huggingface_hub.get_token()
    except (OSError, httpx2.HTTPError, DeviceCodeError, OIDCError) as exc:
        raise HostError(f"the saved Hub token cannot be used: {type(exc).__name__}") from exc


def make_api(token: str | None, endpoint: str | None) -> HfApi:
    """The library's client for `endpoint` (None: its own default), anonymous when token is None.

    Raises: HostError when the token cannot be one, which the library would quote in its error.
    """
    configure()
    if token is not None and _TOKEN.fullmatch(token) is None:
        raise HostError("the Hub token holds characters that no token has; was it pasted with a line break?")
    # False, not None: None would have the library look for a token of its own.
    return HfApi(endpoint=endpoint, token=False if token is None else token)


def bounded(deadline_s: float, job: Callable[[Budget], T]) -> T:
    """What `job` returns or raises, or RemoteError once `deadline_s` has passed, whatever it hangs in.

    An abandoned job stops at its next request or packet, so it must be one that may end half done.
    """
    budget = Budget(deadline=time.monotonic() + deadline_s)
    outcome: futures.Future[T] = futures.Future()

    def run() -> None:
        _BUDGET.set(budget)
        try:
            outcome.set_result(job(budget))
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=run, name="hub-call", daemon=True).start()
    try:
        futures.wait([outcome], timeout=deadline_s)
        if not outcome.done():
            raise RemoteError(f"the Hub did not answer in {deadline_s:g} s")
        return outcome.result()
    finally:
        budget.deadline = 0.0


def _make_client() -> httpx2.Client:
    client = default_client_factory()
    client.timeout = httpx2.Timeout(_SOCKET_TIMEOUT_S)
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _limit_request],
        "response": [*hooks["response"], _limit_response],
    }
    return client


def _limit_request(request: httpx2.Request) -> None:
    """Request hook: socket time-outs within the budget, and no compressed answer, whose size the wire does not show."""
    budget = _BUDGET.get()
    if budget is None:
        return
    timeout_s = min(_SOCKET_TIMEOUT_S, budget.remaining_s())
    request.extensions = {**request.extensions, "timeout": httpx2.Timeout(timeout_s).as_dict()}
    request.headers["Accept-Encoding"] = "identity"


def _limit_response(response: httpx2.Response) -> None:
    """Response hook: count the body against the budget, and end the library's patience with 429 and 5xx."""
    budget = _BUDGET.get()
    if budget is None:
        return
    status = response.status_code
    if status == 429 or status >= 500:
        raise RemoteError(f"the Hub answered HTTP {status}", _retry_after_s(response))
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise RemoteError("the Hub compressed an answer that was asked for plain")
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _CountedStream(response.stream, budget)


class _CountedStream(httpx2.SyncByteStream):
    """A body that ends in RemoteError at the first packet beyond the budget."""

    def __init__(self, stream: httpx2.SyncByteStream, budget: Budget) -> None:
        self._stream = stream
        self._budget = budget

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for chunk in self._stream:
            received += len(chunk)
            self._budget.remaining_s()
            if received > self._budget.max_bytes:
                raise RemoteError(f"the Hub's answer is longer than {self._budget.max_bytes} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Seconds that the Hub asks us to wait, from Retry-After (seconds or a date) or its rate-limit headers."""
    text = response.headers.get("Retry-After", "").strip()
    seconds: float | None = None
    if re.fullmatch(r"[0-9]{1,9}", text):
        seconds = float(text)
    elif text:
        with suppress(ValueError, OverflowError):
            seconds = (parsedate_to_datetime(text).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    if seconds is None:
        with suppress(ValueError):
            limit = parse_ratelimit_headers(response.headers)
            seconds = None if limit is None or limit.remaining > 0 else float(limit.reset_in_seconds)
    return None if seconds is None else min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


@contextmanager
def hub_faults(api: HfApi, repo_id: str, *, is_write: bool = False) -> Iterator[None]:
    """Translate what the library raises, most telling first: its HTTP errors are OSErrors and httpx2 errors as well."""
    try:
        yield
    except SubnetError:
        raise
    except OfflineModeIsEnabled as exc:
        raise ConfigError("HF_HUB_OFFLINE forbids reaching the Hub; unset it or set it to 0") from exc
    except HfHubHTTPError as exc:
        raise (_write_fault if is_write else _read_fault)(exc, repo_id, bool(api.token)) from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, LocalEntryNotFoundError) as exc:
        raise RemoteError(f"the Hub could not be reached: {type(exc).__name__}") from exc
    except (ConnectionError, TimeoutError) as exc:
        raise RemoteError(f"the Hub could not be reached: {type(exc).__name__}") from exc
    except OSError as exc:
        raise HostError(f"this machine failed a call to the Hub: {exc.strerror or type(exc).__name__}") from exc
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise RemoteError(f"the Hub's answer about {repo_id} is not what it should be") from exc
    except RuntimeError as exc:
        # The library closes the client that all threads share when one of them cannot connect.
        if "client has been closed" not in str(exc):
            raise
        raise RemoteError("the Hub could not be reached: another call had the connections closed") from exc


def _read_fault(exc: HfHubHTTPError, repo_id: str, is_authenticated: bool) -> SubnetError:
    status = exc.response.status_code
    # About a repo the Hub answers 404 or 403 to a token it accepts. A plain 401 is about the token: wrong, expired.
    if status == 401 and is_authenticated and "X-Error-Code" not in exc.response.headers:
        return HostError("the Hub does not accept our token")
    if isinstance(exc, RemoteEntryNotFoundError):
        return SubmissionError(Reason.MISSING_FILE, f"the file is not in {repo_id}")
    if isinstance(exc, RevisionNotFoundError):
        return SubmissionError(Reason.MISSING_REPO, f"{repo_id} has no such commit or branch")
    if isinstance(exc, RepositoryNotFoundError | DisabledRepoError) or status == 401:
        return SubmissionError(Reason.MISSING_REPO, f"{repo_id} is not on the Hub, or is private, gated or disabled")
    return RemoteError(f"the Hub answered HTTP {status} about {repo_id}")


def _write_fault(exc: HfHubHTTPError, repo_id: str, is_authenticated: bool) -> SubnetError:
    status = exc.response.status_code
    if status in (401, 402, 403, 404):
        return HostError(f"the Hub does not let this token write to {repo_id} (HTTP {status})")
    if status in (408, 409, 412):
        return RemoteError(f"{repo_id} was busy or changed during the upload (HTTP {status})")
    return HostError(f"the Hub refused the upload to {repo_id} (HTTP {status})")
