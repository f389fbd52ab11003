"""Has a SuperNode say that a message to it, or its reply, was lost on the way, so that it is asked again.

SuperLink hands out each message once (Flower 1.42). Where SuperLink or the network goes away before the
answer is here, or fails in the middle of the objects, the message is gone; a reply whose upload fails for
good is dropped. Flower's SuperNode logs a line at most, and the server would wait until its deadline.

The server asks a site again that was offline in between, as one that restarts is (`server/grid/exchange.py`).
So a SuperNode that may have lost something goes offline and online again, once nothing else waits for it. A
site that had trained already sends the reply that it has kept (`client/state/kept_reply.py`).
"""

from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any

import httpx
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

from federation.logs import get_logger

__all__ = ["report_losses"]

_log = get_logger("client.supernode.lost_messages")


def report_losses(flower: Any, client_class: Any) -> None:
    """Watch how Flower's main loop pulls and pushes messages, and report what it may have lost.

    Args:
        flower: the module `flwr.supernode.start_client_internal`.
        client_class: `FleetHttpClient`, which makes its calls to SuperLink.
    """
    lost = Event()
    _watch_questions(client_class, lost)
    _watch_messages(flower, lost)
    _watch_replies(flower, lost)


def _watch_questions(client_class: Any, lost: Event) -> None:
    """Set `lost` where the answer to a question for messages did not come, and report what is set."""
    ask = client_class.PullMessages

    def ask_and_report(client: Any, request: Any) -> Any:
        try:
            answer = ask(client, request)
        except httpx.HTTPError as error:
            if _may_have_been_served(error):
                lost.set()
            raise
        if lost.is_set() and not answer.messages_list:
            _go_offline_and_online(client, request.node)
            lost.clear()
        return answer

    client_class.PullMessages = ask_and_report


def _watch_messages(flower: Any, lost: Event) -> None:
    """Set `lost` where a message came and its objects did not."""
    pull = flower._pull_and_store_message

    def pull_and_watch(*, receive: Callable[[], Any], **others: Any) -> int | None:
        has_come = False

        def receive_and_watch() -> Any:
            nonlocal has_come
            received = receive()
            has_come = received is not None
            return received

        run_id: int | None = pull(receive=receive_and_watch, **others)
        if has_come and run_id is None:
            lost.set()
        return run_id

    flower._pull_and_store_message = pull_and_watch


def _watch_replies(flower: Any, lost: Event) -> None:
    """Set `lost` where SuperLink does not take a reply."""
    push = flower._push_messages

    def watch(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_and_watch(*arguments: Any) -> Any:
            try:
                return call(*arguments)
            except Exception:
                lost.set()
                raise

        return call_and_watch

    def push_and_watch(*, send: Callable[..., Any], push_object: Callable[..., Any], **others: Any) -> None:
        push(send=watch(send), push_object=watch(push_object), **others)

    flower._push_messages = push_and_watch


def _may_have_been_served(error: httpx.HTTPError) -> bool:
    """Whether SuperLink may have handed out a message in answer to the question that ended so."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def _go_offline_and_online(client: Any, node: Any) -> None:
    _log.warning("a message or a reply may be lost: SuperLink is told, and the server asks again")
    with suppress(httpx.HTTPStatusError):  # it counts as offline already
        client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
    client.SendNodeHeartbeat(
        SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    )
