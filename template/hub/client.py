"""The huggingface_hub client with limits and this package's errors.

By default the library waits without end, accepts answers of any size and sleeps when the Hub is busy. Here each call
runs in a thread with a `RequestBudget`, which `template.hub.transport` enforces below the library. No error message
contains a token or the text of a foreign exception.
"""

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

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
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.hub.transport import (
    MAX_ANSWER_BYTES,
    MAX_REDIRECTS,
    SOCKET_TIMEOUT_S,
    BoundedTransport,
    DeadlineBackend,
    RequestBudget,
)
from template.proxies import check_proxies

_TOKEN = re.compile(r"[!-~]{1,512}")

# The Hub's message to an anonymous client about a private or missing repo.
_ANONYMOUS = "Invalid username or password"

_CONNECTION_ERRORS = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    LocalEntryNotFoundError,
    ConnectionError,
    TimeoutError,
)

T = TypeVar("T")


@functools.cache
def configure_client() -> None:
    """Make huggingface_hub use `BoundedTransport` without Xet or telemetry.

    Each function here calls it first. A process in which other libraries use the Hub must call it before they do.
    Raises: ConfigError for a proxy or an endpoint that cannot be used.
    """
    check_proxies()
    endpoint = urlsplit(hf_constants.ENDPOINT)
    if endpoint.scheme not in ("http", "https") or not endpoint.hostname:
        raise ConfigError(
            f"HF_ENDPOINT must be a url like https://huggingface.co, not {hf_constants.ENDPOINT!r}; unset it"
        )
    # Constants, because the library may have read its environment long ago. Xet is native code without limits.
    hf_constants.HF_HUB_DISABLE_XET = True
    hf_constants.HF_HUB_DISABLE_TELEMETRY = True
    if not are_progress_bars_disabled():
        disable_progress_bars()
    huggingface_hub.set_client_factory(_make_client)


NO_TOKEN = "no Hub token: set HF_TOKEN, or run `hf auth login`"
"""Why a program that writes to the Hub cannot run."""


def saved_token() -> str | None:
    """Return the user's Hub token, from HF_TOKEN or the login file; None without one."""
    configure_client()
    return read_token()


def read_token() -> str | None:
    """Return the same as `saved_token`, also where no client can be configured."""
    try:
        token = huggingface_hub.get_token()
    except (OSError, httpx2.HTTPError, DeviceCodeError, OIDCError, RemoteError) as exc:
        raise HostError(f"the saved Hub token cannot be used ({type(exc).__name__}); log in again") from exc
    if token is not None and token[0] in "\"'":
        raise ConfigError(
            "the Hub token is in quotes: remove them (docker's --env-file keeps them as part of the value)"
        )
    return token


def make_api(token: str | None, endpoint: str | None) -> HfApi:
    """Return a client for `endpoint`, anonymous if token is None.

    Raises: HostError for a malformed token, which the library would quote in its error.
    """
    configure_client()
    if token is not None and _TOKEN.fullmatch(token) is None:
        raise HostError("the Hub token contains spaces, line breaks or other illegal characters; copy it again")
    # With None the library would look for a saved token.
    return HfApi(endpoint=endpoint, token=False if token is None else token)


def run_with_deadline(api: HfApi, deadline_s: float, job: Callable[[RequestBudget], T]) -> T:
    """Run `job` in a thread; raise RemoteError after `deadline_s`.

    A job that is too late ends at its next request or chunk, so it must leave nothing half done.
    """
    budget = RequestBudget(time.monotonic() + deadline_s, api.endpoint, MAX_ANSWER_BYTES)
    outcome: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            with budget.activate():
                outcome.set_result(job(budget))
        except BaseException as exc:
            outcome.set_exception(exc)

    # Not an executor, whose threads the interpreter would wait for at its end.
    threading.Thread(target=run, name="hub-call", daemon=True).start()
    try:
        futures.wait([outcome], timeout=deadline_s)
        if not outcome.done():
            raise RemoteError(f"the Hub did not answer in {deadline_s:g} s")
        return outcome.result()
    finally:
        budget.deadline = 0.0


