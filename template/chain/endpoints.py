"""The endpoints of a network, in the order in which connections use them."""

from collections.abc import Sequence
from urllib.parse import urlsplit

import bittensor as bt
from bittensor import settings

from template.errors import ConfigError


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
        return bt.RpcSubstrate(first, fallback_endpoints=others, archive_endpoints=self._archives)


def _check_url(url: str, flag: str) -> None:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"{flag} must be a url like wss://host:443, not {url!r}")
