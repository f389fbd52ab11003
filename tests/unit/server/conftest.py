"""Fixtures of the tests of the server."""

from pathlib import Path

import pytest

from federation.config import (
    RunConfig,
)
from federation.data.description import describe_dataset
from federation.data.statistics import Statistics
from server.run.records import RunRecord


@pytest.fixture
def record(tmp_path) -> RunRecord:
    return RunRecord(tmp_path, "run", RunConfig())


@pytest.fixture(scope="session")
def reported(data: Path) -> Statistics:
    """What a node with the data of site-a reports."""
    return describe_dataset(data / "site-a").statistics
