"""What the tests with real processes share."""

from pathlib import Path

import pytest

from certs.issue import issue_all
from tests.ports import free_port as free_port


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates and keys for site-a to site-i."""
    out = tmp_path_factory.mktemp("certs") / "generated"
    issue_all(out, hosts=[], sites=[f"site-{letter}" for letter in "abcdefghi"])
    return out
