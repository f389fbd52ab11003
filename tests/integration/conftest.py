"""What the tests with real processes share."""

import socket
from pathlib import Path

import pytest

from certs.issue import issue_all


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates and keys for site-a, site-b and site-c."""
    out = tmp_path_factory.mktemp("certs") / "generated"
    issue_all(out, hosts=[], sites=["site-a", "site-b", "site-c"])
    return out


def free_port() -> int:
    """A port that was free a moment ago, with free ones after it for the SuperNodes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 60000)
