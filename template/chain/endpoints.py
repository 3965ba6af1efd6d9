"""Which endpoints a network means, checked, and which of them the next connection goes to."""

from collections.abc import Sequence
from urllib.parse import urlsplit

import bittensor as bt
from bittensor import settings

from template.errors import ConfigError


class Endpoints:
    """A network's endpoints in a circle: the current one first, and the others as its fallbacks.

    The client goes on to a fallback at once when an endpoint cannot be dialled, but after a silence only when five
    minutes are over, which no deadline here waits for. So whoever meets a failure calls `rotate`, and the next
    connection begins elsewhere.

    network: a name the client knows, or a ws:// or wss:// url. fallbacks, archives: none means the client's public
    pools for a named network. Raises: ConfigError naming the flag of whatever is no url.
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
        self._archives = check_urls(archives, "--subtensor.archive_endpoints")
        self._archives = self._archives or settings.default_archive_endpoints(self.label)
        others = check_urls(fallbacks, "--subtensor.fallback_endpoints")
        # Each once: the circle is of different endpoints.
        self._circle = list(dict.fromkeys([first, *(others or settings.default_fallback_endpoints(self.label))]))

    @property
    def current(self) -> str:
        """Where the next connection begins."""
        return self._circle[0]

    def rotate(self) -> None:
        """Puts the current endpoint last."""
        self._circle.append(self._circle.pop(0))

    def open(self) -> bt.RpcSubstrate:
        """A connection that is not dialled yet."""
        first, *others = self._circle
        return bt.RpcSubstrate(first, fallback_endpoints=others, archive_endpoints=self._archives)


def check_urls(urls: Sequence[str], flag: str) -> list[str]:
    """The urls as they are. Raises: ConfigError naming the flag."""
    return [_check_url(url, flag) for url in urls]


def _check_url(url: str, flag: str) -> str:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"{flag} must be a url like wss://host:443, not {url!r}")
    return url
