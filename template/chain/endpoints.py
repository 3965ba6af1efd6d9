"""The endpoints of a network, in the order in which connections use them."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import bittensor as bt
from bittensor import settings
from bittensor._substrate import _unwrap_key

from template.errors import ConfigError

# The most keys that a node returns at once. Source: STORAGE_KEYS_PAGED_MAX_COUNT, sc-rpc, state/mod.rs.
_PAGE_SIZE = 1000


class PagedSubstrate(bt.RpcSubstrate):
    """The client's connection, with as long pages of a storage map as a node allows.

    The client's own have 100 keys, so that the commitments of a full subnet take six requests one after the other.
    """

    async def query_map(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> list[tuple[Any, Any]]:
        """Read a map's entries below the given keys."""

        async def read(connection: Any) -> list[tuple[Any, Any]]:
            pages = await connection.query_map(
                module, storage_function, params, block_hash=block_hash, page_size=_PAGE_SIZE
            )
            return [(_unwrap_key(key), value) async for key, value in pages]  # type: ignore[no-untyped-call]

        return await self._read(read)


class Endpoints:
    """A network's endpoints in rotation: the current one, then its fallbacks.

    The client itself tries a fallback at once when it cannot connect, but only after five minutes of silence. So a
    caller rotates after a failure, and the next connection begins at the next endpoint.
    Empty fallbacks or archives mean the client's public endpoints of a named network.

    Raises: ConfigError with the flag of an invalid url.
    """

    def __init__(self, network: str, fallbacks: Sequence[str] = (), archives: Sequence[str] = ()) -> None:
        try:
            self.label, first = settings.resolve_endpoint(network)
        except ValueError as exc:
            names = ", ".join(sorted(settings.NETWORKS))
            raise ConfigError(
                f"--subtensor.network must be {names}, or a ws:// or wss:// url, not {network!r}"
            ) from exc
        _check_url(first, "--subtensor.network")
        for url in fallbacks:
            _check_url(url, "--subtensor.fallback_endpoints")
        for url in archives:
            _check_url(url, "--subtensor.archive_endpoints")
        others = fallbacks or settings.default_fallback_endpoints(self.label)
        self._order = list(dict.fromkeys([first, *others]))
        self._archives = list(archives) or settings.default_archive_endpoints(self.label)

    @property
    def current(self) -> str:
        """The endpoint of the next connection."""
        return self._order[0]

    def rotate(self) -> None:
        """Move the current endpoint to the end."""
        self._order.append(self._order.pop(0))

    def open(self) -> bt.RpcSubstrate:
        """Return a connection that is not open yet."""
        first, *others = self._order
        return PagedSubstrate(first, fallback_endpoints=others, archive_endpoints=self._archives)


def _check_url(url: str, flag: str) -> None:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"{flag} must be a url like wss://host:443, not {url!r}")
