"""Proxies that the environment names (HTTPS_PROXY and its kin), as Flower's client, httpx, takes them.

The way to SuperLink may lead through one. This machine's own addresses never do: SuperNode and ClientApp
speak over the loopback interface, and so does all of `make demo`.
"""

from collections.abc import Mapping
from urllib.request import getproxies

import httpx

from federation.errors import FederationError

__all__ = ["LOOPBACK", "bypass_loopback", "check_proxies"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SCHEMES = ("http", "https")  # httpx knows SOCKS, but only with a package that Flower does not bring


def bypass_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Both spellings of NO_PROXY, with what `environment` has in it and this machine's own names."""
    # The lower case wins: so it is for urllib, which httpx takes its proxies from.
    given = [host.strip() for host in environment.get("no_proxy", environment.get("NO_PROXY", "")).split(",")]
    hosts = ["*"] if "*" in given else list(dict.fromkeys([*filter(None, given), *LOOPBACK]))
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts))


def check_proxies() -> None:
    """Raise a `FederationError` if the environment names a proxy with which httpx ends at once."""
    found = getproxies()
    for kind in ("http", "https", "all"):
        value = found.get(kind, "")
        try:
            url = httpx.URL(value if "://" in value else f"http://{value}")
        except httpx.InvalidURL:
            raise FederationError(f"{kind.upper()}_PROXY is no address; write http://host:port") from None
        if value and (url.scheme not in _SCHEMES or not url.host):
            raise FederationError(
                f"{kind.upper()}_PROXY={url.copy_with(userinfo=None)}: Flower takes HTTP proxies only; write "
                "the proxy's HTTP port as http://host:port, or unset it"
            )
