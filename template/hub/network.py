"""Where a call to the Hub may connect to, and how long it may wait there: what stands below the Hub's HTTP client.

The client's time-outs are for each packet, so a header, a handshake or an upload that goes on one byte at a time
outlives them all. Here each wait on a socket ends by the deadline of the call that waits, which therefore ends too.

The endpoint is the operator's choice and may be anywhere. Whatever else the Hub points to may lie on the open network
only: a stranger's answer is no way into this machine or the network it stands in. The address is judged that is
connected to, not its name. Behind a proxy the proxy finds the address, and the operator's rules for it hold.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from template.errors import RemoteError

# Bytes handed to the kernel at a time, so that the deadline is looked at between them.
_PIECE_BYTES = 16 * 2**10

# What an IPv4 host is reached by over IPv6: mapped, and through a translator (RFC 6052).
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")

# RFC 6598: a provider's own network, and some clouds' metadata.
_SHARED = ipaddress.ip_network("100.64.0.0/10")

# What Python's table, which changes with its version, takes for public: protocols' own addresses, one of them a
# cloud's metadata (RFC 6890), and whatever lies outside of the one part of IPv6 that is handed out.
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")
_HANDED_OUT = ipaddress.ip_network("2000::/3")

# Of the time left, what an address may take that is not the last: a network may swallow all that goes to one family.
_SHARE = 1 / 3

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass
class RequestBudget:
    """What one call may cost: `deadline` on the monotonic clock, `max_bytes` of each answer on the wire.

    endpoint: the Hub's base address, the only origin that is given the token. is_ours: the caller is this project;
    another library has its own way with a Hub that is away or busy.
    """

    deadline: float
    endpoint: str
    max_bytes: int
    is_ours: bool = True

    def remaining_s(self) -> float:
        """Seconds left. Raises: RemoteError when there are none."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise RemoteError("the Hub did not finish its answer in the time allowed")
        return remaining

    @contextmanager
    def activate(self) -> Iterator[None]:
        """The waits of this thread's sockets are this budget's."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[RequestBudget | None] = ContextVar("_CURRENT", default=None)


def current_budget() -> RequestBudget | None:
    """The budget of the call that this thread is in, None outside of any."""
    return _CURRENT.get()


def network_of(address: str) -> str:
    """Which network an IP address belongs to: "public", or the kind of one that strangers must not point into."""
    ip = _plain(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    if ip.is_unspecified or ip.is_multicast or ip.is_reserved:
        return "no host's"
    if ip in _SHARED:
        return "shared"
    is_public = ip.is_global and ip not in _PROTOCOLS and (ip.version == 4 or ip in _HANDED_OUT)
    return "public" if is_public else "private"


def _plain(ip: _IP) -> _IP:
    """The IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _TRANSLATED:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    teredo = ip.teredo
    return ip.ipv4_mapped or ip.sixtofour or (teredo[1] if teredo else ip)


def allowed_addresses(addresses: list[str], endpoint: str) -> list[str]:
    """Those on the open network, or on one of the kind that the endpoint is on. Raises: RemoteError when none is."""
    networks = {address: network_of(address) for address in addresses}
    is_open = {"public"}
    if not is_open.issuperset(networks.values()):
        parts = urlsplit(endpoint)
        with suppress(httpcore2.ConnectError):
            is_open.update(network_of(one) for one in resolve(parts.hostname or "", parts.port or 0))
    kept = [address for address, network in networks.items() if network in is_open]
    if not kept:
        told = ", ".join(f"{address}, which is a {network} address" for address, network in networks.items())[:300]
        raise RemoteError(f"the Hub points to {told}; that is not followed")
    return kept


def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host, a name or an address however written, its families by turns (RFC 8305, section 4).

    Raises: ConnectError when there are none, as the client does itself: whoever has the file cached does without.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"the host {host[:100]!r} is not known to the name server") from error
    families: dict[int, dict[str, None]] = {}
    for family, *_, address in found:
        families.setdefault(family, {})[str(address[0])] = None
    return [address for turn in zip_longest(*families.values()) for address in turn if address is not None]


class BoundedBackend(httpcore2.NetworkBackend):
    """Connections of `inner` that are made only where they may be, and wait only as long as their call may.

    is_proxied: what is connected to is the operator's proxy, whose address is the operator's affair.
    """

    def __init__(self, inner: httpcore2.NetworkBackend, *, is_proxied: bool) -> None:
        self._inner = inner
        self._is_proxied = is_proxied

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """A connection to the first address of the host that takes one. Raises: RemoteError, ConnectError."""
        failure: Exception = httpcore2.ConnectError(f"the host {host[:100]!r} has no address")
        addresses = self._addresses(host, port)
        for left, address in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
            try:
                with _waiting(timeout, _SHARE if left else 1.0) as wait_s:
                    return BoundedStream(self._inner.connect_tcp(address, port, wait_s, local_address, socket_options))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        budget = current_budget()
        if self._is_proxied or budget is None:
            return [host]
        addresses = resolve(host, port)
        return (
            addresses if host == urlsplit(budget.endpoint).hostname else allowed_addresses(addresses, budget.endpoint)
        )


class BoundedStream(httpcore2.NetworkStream):
    """A connection whose every wait ends by the deadline of the call that it serves at the time."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _waiting(timeout) as wait_s:
            return self._inner.read(max_bytes, wait_s)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE_BYTES):
            with _waiting(timeout) as wait_s:
                self._inner.write(buffer[start : start + _PIECE_BYTES], wait_s)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        with _waiting(timeout) as wait_s:
            return BoundedStream(self._inner.start_tls(ssl_context, server_hostname, wait_s))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


@contextmanager
def _waiting(timeout: float | None, share: float = 1.0) -> Iterator[float | None]:
    """The time-out to wait with, shortened to `share` of what the call has left.

    Raises: RemoteError when that is nothing, before or after; a time-out of the client's own would be tried again.
    """
    budget = current_budget()
    if budget is None:
        yield timeout
        return
    remaining_s = share * budget.remaining_s()
    try:
        yield remaining_s if timeout is None else min(timeout, remaining_s)
    except httpcore2.TimeoutException:
        budget.remaining_s()
        raise
