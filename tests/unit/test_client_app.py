from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app
from federation.errors import DatasetError, RejectionCode


@pytest.mark.parametrize("scratch", ["scratch", "site-a/scratch"])
def test_no_path_of_the_site_is_in_what_it_answers(tmp_path: Path, scratch: str) -> None:
    data, own = tmp_path / "site-a", tmp_path / scratch

    def fail(*_: object) -> RecordDict:
        raise DatasetError(f"dataset {data}: LeRobot cannot open it ([Errno 28] full: '{own}/arrow/x')")

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower stamps a message with them
    settings = {"name": "site-a", "dataset": str(data), "scratch": str(own)}
    context = SimpleNamespace(node_config=settings, run_config={})
    reply = app._answer(Message(RecordDict(), 1, "train"), context, fail)  # type: ignore[arg-type]
    assert reply.error.reason == (
        "dataset <dataset>: LeRobot cannot open it ([Errno 28] full: '<scratch>/arrow/x')"
    )
    assert reply.error.code == RejectionCode.DATASET
