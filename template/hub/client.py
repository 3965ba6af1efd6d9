"""The huggingface_hub client under a budget, with its exceptions translated: the lower half of the Hub seam.

The library's session waits for ever by default, its answers have no size limit, and it goes wherever it is pointed. So
every call of `template.hub.datasets` runs under a budget, a deadline for the whole call and a limit on the bytes of
each answer,
which `hub_guard` and `hub_network` see to below the library's client. The call runs in a thread of its own that is
abandoned at the deadline, and that ends then too, but for a name server that is slower.

No message made here holds a token or a foreign exception's text.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
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
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.hub.network import RequestBudget
from template.hub.transport import MAX_ANSWER_BYTES, MAX_REDIRECTS, SOCKET_TIMEOUT_S, BoundedTransport

_TOKEN = re.compile(r"[!-~]{1,512}")

# What the Hub says to who has no token about a repo that is private or not there.
_ANONYMOUS = "Invalid username or password"

T = TypeVar("T")


_CONFIGURE_LOCK = threading.Lock()
_is_configured = False


def configure_client() -> None:
    """Give huggingface_hub a client that keeps `hub_guard`'s rules; no progress bars, Xet or telemetry.

    Every call here does it first. A process whose other libraries use the Hub (transformers) must call it sooner.
    Xet transfers run in native code that no rule reaches. A second call changes nothing.
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
    # Renewing one asks the endpoint, with a secret in hand.
    configure_client()
    try:
        return huggingface_hub.get_token()
    except (OSError, httpx2.HTTPError, DeviceCodeError, OIDCError, RemoteError) as exc:
        raise HostError(f"the saved Hub token cannot be used: {type(exc).__name__}") from exc


def make_api(token: str | None, endpoint: str | None) -> HfApi:
    """The library's client for `endpoint` (None: its own default), anonymous when token is None.

    Raises: HostError when the token cannot be one, which the library would quote in its error.
    """
    configure_client()
    if token is not None and _TOKEN.fullmatch(token) is None:
        raise HostError("the Hub token holds characters that no token has; was it pasted with a line break?")
    # False, not None: None would have the library look for a token of its own.
    return HfApi(endpoint=endpoint, token=False if token is None else token)


def run_with_deadline(api: HfApi, deadline_s: float, job: Callable[[RequestBudget], T]) -> T:
    """What `job` returns or raises, or RemoteError once `deadline_s` has passed, whatever it hangs in.

    An abandoned job stops at its next request or packet, so it must be one that may end half done.
    """
    budget = RequestBudget(time.monotonic() + deadline_s, api.endpoint, MAX_ANSWER_BYTES)
    outcome: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            with budget.activate():
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
    """The library's own client, its proxies from the environment included, with every transport guarded."""
    client = default_client_factory()
    client.timeout = httpx2.Timeout(SOCKET_TIMEOUT_S)
    client.max_redirects = MAX_REDIRECTS
    client._transport = _guarded(client._transport, is_proxied=False)
    client._mounts = {
        pattern: None if proxy is None else _guarded(proxy, is_proxied=True)
        for pattern, proxy in client._mounts.items()
    }
    return client


def _guarded(transport: httpx2.BaseTransport, *, is_proxied: bool) -> BoundedTransport:
    assert isinstance(transport, httpx2.HTTPTransport), "the library's client has transports of another kind"
    return BoundedTransport(transport, endpoint=lambda: hf_constants.ENDPOINT, is_proxied=is_proxied)


@contextmanager
def translate_hub_errors(api: HfApi, repo_id: str, *, is_write: bool = False) -> Iterator[None]:
    """Translate what the library raises, most telling first: its HTTP errors are OSErrors and httpx2 errors as well."""
    try:
        yield
    except SubnetError:
        raise
    except OfflineModeIsEnabled as exc:
        raise ConfigError("HF_HUB_OFFLINE forbids reaching the Hub; unset it or set it to 0") from exc
    except HfHubHTTPError as exc:
        raise (_translate_write_error(exc, repo_id) if is_write else _translate_read_error(exc, api, repo_id)) from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, LocalEntryNotFoundError) as exc:
        raise RemoteError(f"the Hub could not be reached: {type(exc).__name__}") from exc
    except (ConnectionError, TimeoutError) as exc:
        raise RemoteError(f"the Hub could not be reached: {type(exc).__name__}") from exc
    except OSError as exc:
        raise HostError(f"this machine failed a call to the Hub: {exc.strerror or type(exc).__name__}") from exc
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError, AssertionError) as exc:
        raise RemoteError(f"the Hub's answer about {repo_id} is not what it should be") from exc
    except RuntimeError as exc:
        # The library closes the client that all threads share when one of them cannot connect.
        if "client has been closed" in str(exc):
            raise RemoteError("the Hub could not be reached: another call had the connections closed") from exc
        if exc.__cause__ is None:
            raise
        # So it wraps whatever befalls the storing of a large file.
        with translate_hub_errors(api, repo_id, is_write=is_write):
            raise exc.__cause__ from exc.__cause__.__cause__


def _translate_read_error(exc: HfHubHTTPError, api: HfApi, repo_id: str) -> SubnetError:
    """Whose fault a refusal is: the miner's only when it is the Hub itself, not its store, that says so of the repo."""
    status, headers = exc.response.status_code, exc.response.headers
    unclear = RemoteError(f"the Hub answered HTTP {status} about {repo_id}")
    if exc.response.url.origin != httpx2.URL(api.endpoint).origin or status not in (401, 403, 404):
        return unclear
    # About a repo the Hub answers 404 or 403 to a token it accepts. A plain 401 is about the token: wrong, expired.
    if status == 401 and api.token and "X-Error-Code" not in headers:
        return HostError("the Hub does not accept our token")
    if isinstance(exc, RemoteEntryNotFoundError):
        return SubmissionError(Reason.MISSING_FILE, f"the file is not in {repo_id}")
    if isinstance(exc, RevisionNotFoundError):
        return SubmissionError(Reason.MISSING_REPO, f"{repo_id} has no such commit or branch")
    # The library takes any 401 for the repo's, also that of a gateway in between.
    is_named = "X-Error-Code" in headers or _ANONYMOUS in (exc.server_message or "")
    if isinstance(exc, DisabledRepoError) or (is_named and (isinstance(exc, RepositoryNotFoundError) or status == 401)):
        return SubmissionError(Reason.MISSING_REPO, f"{repo_id} is not on the Hub, or is private, gated or disabled")
    return unclear


def _translate_write_error(exc: HfHubHTTPError, repo_id: str) -> SubnetError:
    status = exc.response.status_code
    if status in (401, 402, 403, 404):
        return HostError(f"the Hub does not let this token write to {repo_id} (HTTP {status})")
    if status in (408, 409, 412):
        return RemoteError(f"{repo_id} was busy or changed during the upload (HTTP {status})")
    return HostError(f"the Hub refused the upload to {repo_id} (HTTP {status})")
