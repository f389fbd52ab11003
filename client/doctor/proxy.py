"""The way from this site to SuperLink: straight, or through a proxy that the environment names.

The SuperNode connects with httpx, so httpx's own rules decide, which differ from others': an address range in
NO_PROXY, for one, is not understood.
"""

import socket
from base64 import b64encode
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse

import httpx

# Private, but there is no other way to learn what httpx will do; a test compares this with its client.
from httpx._utils import URLPattern, get_environment_proxies

from federation.errors import FederationError, one_line
from federation.proxies import LOOPBACK

__all__ = ["ProxyError", "connect_through", "find_proxy"]

_PORTS = {"http": 80, "https": 443}


class ProxyError(FederationError):
    """The proxy cannot be reached, or does not let the connection through."""


def find_proxy(host: str, port: int) -> httpx.Proxy | None:
    """Return the proxy through which a SuperNode here reaches `https://host:port`; None if it needs none."""
    if host in LOOPBACK:
        return None
    url = httpx.URL(scheme="https", host=host, port=port)
    patterns = {URLPattern(key): proxy for key, proxy in get_environment_proxies().items()}
    for pattern in sorted(patterns):
        if pattern.matches(url):
            found = patterns[pattern]
            return httpx.Proxy(found) if found else None
    return None


def connect_through(proxy: httpx.Proxy, host: str, port: int, seconds: float) -> socket.socket:
    """Return a connection to `host:port` that `proxy` made.

    Raises:
        ProxyError: with the reason and what to do.
    """
    name, way = proxy.url.host, f"the proxy {proxy.url}"
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.raw_auth:
        request += f"Proxy-Authorization: Basic {b64encode(b':'.join(proxy.raw_auth)).decode()}\r\n"
    try:
        address = (name, proxy.url.port or _PORTS[proxy.url.scheme])
        connection: socket.socket = socket.create_connection(address, timeout=seconds)
    except OSError as error:
        why = error.strerror or error
        raise ProxyError(f"{way} cannot be reached ({why}); correct HTTPS_PROXY, or unset it") from None
    try:
        if proxy.url.scheme == "https":
            connection = httpx.create_ssl_context().wrap_socket(connection, server_hostname=name)
        connection.sendall(f"{request}\r\n".encode())
        answer = HTTPResponse(connection, method="CONNECT")
        answer.begin()
    except (OSError, HTTPException) as error:
        connection.close()
        raise ProxyError(f"{way} does not answer as one ({one_line(error)}); correct HTTPS_PROXY") from None
    if not 200 <= answer.status < 300:
        connection.close()
        raise ProxyError(
            f"{way} refuses ({answer.status} {one_line(answer.reason)}); {_fix(answer.status, host, port)}"
        )
    return connection


def _fix(status: int, host: str, port: int) -> str:
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        example = "http://USER:WORD@host:port"  # pragma: allowlist secret
        return f"it asks for user and password: put them into HTTPS_PROXY, {example}"
    return f"ask who runs it to let CONNECT {host}:{port} through, or add {host} to NO_PROXY"
