"""What SuperLink takes; with a real one: tests/integration/test_superlink_guard.py."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest
from fastapi import HTTPException
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node

from server.superlink import wrapper
from server.superlink.wrapper import ControlGuard, check_sender

ME, SUPERLINK, OTHER = 7, 1, 8


def _request(count: int = 1, trees: int = 1, **metadata: object) -> PushMessagesRequest:
    usual = {"src_node_id": ME, "dst_node_id": SUPERLINK, "reply_to_message_id": "m"}
    message = Message(metadata=Metadata(**(usual | metadata)))
    return PushMessagesRequest(
        node=Node(node_id=ME), messages_list=[message] * count, message_object_trees=[ObjectTree()] * trees
    )


def test_a_reply_of_the_node_itself_passes() -> None:
    check_sender(_request())


@pytest.mark.parametrize(
    "request_",
    [
        _request(reply_to_message_id=""),
        _request(src_node_id=SUPERLINK, reply_to_message_id=""),
        _request(src_node_id=OTHER),
        _request(dst_node_id=OTHER),
        _request(count=2, trees=2),
        _request(count=0),
        _request(trees=0),
    ],
    ids=["no reply", "an order of SuperLink", "another's", "to another", "two", "none", "no tree"],
)
def test_anything_else_is_refused(request_: PushMessagesRequest) -> None:
    with pytest.raises(HTTPException) as raised:
        check_sender(request_)
    assert raised.value.status_code == 400


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/v1/control/list-runs", None, 401),
        ("/v1/control/list-runs", "Bearer other", 401),
        ("/v1/control/list-runs", "secret", 401),
        ("/v1/control/list-runs", "Bearer secret", 200),
        ("/v1/fleet/pull-messages", None, 200),
    ],
)
def test_the_control_api_needs_the_secret(path: str, given: str | None, status: int) -> None:
    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> int:
        transport = httpx.ASGITransport(ControlGuard(app, b"secret"))
        async with httpx.AsyncClient(transport=transport, base_url="https://superlink") as client:
            headers = {} if given is None else {"Authorization": given}
            return (await client.post(path, headers=headers)).status_code

    assert asyncio.run(ask()) == status


def test_an_empty_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "control.secret").write_text("\n")
    options = ["--control-secret-file", str(tmp_path / "control.secret")]
    monkeypatch.setattr(sys, "argv", ["flower-superlink", *options])
    with pytest.raises(SystemExit, match=r"control.secret is empty; remove it and run make certs"):
        wrapper.main()