def _make_client() -> httpx2.Client:
    """Return the library's own client with limits on every transport."""
    client = default_client_factory()
    client.timeout = httpx2.Timeout(SOCKET_TIMEOUT_S)
    client.max_redirects = MAX_REDIRECTS

    def bound(transport: Any) -> BoundedTransport:
        transport._pool._network_backend = DeadlineBackend(transport._pool._network_backend)
        return BoundedTransport(transport, lambda: hf_constants.ENDPOINT)

    client._transport = bound(client._transport)
    client._mounts = {pattern: proxy and bound(proxy) for pattern, proxy in client._mounts.items()}
    return client


@contextmanager
def translate_hub_errors(api: HfApi, repo_id: str, *, is_write: bool = False) -> Iterator[None]:
    """Translate the library's exceptions to SubnetErrors, by cause."""
    try:
        yield
    except SubnetError:
        raise
    except OfflineModeIsEnabled as exc:
        raise ConfigError("HF_HUB_OFFLINE forbids reaching the Hub; unset it or set it to 0") from exc
    # Before the next two, since it is an OSError and an httpx error as well.
    except HfHubHTTPError as exc:
        raise (_write_error(exc, repo_id) if is_write else _read_error(exc, api, repo_id)) from exc
    except _CONNECTION_ERRORS as exc:
        raise RemoteError(f"the Hub could not be reached: {type(exc).__name__}") from exc
    except OSError as exc:
        raise HostError(f"this machine failed a call to the Hub: {exc.strerror or type(exc).__name__}") from exc
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError, AssertionError) as exc:
        raise RemoteError(f"the Hub sent an unexpected answer about {repo_id}") from exc
    except RuntimeError as exc:
        # When one thread cannot connect, the library closes the client that all threads share.
        if "client has been closed" in str(exc):
            raise RemoteError("the Hub could not be reached: another call closed the connections") from exc
        if exc.__cause__ is None:
            raise
        # The library wraps every failed upload of a large file.
        with translate_hub_errors(api, repo_id, is_write=is_write):
            raise exc.__cause__ from exc.__cause__.__cause__


def _read_error(exc: HfHubHTTPError, api: HfApi, repo_id: str) -> SubnetError:
    """Translate a failed read; a SubmissionError only if the Hub reports it missing.

    The same status from a storage server is a RemoteError.
    """
    status, headers = exc.response.status_code, exc.response.headers
    unclear = RemoteError(f"the Hub answered HTTP {status} about {repo_id}")
    if exc.response.url.origin != httpx2.URL(api.endpoint).origin or status not in (401, 403, 404):
        return unclear
    # To a valid token the Hub answers 404 or 403 about a repo; a plain 401 means the token.
    if status == 401 and api.token and "X-Error-Code" not in headers:
        return HostError("the Hub does not accept our token")
    if isinstance(exc, RemoteEntryNotFoundError):
        return SubmissionError(Reason.MISSING_FILE, f"the file is not in {repo_id}")
    if isinstance(exc, RevisionNotFoundError):
        return SubmissionError(Reason.MISSING_REPO, f"{repo_id} has no such commit or branch")
    # The library reports any 401 as a missing repo, a gateway's too.
    is_named = "X-Error-Code" in headers or _ANONYMOUS in (exc.server_message or "")
    if isinstance(exc, DisabledRepoError) or (is_named and (isinstance(exc, RepositoryNotFoundError) or status == 401)):
        return SubmissionError(Reason.MISSING_REPO, f"{repo_id} is not on the Hub, or is private, gated or disabled")
    return unclear


def _write_error(exc: HfHubHTTPError, repo_id: str) -> SubnetError:
    status = exc.response.status_code
    if status in (401, 402, 403, 404):
        return HostError(f"the Hub does not let this token write to {repo_id} (HTTP {status})")
    if status in (408, 409, 412):
        return RemoteError(f"{repo_id} was busy or changed during the upload (HTTP {status})")
    return HostError(f"the Hub rejected the upload to {repo_id} (HTTP {status})")
