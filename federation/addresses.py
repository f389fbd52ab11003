"""Names of hosts, and "host:port", as certificates, invitations and command lines have them."""

import ipaddress
import re

from federation.errors import CertificateError, ConfigError

__all__ = ["canonical_host", "parse_address"]

_DNS_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port", the host in lower case or as the shortest form of an address.

    Raises:
        ConfigError: it is something else.
        CertificateError: the host is neither a DNS name nor an address.
    """
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536) or not host:
        raise ConfigError(f"{address!r}: must be HOST:PORT, e.g. fed.example.org:443")
    return canonical_host(host.removeprefix("[").removesuffix("]")), int(port)


def canonical_host(name: str) -> str:
    """Return a DNS name in lower case or an IP address in its shortest form.

    Raises:
        CertificateError: `name` is neither.
    """
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    host = name.lower()
    labels = host.split(".")
    # A last label of digits is an address with a mistake in it, never a name.
    if len(host) > 253 or not all(map(_DNS_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise CertificateError(f"host {name!r}: must be a DNS name or an IP address, without scheme or port")
    return host
