"""Flower's own state of a SuperNode, and ClientApps that end at every moment."""

from datetime import timedelta
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from client.supernode.lost_apps import answer_for_lost_apps

RUN = 7


class _Node:
    """A SuperNode's state with one request in it, whose ClientApp has been activated if it `starts`."""

    def __init__(self, *, starts: bool = True) -> None:
        kind = type("State", (InMemoryNodeState,), {})
        answer_for_lost_apps(kind)
        self.state: Any = kind(InMemoryObjectStore())
        # Flower stamps a message with them.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = RUN
        self.request = Message(RecordDict({"a": ConfigRecord({"b": 1})}), 1, "train")
        self.request.metadata.__dict__["_message_id"] = self.request.object_id
        self.state.object_store.preregister(RUN, get_object_tree(self.request))
        self.state.store_message(self.request)
        self.task = self.state.create_task(TaskType.CLIENT_APP, RUN)
        if starts:
            assert self.state.claim_task(self.task)
            assert self.state.activate_task(self.task)

    def take(self) -> None:
        """What a ClientApp does first."""
        (message,) = self.state.get_messages_legacy(run_ids=[RUN], is_reply=False, limit=1)
        self.state.record_message_processing_start(message.metadata.message_id)

    def reply(self, whole: bool) -> None:
        """Hand over a reply, all of it or all but its last object."""
        reply = Message(RecordDict({"c": ConfigRecord({"d": 2})}), reply_to=self.request)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        session = self.state.start_session(RUN)
        self.state.record_message_processing_end(self.request.metadata.message_id)
        self.state.store_message_and_object_tree(reply, get_object_tree(reply), session)
        objects = list(get_all_nested_objects(reply).items())
        for name, content in objects if whole else objects[:-1]:
            assert self.state.store_object(RUN, session, name, content.deflate())

    def end(self, how: str) -> None:
        """The ClientApp is killed, told to stop, or ends as if all were well."""
        if how != "killed":
            self.state.finish_task(self.task, how, "")
            return
        for record in self.state.task_token_store.values():
            record.active_until = now() - timedelta(seconds=1)

    def replies(self) -> list[Message]:
        """What the SuperNode would send now."""
        return list(self.state.get_messages_legacy(is_reply=True))


@pytest.fixture
def node() -> _Node:
    return _Node()


@pytest.mark.parametrize("how", ["killed", SubStatus.FAILED, SubStatus.STOPPED, SubStatus.COMPLETED])
@pytest.mark.parametrize("when", ["before it has its message", "in training", "in its reply"])
def test_whenever_a_clientapp_ends_the_server_hears_of_it(node: _Node, when: str, how: str) -> None:
    if when != "before it has its message":
        node.take()
    if when == "in its reply":
        node.reply(whole=False)
    assert node.replies() == []
    node.end(how)
    (reply,) = node.replies()
    assert reply.has_error()
    assert reply.metadata.reply_to_message_id == node.request.metadata.message_id
    tree = node.state.object_store.get_object_tree(reply.metadata.message_id)
    assert node.state.object_store.get(tree.object_id)
    assert node.state.get_message_processing_duration(node.request.metadata.message_id) >= 0
    assert node.replies() == []


def test_a_clientapp_that_does_not_come_up_is_given_up_after_three_starts() -> None:
    node = _Node(starts=False)
    for _ in range(3):
        assert node.replies() == []
        assert node.state.claim_task(node.task)
        node.end("killed")
    (reply,) = node.replies()
    assert reply.has_error()
    assert node.state.claim_task(node.task) is None


@pytest.mark.parametrize("how", ["killed", SubStatus.COMPLETED])
def test_a_whole_reply_is_what_the_server_gets_however_its_clientapp_ended(node: _Node, how: str) -> None:
    node.take()
    node.reply(whole=True)
    node.end(how)
    (reply,) = node.replies()
    assert not reply.has_error()
    assert node.replies() == []


def test_a_clientapp_that_ends_after_its_reply_was_sent_adds_none(node: _Node) -> None:
    node.take()
    node.reply(whole=True)
    (reply,) = node.replies()
    node.state.delete_messages(message_ids=[reply.metadata.message_id, node.request.metadata.message_id])
    node.end(SubStatus.COMPLETED)
    assert node.replies() == []


def test_a_clientapp_that_ends_while_its_reply_is_sent_adds_none(node: _Node) -> None:
    node.take()
    node.reply(whole=True)
    assert len(node.replies()) == 1
    node.end("killed")
    assert node.replies() == []
