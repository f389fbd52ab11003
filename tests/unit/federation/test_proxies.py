"""Proxies of the environment: this machine's own addresses go past them, one of no use is named."""

import os
import urllib.request

import httpx
import pytest

from federation.errors import FederationError
from federation.proxies import LOOPBACK, bypass_loopback, check_proxies

NAMES = tuple(f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "ALL", "NO"))


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "hub.lab, localhost"}, "hub.lab,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a.lab,", "NO_PROXY": "b.lab"}, "a.lab,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a.lab,*"}, "*"),
        ({"NO_PROXY": ""}, "localhost,127.0.0.1,::1"),
    ],
)
def test_what_is_excepted_already_stays_so(given: dict[str, str], expected: str) -> None:
    assert bypass_loopback(given) == {"NO_PROXY": expected, "no_proxy": expected}


def test_flowers_client_and_urllib_go_past_the_proxy_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES[:3]:
        monkeypatch.setenv(name, "http://proxy.lab:3128")
    for name, value in bypass_loopback(os.environ).items():
        monkeypatch.setenv(name, value)
    with httpx.Client() as client:
        for host in ("localhost", "127.0.0.1", "[::1]"):
            assert client._transport_for_url(httpx.URL(f"https://{host}:8443/")) is client._transport
        assert client._transport_for_url(httpx.URL("https://fed.example.org/")) is not client._transport
    assert all(urllib.request.proxy_bypass(host) for host in LOOPBACK)
    assert not urllib.request.proxy_bypass("fed.example.org")


@pytest.mark.parametrize("value", ["", "http://proxy.lab:3128", "proxy.lab:3128", "https://ann:x@proxy.lab"])
def test_an_http_proxy_is_taken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    check_proxies()
    httpx.Client().close()


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("ALL_PROXY", "socks5://ann:" + "secret" + "@proxy.lab:1080", "ALL_PROXY=socks5://proxy.lab:1080"),
        ("all_proxy", "socks5h://127.0.0.1:7890", "ALL_PROXY=socks5h://127.0.0.1:7890"),
        ("HTTPS_PROXY", "ftp://proxy.lab", "HTTPS_PROXY=ftp://proxy.lab"),
        ("HTTP_PROXY", "http://proxy.lab:port", "HTTP_PROXY is no address"),
    ],
)
def test_a_proxy_that_ends_flowers_client_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, shown: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises((ImportError, ValueError, httpx.InvalidURL)):
        httpx.Client()
    with pytest.raises(FederationError) as raised:
        check_proxies()
    assert str(raised.value).startswith(shown)
    assert "secret" not in str(raised.value)
