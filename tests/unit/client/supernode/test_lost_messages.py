"""Flower's own calls and main loop, with a SuperLink that fails where it is told to."""

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import Message
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from client.supernode.lost_messages import report_losses

REQUEST = httpx.Request("POST", "https://superlink/")
NOTHING = PullMessagesResponse()
MESSAGE = PullMessagesResponse(messages_list=[Message()])
TOLD = ["DeactivateNode 7", "SendNodeHeartbeat 7"]


class _SuperNode:
    """A main loop of Flower's and its client: `answers` are what SuperLink's answers are, or raise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: list[Any] = []
        self.pushed: list[str] = []

        class Client:
            def PullMessages(_, request: Any) -> Any:  # noqa: N802, N805
                return self._answer("PullMessages")

            def DeactivateNode(_, request: Any) -> Any:  # noqa: N802, N805
                return self._answer(f"DeactivateNode {request.node_id}")

            def SendNodeHeartbeat(_, request: Any) -> Any:  # noqa: N802, N805
                assert request.heartbeat_interval > 0
                return self._answer(f"SendNodeHeartbeat {request.node.node_id}")

        self.flower: Any = SimpleNamespace(_pull_and_store_message=self._pull, _push_messages=self._push)
        report_losses(self.flower, Client)
        self.client = Client()

    def _answer(self, call: str) -> Any:
        self.calls.append(call)
        answer = self.answers.pop(0) if self.answers else NOTHING
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _pull(self, *, receive: Any, run_id: int | None) -> int | None:
        return run_id if receive() else None

    def _push(self, *, send: Any, push_object: Any) -> None:
        try:
            self.pushed.append(send("reply"))
            push_object("part")
        except Exception as error:
            self.pushed.append(f"failed: {type(error).__name__}")

    def ask(self) -> Any:
        return self.client.PullMessages(PullMessagesRequest(node=Node(node_id=7)))

    def reports(self) -> list[str]:
        """What SuperLink is told when it is asked next, and has nothing."""
        self.calls.clear()
        self.ask()
        return self.calls[1:]


@pytest.fixture
def node() -> _SuperNode:
    return _SuperNode()


def _failure(code: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("", request=REQUEST, response=httpx.Response(code, request=REQUEST))


BROKEN_OFF = httpx.RemoteProtocolError("the server went away", request=REQUEST)


@pytest.mark.parametrize(
    "error",
    [BROKEN_OFF, httpx.ReadTimeout("", request=REQUEST), _failure(500)],
    ids=lambda e: type(e).__name__,
)
def test_a_question_that_was_broken_off_may_have_lost_a_message(node: _SuperNode, error: Exception) -> None:
    node.answers = [error]
    with pytest.raises(type(error)):
        node.ask()
    assert node.reports() == TOLD
    assert node.reports() == []


@pytest.mark.parametrize("error", [httpx.ConnectError("refused", request=REQUEST), _failure(403)])
def test_a_question_that_superlink_never_served_has_lost_nothing(node: _SuperNode, error: Exception) -> None:
    node.answers = [error]
    with pytest.raises(type(error)):
        node.ask()
    assert node.reports() == []


def test_what_waits_for_the_site_comes_first(node: _SuperNode) -> None:
    """Going offline before it has come would have the server send it twice."""
    node.answers = [BROKEN_OFF, MESSAGE]
    with pytest.raises(httpx.RemoteProtocolError):
        node.ask()
    assert node.ask() == MESSAGE
    assert "DeactivateNode 7" not in node.calls
    assert node.reports() == TOLD


def test_a_message_whose_objects_do_not_come_is_lost(node: _SuperNode) -> None:
    assert node.flower._pull_and_store_message(receive=lambda: ("message", "tree"), run_id=None) is None
    assert node.reports() == TOLD


def test_a_message_that_came_is_not(node: _SuperNode) -> None:
    assert node.flower._pull_and_store_message(receive=lambda: ("message", "tree"), run_id=3) == 3
    assert node.flower._pull_and_store_message(receive=lambda: None, run_id=3) is None
    assert node.reports() == []


def test_a_reply_that_superlink_does_not_take_is_lost(node: _SuperNode) -> None:
    def refuse(part: str) -> None:
        raise ObjectPushError(part, 1, "session")

    node.flower._push_messages(send=lambda reply: f"{reply} sent", push_object=refuse)
    assert node.pushed == ["reply sent", "failed: ObjectPushError"]
    assert node.reports() == TOLD


def test_a_reply_that_was_taken_is_not(node: _SuperNode) -> None:
    node.flower._push_messages(send=lambda reply: f"{reply} sent", push_object=lambda part: None)
    assert node.pushed == ["reply sent"]
    assert node.reports() == []


def test_a_site_that_is_offline_already_comes_back(node: _SuperNode) -> None:
    """As after a report that was itself broken off, between its two calls."""
    node.answers = [BROKEN_OFF, NOTHING, NOTHING, BROKEN_OFF, NOTHING, _failure(400)]
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError):
            node.ask()
    assert node.reports() == TOLD
    assert node.reports() == []


def test_flowers_main_loop_has_what_is_replaced() -> None:
    module = importlib.import_module("flwr.supernode.start_client_internal")
    loop = inspect.getsource(module.start_client_internal)
    for call in ("receive=receive", "send=send", "push_object=push_object"):
        assert f"{call},\n" in loop
    connection = inspect.getsource(importlib.import_module("flwr.supernode.fleet_http_connection"))
    assert "client.PullMessages, PullMessagesRequest(node=node)" in connection
