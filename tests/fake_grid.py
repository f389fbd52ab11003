"""A Flower `Grid` that loses, fails and answers messages as Flower 1.42 was measured to do."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity


class RawReply:
    """A reply as SuperLink holds it: a tree of objects and their bytes, whatever these are.

    Args:
        contents: object id -> its bytes; empty: not uploaded yet; None: SuperLink has dropped it.
    """

    def __init__(self, tree: ObjectTree, contents: dict[str, bytes | None]) -> None:
        self.tree, self.contents = tree, contents


def raw_reply(answer: RecordDict | Error, message_id: str = "message-0") -> RawReply:
    """What a well-behaved node uploads."""
    content = {"error": answer} if isinstance(answer, Error) else {"content": answer}
    # SuperLink answers for a dead node under its own node id, 1.
    message = Message(metadata=Metadata(0, "", 1, 0, message_id, "", 0.0, 60.0, "train"), **content)  # type: ignore
    objects = get_all_nested_objects(message)
    return RawReply(get_object_tree(message), {id_: item.deflate() for id_, item in objects.items()})


class FakeGrid:
    """Answers what `answers[node_id]` says: content, an `Error`, a `RawReply`, or None for a lost message.

    A list is answered one by one, to one message after the other; a function makes the answer from the
    message. `online_since` says which nodes are online
    and since when: change it to restart a node.
    """

    def __init__(self, answers: dict[int, Any], not_sent: tuple[int, ...] = ()) -> None:
        # Flower stamps a message with the run of the process it is made in; a test runs in none.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.answers, self.not_sent = answers, not_sent
        self.online_since: dict[int, str] | None = None  # None: all of `answers`, always
        self.registered: dict[int, str] = {}  # node id -> the name its key was registered under
        self.sent: dict[str, Message] = {}
        self.asked_for: list[int] = []  # how many messages each look for replies was about
        self.stored: dict[str, RawReply] = {}  # root id -> reply that was claimed and not yet confirmed
        self.confirmed: list[str] = []  # root ids
        self.run, self.node, self._runtime_client = SimpleNamespace(run_id=1), None, self
        self._claimed: set[str] = set()
        self.push_errors: list[Exception] = []  # raised by the next pushes, whose messages are lost
        self._ids = itertools.count()

    def push_messages(self, messages):
        if self.push_errors:
            raise self.push_errors.pop()
        ids = []
        for message in messages:
            if message.metadata.dst_node_id in self.not_sent:
                ids.append("")
                continue
            ids.append(f"message-{next(self._ids)}")
            self.sent[ids[-1]] = message
        return ids

    def PullMessages(self, request):  # noqa: N802
        self.asked_for.append(len(request.message_ids))
        answer = PullAppMessagesResponse()
        for id_ in request.message_ids:
            reply = None if id_ in self._claimed else self._answer(id_)
            if reply is not None:
                self._claimed.add(id_)
                root_id = reply.tree.object_id
                self.stored[root_id] = reply
                answer.messages_list.append(ProtoMessage())
                answer.messages_list[-1].metadata.message_id = root_id
                answer.messages_list[-1].metadata.reply_to_message_id = id_
                answer.message_object_trees.append(reply.tree)
        return answer

    def PullObject(self, request):  # noqa: N802
        content = next(
            (r.contents[request.object_id] for r in self.stored.values() if request.object_id in r.contents),
            None,
        )
        return PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )

    def ConfirmMessageReceived(self, request):  # noqa: N802
        self.confirmed.append(request.message_object_id)
        self.stored.pop(request.message_object_id, None)

    def _answer(self, id_: str) -> RawReply | None:
        node_id = self.sent[id_].metadata.dst_node_id
        answer = self.answers[node_id]
        if isinstance(answer, list):
            mine = [sent for sent, m in self.sent.items() if m.metadata.dst_node_id == node_id]
            answer = answer[mine.index(id_)]
        if isinstance(answer, Callable):
            answer = answer(self.sent[id_])
        return answer if answer is None or isinstance(answer, RawReply) else raw_reply(answer, id_)

    def get_nodes(self):
        online = dict.fromkeys(self.answers, "t0") if self.online_since is None else self.online_since
        return [
            SimpleNamespace(node_id=id_, last_activated_at=since, name=self.registered.get(id_, ""))
            for id_, since in online.items()
        ]
