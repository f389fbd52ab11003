"""Fixtures of the tests of the server."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from federation.config import (
    RunConfig,
)
from federation.data.description import describe_dataset
from federation.data.statistics import Statistics
from server.output import hub as hub_module
from server.run.records import RunRecord
from tests.local_hub import TOKEN, LocalHub, local_hub


@pytest.fixture
def record(tmp_path) -> RunRecord:
    return RunRecord(tmp_path, "run", RunConfig())


@pytest.fixture(scope="session")
def reported(data: Path) -> Statistics:
    """What a node with the data of site-a reports."""
    return describe_dataset(data / "site-a").statistics


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A small local Hub, which the server's pushes go to; its busy answers are asked again at once."""
    with local_hub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(hub_module, "HfApi", lambda: huggingface_hub.HfApi(endpoint=server.url))
        monkeypatch.setattr(hub_module, "_SECONDS_BEFORE_RETRIES", (0.0, 0.0))
        yield server
