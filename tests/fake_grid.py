"""A Flower `Grid` that loses, fails and answers messages as Flower 1.42 was measured to do."""

import itertools
from types import SimpleNamespace
from typing import Any

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.supercore.task_identity import TaskIdentity


class FakeGrid:
    """Answers what `answers[node_id]` says: content, an `Error`, or None for a lost message.

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
        self.pulled_at_once: list[int] = []
        self.push_errors: list[Exception] = []  # raised by the next pushes, whose messages are lost
        self._ids = itertools.count()

    def push_messages(self, messages):
        if self.push_errors:
            raise self.push_errors.pop()
        ids = []
        for message in messages:
            if message.metadata.dst_node_id in self.not_sent:
                ids.append(None)
                continue
            ids.append(f"message-{next(self._ids)}")
            self.sent[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids):
        ids = list(message_ids)
        self.pulled_at_once.append(len(ids))
        replies = []
        for id_ in ids:
            node_id = self.sent[id_].metadata.dst_node_id
            answer = self.answers[node_id]
            if isinstance(answer, list):
                mine = [sent for sent, m in self.sent.items() if m.metadata.dst_node_id == node_id]
                answer = answer[mine.index(id_)]
            if callable(answer):
                answer = answer(self.sent[id_])
            if answer is not None:
                # SuperLink answers for a dead node under its own node id, 1.
                metadata = Metadata(0, "", 1, 0, id_, "", 0.0, 60.0, "train")
                content = {"error": answer} if isinstance(answer, Error) else {"content": answer}
                replies.append(_message(metadata, **content))
        return replies

    def get_nodes(self):
        online = dict.fromkeys(self.answers, "t0") if self.online_since is None else self.online_since
        return [
            SimpleNamespace(node_id=id_, last_activated_at=since, name=self.registered.get(id_, ""))
            for id_, since in online.items()
        ]


def _message(metadata: Metadata, **content) -> Message:
    message = Message(RecordDict(), 1, "train")
    message.__dict__["_metadata"] = metadata
    message.__dict__["_content"] = content.get("content")
    message.__dict__["_error"] = content.get("error")
    return message
