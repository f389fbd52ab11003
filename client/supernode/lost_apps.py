"""Has a SuperNode answer for a ClientApp that ended without a whole reply, whenever that was.

Flower's SuperNode works on one message at a time and waits for its reply. In the place of the reply of a
ClientApp whose heartbeats ended it puts an error, but only if the ClientApp had its message and had not begun
to hand over the reply; none if the ClientApp was told to stop. In all other cases (Flower 1.42) the SuperNode
waits for ever, and the site is out of every further round. One that does not come up, as without memory for
a thread, is started again twice a minute for as long as the server waits.

Here each ClientApp that ended, or did not come up three times, has either a whole reply or an error in its
place, and a reply is sent once all of it is there.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from flwr.app import Message
from flwr.common.constant import Status
from flwr.proto.task_pb2 import Task, TaskStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR

__all__ = ["answer_for_lost_apps"]

_MAX_STARTS = 3


def answer_for_lost_apps(node_state: Any) -> None:
    """Replace what Flower's `InMemoryNodeState` does once a ClientApp has ended."""
    expire, finish = node_state._on_task_tokens_expired, node_state.finish_task
    find, clean_up = node_state.get_messages_legacy, node_state._cleanup_expired_task_tokens_locked
    starts = Counter[int]()  # that came to nothing, of each task

    def expire_and_answer(state: Any, tasks: list[Task]) -> None:
        _answer(state, tasks)
        expire(state, tasks)

    def finish_and_answer(state: Any, task_id: int, sub_status: str, details: str) -> bool:
        finished: bool = finish(state, task_id, sub_status, details)
        if finished:
            _answer(state, state.get_tasks(task_ids=[task_id]))
        return finished

    def find_whole(state: Any, *, is_reply: bool | None = None, **filters: Any) -> Sequence[Message]:
        if not is_reply:
            messages: Sequence[Message] = find(state, is_reply=is_reply, **filters)
            return messages
        with state.lock_task_store:
            state._cleanup_expired_task_tokens_locked()
        with state.lock_msg_store:
            whole = [entry for entry in _replies(state) if _is_whole(state, entry.message)]
            for entry in whole:
                entry.is_retrieved = True
        return [entry.message for entry in whole]

    def clean_up_and_give_up(state: Any) -> None:
        for task_id, record in state.task_token_store.items():
            task = state.task_store.get(task_id)
            if record.active_until < now() and task and task.status.status == Status.STARTING:
                starts[task_id] += 1
                if starts[task_id] == _MAX_STARTS:
                    task.status.CopyFrom(TaskStatus(status=Status.RUNNING))  # of these the end is final
        clean_up(state)

    node_state._cleanup_expired_task_tokens_locked = clean_up_and_give_up
    node_state._on_task_tokens_expired = expire_and_answer
    node_state.finish_task = finish_and_answer
    node_state.get_messages_legacy = find_whole


def _answer(state: Any, tasks: Sequence[Task]) -> None:
    """Put an error in the place of each reply that these tasks, which have ended, still owe."""
    for run_id in {task.run_id for task in tasks if task.type == TaskType.CLIENT_APP}:
        with state.lock_msg_store:
            for entry in _replies(state):
                if entry.message.metadata.run_id == run_id and not _is_whole(state, entry.message):
                    state.delete_messages(message_ids=[entry.message.metadata.message_id])
                    state.object_store.delete(entry.message.metadata.message_id)
            for entry in state.msg_store.values():
                metadata = entry.message.metadata
                if metadata.run_id == run_id and not metadata.reply_to_message_id and not entry.is_retrieved:
                    state.record_message_processing_start(metadata.message_id)
                    entry.is_retrieved = True  # nobody will: Flower answers only for what was
            state._store_error_replies({run_id}, CLIENT_APP_CRASHED_ERROR)


def _replies(state: Any) -> list[Any]:
    """Return the entries of replies that are not being sent yet."""
    return [
        entry
        for entry in state.msg_store.values()
        if entry.message.metadata.reply_to_message_id and not entry.is_retrieved
    ]


def _is_whole(state: Any, message: Message) -> bool:
    tree = state.object_store.get_object_tree(message.metadata.message_id)
    return all(state.object_store.get(node.object_id) for node in iterate_object_tree(tree))
