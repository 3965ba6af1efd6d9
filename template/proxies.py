"""Refuse proxies that the clients of the Hub and the chain cannot use."""

from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from template.errors import ConfigError

_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_proxies() -> None:
    """Check the proxies of the environment. Raises: ConfigError naming the variable, without its password."""
    for name, url in getproxies_environment().items():
        scheme = urlsplit(url).scheme.lower() if "://" in url else "http"
        if name != "no" and scheme not in ("http", "https"):
            raise ConfigError(
                f"{name.upper()}_PROXY: {scheme}:// proxies are not supported; give an http:// proxy, or unset it"
            )


def find_proxies() -> dict[str, tuple[str, int]]:
    """Return host and port of each usable proxy, by its variable."""
    found = {}
    for name, url in getproxies_environment().items():
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if name in ("http", "https", "all") and parts.scheme.lower() in _DEFAULT_PORTS and parts.hostname:
            found[f"{name.upper()}_PROXY"] = parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme.lower()]
    return found
