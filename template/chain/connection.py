"""A connection to one of a network's endpoints, with a deadline on every use, replaced after a failure."""

import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeVar

import bittensor as bt
from bittensor._transport.errors import SubstrateRequestException

from template.chain.endpoints import Endpoints
from template.chain.event_loop import EventLoopThread
from template.chain.runtime_cache import forget_runtimes
from template.errors import ConfigError, RemoteError

T = TypeVar("T")

MAX_DEADLINE_S = 3600.0

# The runtime from which the authors of bittensor 11.3 generated its calls and storage items.
_CLIENT_RUNTIME = 475

# The client's errors for what the runtime's metadata does not have.
_MISSING = re.compile(r"(storage function|call|pallet|Runtime API Call) .* not found|missing call param")


@dataclass(frozen=True)
class Link:
    """A client and the substrate below it, which alone reads block hashes."""

    loop: EventLoopThread
    client: bt.Client
    substrate: Any


Operation = Callable[[Link], Awaitable[T]]


class _MissingItemError(Exception):
    """The runtime lacks what the client asks it for."""


class Connection:
    """A network's endpoints, and a link to one of them from the first use on.

    After a failure the next use opens a link to the next endpoint in turn.
    """

    def __init__(self, network: str, fallbacks: Sequence[str], archives: Sequence[str], deadline_s: float) -> None:
        if not 0 < deadline_s <= MAX_DEADLINE_S:
            raise ConfigError(
                f"--subtensor.deadline_seconds must be above 0 and at most {MAX_DEADLINE_S:g}, not {deadline_s}"
            )
        self._endpoints = Endpoints(network, fallbacks, archives)
        self._deadline_s = deadline_s
        self._link: Link | None = None

    def close(self) -> None:
        """Close the link; a later call opens a new one."""
        if self._link is not None:
            link, self._link = self._link, None
            link.loop.close()

    def next_endpoint(self) -> None:
        """Let the next call connect to the next endpoint."""
        self.close()
        self._endpoints.rotate()

    def _call(self, what: str, operation: Operation[T]) -> T:
        """Run `operation` within the deadline; close the link if it fails. Raises: RemoteError."""
        is_done = is_answered = False
        try:
            link = self._link = self._link or self._open()
            result = link.loop.run(lambda: _run(link, operation), self._deadline_s)
            is_done = True
            return result
        except (TimeoutError, CancelledError) as exc:
            raise RemoteError(f"could not {what}: no answer within {self._deadline_s:g} s") from exc
        except _MissingItemError as exc:
            forget_runtimes()
            raise RemoteError(f"could not {what}: {exc}") from exc
        except (bt.BittensorError, SubstrateRequestException, OSError) as exc:
            is_answered = isinstance(exc, bt.ChainError)
            raise RemoteError(f"could not {what}: {exc}", _retry_after_s(exc)) from exc
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            forget_runtimes()
            raise RemoteError(f"could not {what}: invalid answer: {exc!r}") from exc
        finally:
            if not is_done:
                self.close()
                if not is_answered:
                    self._endpoints.rotate()

    def _open(self) -> Link:
        substrate = self._endpoints.open()
        # Not Client.connect, which also loads token symbols from a cache in the user's home.
        loop = EventLoopThread(substrate.connect, substrate.close)
        return Link(loop, bt.Client(self._endpoints.label, substrate=substrate), substrate)


async def _run(link: Link, operation: Operation[T]) -> T:
    try:
        return await operation(link)
    except ValueError as exc:
        if _MISSING.match(str(exc)) is None or (runtime := await link.substrate.spec_version()) == _CLIENT_RUNTIME:
            raise
        raise _MissingItemError(_explain(str(exc), runtime)) from exc


def _explain(missing: str, runtime: int) -> str:
    """Tell which side is older, and which release of the client to try."""
    if runtime < _CLIENT_RUNTIME:
        age, release = "older", f"an earlier release, such as pip install 'bittensor<{bt.__version__}'"
    else:
        age, release = "newer", "a newer release of this package (docs/operator.md, Update), or try a later bittensor"
    return (
        f"{missing}: the chain's runtime {runtime} is {age} than the one that bittensor {bt.__version__} is made for"
        f" ({_CLIENT_RUNTIME}); install {release}"
    )


def _retry_after_s(exc: BaseException) -> float | None:
    text = getattr(exc, "retry_after", None)
    return float(text) if isinstance(text, str) and text.isdecimal() else None
