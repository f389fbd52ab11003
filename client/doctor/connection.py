"""The doctor's look at SuperLink from this site: name, port, TLS, health, clock.

Nothing leaves the site but a TCP connection, a TLS handshake and one `GET /health`.
"""

import socket
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from client.doctor.check import Check, days_check
from client.doctor.proxy import connect_through, find_proxy
from federation.errors import FederationError, one_line
from federation.proxies import check_proxies

__all__ = ["check_superlink"]

_RENEW = "runs make certs ROTATE=1 and restarts SuperLink and gateway"
_CONNECT_SECONDS = 5.0
# Flower takes no signature from the future, but for 5 s, and none older than 300 s. The
# levels leave room for drift and a slow connection; `Date` has whole seconds.
_WARN_AHEAD_SECONDS, _MAX_AHEAD_SECONDS = 2.5, 5.0
_CLOCK_ATTEMPTS, _CLOCK_RETRY_SECONDS = 4, 0.7
_WARN_BEHIND_SECONDS, _MAX_BEHIND_SECONDS = 30.0, 240.0
_EXPIRED, _NOT_YET_VALID, _WRONG_HOST, _WRONG_ADDRESS = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_*


def check_superlink(host: str, port: int, ca: Path) -> list[Check]:
    """Reach SuperLink as a SuperNode will, step by step; the first step that fails ends it."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as Flower's: this authority and no other
        context.load_verify_locations(cafile=str(ca))
    except (OSError, ssl.SSLError):
        return [Check("error", "TLS", f"{ca}: no certificate to check the server with; see CA")]
    way = ""
    try:
        check_proxies()
        if proxy := find_proxy(host, port):
            way = f" through the proxy {proxy.url}"
            connection = connect_through(proxy, host, port, _CONNECT_SECONDS)
        else:
            connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
    except OSError as error:
        return [_connection_failed(host, port, error)]
    except FederationError as error:
        return [Check("error", "connection", f"{host}:{port}: {error}")]
    checks = [Check("ok", "connection", f"{host}:{port}: reached{way or _at(connection)}")]
    with connection:
        try:
            secured = context.wrap_socket(connection, server_hostname=host)
        except OSError as error:
            return [*checks, _handshake_failed(host, port, ca, error, way)]
        with secured:
            checks.append(_check_certificate(secured))
            return [*checks, *_check_health(secured, host, port)]


def _connection_failed(host: str, port: int, error: OSError) -> Check:
    where = f"{host}:{port}"
    if isinstance(error, socket.gaierror):
        text = f"{where}: the name {host} is not known here; check the address and this network's DNS"
    elif isinstance(error, ConnectionRefusedError):
        text = f"{where}: refused; check the port, and ask the operator whether SuperLink runs"
    elif isinstance(error, TimeoutError):
        text = f"{where}: no answer in {_CONNECT_SECONDS:.0f} s; a firewall here or there drops the port"
    else:
        text = f"{where}: {error.strerror or error}; check this machine's network"
    return Check("error", "connection", text)


def _at(connection: socket.socket) -> str:
    return f" at {connection.getpeername()[0]}"


def _handshake_failed(host: str, port: int, ca: Path, error: OSError, way: str) -> Check:
    where = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            text = f"the server's certificate expired; the operator {_RENEW}"
        elif error.verify_code == _NOT_YET_VALID:
            text = f"the certificate is not valid yet, this clock says {datetime.now(UTC):%F %R} UTC; set it"
        elif error.verify_code in (_WRONG_HOST, _WRONG_ADDRESS):
            text = (
                f"the certificate is not valid for {host}; use a name it has, or the operator adds this one "
                f"to hosts in configs/certs.toml, {_RENEW}"
            )
        else:
            text = f"the certificate is not signed by {ca}; take ca.crt from the operator of this server"
            if way:  # some open what passes, with certificates of their own
                text += f", and if it is theirs already, have {host} passed{way} unopened"
    elif isinstance(error, TimeoutError):
        text = f"no TLS answer in {_CONNECT_SECONDS:.0f} s; something else than SuperLink listens there"
    elif isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        text = "the server speaks plaintext, not TLS; check the port, and never join without TLS"
    else:
        text = f"the TLS handshake failed ({one_line(error)}); something else than SuperLink listens there"
    return Check("error", "TLS", f"{where}: {text}")


def _check_certificate(secured: ssl.SSLSocket) -> Check:
    certificate: dict[str, Any] = secured.getpeercert() or {}
    left = int((ssl.cert_time_to_seconds(certificate["notAfter"]) - datetime.now(UTC).timestamp()) // 86400)
    text = f"{secured.version()}, the server's certificate has {left} days left"
    return days_check("TLS", text, left, f"the operator {_RENEW}")


def _check_health(secured: ssl.SSLSocket, host: str, port: int) -> list[Check]:
    """`GET /health`, and the clock of whoever answers.

    A busy server sends a `Date` that is seconds old, so a clock is wrong only if several answers agree on it.
    """
    connection = HTTPConnection(host, port)
    connection.sock = secured
    connection.auto_open = 0  # it would connect again without TLS
    found: list[list[Check]] = []
    while len(found) < _CLOCK_ATTEMPTS and not (found and _is_settled(found[-1])):
        if found:
            time.sleep(_CLOCK_RETRY_SECONDS)
        try:
            found.append(_ask_health(connection))
        except (HTTPException, OSError) as error:
            text = f"no HTTP answer ({one_line(error)}); something else than SuperLink listens there"
            found = found or [[Check("error", "health", text)]]
            break
    return min(found, key=lambda checks: ("ok", "warning", "error").index(checks[-1].level))


def _is_settled(checks: Sequence[Check]) -> bool:
    return checks[-1].what == "health" or checks[-1].level == "ok"


def _ask_health(connection: HTTPConnection) -> list[Check]:
    before = datetime.now(UTC).timestamp()
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    after = datetime.now(UTC).timestamp()
    if answer.status != 200:
        fix = "ask the operator whether SuperLink runs behind this port"
        return [Check("error", "health", f"GET /health: status {answer.status}, must be 200; {fix}")]
    checks = [Check("ok", "health", "GET /health: 200")]
    try:
        theirs = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (TypeError, ValueError):
        return [*checks, Check("warning", "clock", "the server tells no time; compare the clocks yourself")]
    # The server read its clock at some moment of the exchange: what a slow exchange can explain is no fault.
    return [*checks, _check_clock(min(max(0.0, before - theirs), after - theirs))]


def _check_clock(ahead: float) -> Check:
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if not -_WARN_BEHIND_SECONDS <= ahead <= _WARN_AHEAD_SECONDS:
        level = "warning" if -_MAX_BEHIND_SECONDS <= ahead <= _MAX_AHEAD_SECONDS else "error"
        limit = "5 s ahead or 300 s behind and SuperLink refuses the site; turn on time synchronisation"
        return Check(level, "clock", f"{text}, {limit}")
    return Check("ok", "clock", text)
