"""Calls to SuperLink, made again where it fails for a moment; `grid/exchange.py` and `nodes.py` make them."""

import time
from collections.abc import Callable
from typing import Any

import httpx
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from federation.logs import get_logger

__all__ = ["online_nodes", "push_messages"]

_SERVER_ERROR_SECONDS, _SECONDS_BETWEEN_SERVER_ERRORS = 60.0, 1.0
_log = get_logger("server.grid.calls")


def push_messages(grid: Grid, messages: list[Message]) -> list[str | None]:
    """Send `messages`; return their ids, None for one that could not be sent."""
    try:
        pushed = _retry(lambda: grid.push_messages(messages))
    except ObjectPushError:
        # SuperLink went away between storing an object and saying so, and refuses the repeated request. It
        # takes what it lacks of the same messages; with new ones the nodes would wait minutes for the old.
        _log.warning("SuperLink went away in the middle of the messages to the nodes: they are sent again")
        pushed = _retry(lambda: grid.push_messages(messages))
    # SuperLink has an empty id for a message that it did not take, such as one to a node revoked just now.
    return [id_ or None for id_ in pushed] or [None] * len(messages)


def online_nodes(grid: Grid) -> list[Any]:
    """Return the nodes that are online, as Flower's `NodeInfo`."""
    return _retry(lambda: list(grid.get_nodes()))


def _retry[T](ask: Callable[[], T]) -> T:
    """`ask()`, again for a minute where SuperLink fails: one site's upload can lock its database."""
    give_up_at = time.monotonic() + _SERVER_ERROR_SECONDS
    while True:
        try:
            return ask()
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500 or time.monotonic() >= give_up_at:
                raise
            _log.warning("SuperLink fails (HTTP %d) and is asked again", error.response.status_code)
            time.sleep(_SECONDS_BETWEEN_SERVER_ERRORS)
