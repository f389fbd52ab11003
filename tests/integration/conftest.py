"""What the tests with real processes share."""

import random
import socket
from pathlib import Path

import pytest

from certs.issue import issue_all


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates and keys for site-a to site-i."""
    out = tmp_path_factory.mktemp("certs") / "generated"
    issue_all(out, hosts=[], sites=[f"site-{letter}" for letter in "abcdefghi"])
    return out


def free_port() -> int:
    """The first of sixteen ports in a row that were free a moment ago: SuperLink's, then the SuperNodes'.

    Below those that the kernel gives to outgoing connections, any of which could take one meanwhile.
    """
    while True:
        first = random.SystemRandom().randrange(20000, 32000, 16)
        try:
            for port in range(first, first + 16):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
