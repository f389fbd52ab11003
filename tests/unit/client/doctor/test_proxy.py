"""The doctor's way to SuperLink is the SuperNode's: straight, or through the proxy that httpx would take."""

import socket
from base64 import b64encode
from contextlib import closing
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.issue import issue_all
from client.doctor.check import Check
from client.doctor.connection import check_superlink
from client.doctor.proxy import find_proxy
from tests.connect_proxy import ConnectProxy
from tests.unit.client.doctor.test_main import _health, _server
from tests.unit.federation.test_proxies import no_proxy_of_this_machine  # noqa: F401  # of each test here too

HOST, PORT = "fed.example.org", 443
ENTRIES = ["", "*", HOST, "example.org", ".example.org", "FED.example.org", "other.org", f"{HOST}:443"]
ENTRIES += ["example.org:8443", "https://fed.example.org", "192.0.2.7", "192.0.2.0/24", "localhost", "::1"]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certs") / "generated"
    issue_all(out, hosts=[HOST], sites=[])
    return out


@given(
    excepted=st.lists(st.sampled_from(ENTRIES), max_size=4),
    proxies=st.dictionaries(
        st.sampled_from(["HTTP_PROXY", "https_proxy", "ALL_PROXY"]),
        st.sampled_from(["", "http://p:1", "q:2"]),
    ),
    host=st.sampled_from([HOST, "example.org", "192.0.2.7", "2001:db8::7", "gateway"]),
    port=st.sampled_from([443, 8443]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_the_proxy_is_the_one_that_flowers_client_takes(
    monkeypatch: pytest.MonkeyPatch, excepted: list[str], proxies: dict[str, str], host: str, port: int
) -> None:
    with monkeypatch.context() as environment:
        environment.setenv("NO_PROXY", ",".join(excepted))
        for name, value in proxies.items():
            environment.setenv(name, value)
        with httpx.Client(verify=False) as client:
            transport = client._transport_for_url(httpx.URL(scheme="https", host=host, port=port))
            found = find_proxy(host, port)
            if transport is client._transport:
                assert found is None
            else:
                assert found is not None
                assert isinstance(transport, httpx.HTTPTransport)
                assert transport._pool._proxy_url.host.decode() == found.url.host  # type: ignore[attr-defined]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_this_machine_is_never_behind_a_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.lab:3128")
    assert find_proxy(host, PORT) is None


def _check(certs: Path) -> list[Check]:
    return check_superlink(HOST, PORT, certs / "superlink" / "ca.crt")


def test_a_superlink_behind_a_proxy_passes_every_step(
    certs: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _server(certs, _health(now)) as port, ConnectProxy() as proxy:
        proxy.routes[f"{HOST}:{PORT}"] = ("127.0.0.1", port)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        checks = _check(certs)
    assert [check.level for check in checks] == ["ok"] * 4, checks
    assert checks[0].text == f"{HOST}:{PORT}: reached through the proxy {proxy.url}"
    assert proxy.asked == [f"CONNECT {HOST}:{PORT} HTTP/1.1"]


def test_a_proxy_that_wants_a_login_gets_that_of_the_setting(
    certs: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = b64encode(b"ann:p@ss").decode()
    with _server(certs, _health(now)) as port, ConnectProxy(login=login) as proxy:
        proxy.routes[f"{HOST}:{PORT}"] = ("127.0.0.1", port)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        (check,) = _check(certs)
        assert check.level == "error"
        assert "407" in check.text
        assert "put them into HTTPS_PROXY, http://USER:" in check.text
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//" + "ann:p%40ss" + "@"))
        checks = _check(certs)
    assert [check.level for check in checks] == ["ok"] * 4, checks
    assert "ss@" not in checks[0].text


def test_a_proxy_that_refuses_is_named_with_both_fixes(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ConnectProxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        (check,) = _check(certs)
    assert (check.level, check.what) == ("error", "connection")
    assert "403 Forbidden" in check.text
    assert f"let CONNECT {HOST}:{PORT} through, or add {HOST} to NO_PROXY" in check.text


def test_a_proxy_that_is_not_there_or_none_is_told(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("HTTPS_PROXY", address)
    assert f"the proxy http://{address} cannot be reached (Connection refused)" in _check(certs)[0].text
    with _server(None, b"SSH-2.0\r\n") as port:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
        assert "does not answer as one" in _check(certs)[0].text
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    assert "ALL_PROXY=socks5://127.0.0.1:1" in _check(certs)[0].text


def test_a_proxy_that_opens_what_passes_is_told_apart_from_a_wrong_ca(
    certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue_all(tmp_path / "company", hosts=[HOST], sites=[])
    with _server(tmp_path / "company") as port, ConnectProxy() as proxy:
        proxy.routes[f"{HOST}:{PORT}"] = ("127.0.0.1", port)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        check = _check(certs)[-1]
    assert "not signed by" in check.text
    assert f"have {HOST} passed through the proxy {proxy.url} unopened" in check.text
