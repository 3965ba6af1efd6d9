"""Refuse proxies that the clients of the Hub and the chain cannot use."""

from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from template.errors import ConfigError


def check_proxies() -> None:
    """Check the proxies of the environment. Raises: ConfigError naming the variable, without its password."""
    for name, url in getproxies_environment().items():
        scheme = urlsplit(url).scheme.lower() if "://" in url else "http"
        if name != "no" and scheme not in ("http", "https"):
            raise ConfigError(
                f"{name.upper()}_PROXY: {scheme}:// proxies are not supported; give an http:// proxy, or unset it"
            )
