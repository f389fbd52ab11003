"""Replies that nobody waits for any more, and the nodes that they keep busy between rounds."""

import time
from collections.abc import Mapping

from flwr.serverapp import Grid

from server.grid.exchange import Exchange, OpenMessage
from server.grid.replies import QUERY_LIMITS, UnusableReplyError, claim_reply

__all__ = ["LateReplies"]


class LateReplies:
    """What nobody waits for any more: it is dropped when it comes, and until then its node is busy.

    A SuperNode takes no message while it works on another. One that is asked again before it is done would
    answer each round too late for ever.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._open: dict[str, OpenMessage] = {}

    def watch(self, exchange: Exchange) -> None:
        """Take over what an exchange that has ended left open."""
        self._open |= exchange.open_messages()

    def busy_nodes(self, online: Mapping[int, str]) -> set[int]:
        """Drop what has come; return the nodes that still work on what they were asked.

        Args:
            online: the nodes that are online -> since when. One that has restarted has lost its work.
        """
        for message_id, late in list(self._open.items()):
            has_restarted = online.get(late.node_id, late.online_since) != late.online_since
            if self._drop(message_id) or has_restarted or time.monotonic() > late.expires_at:
                del self._open[message_id]
        return {late.node_id for late in self._open.values() if late.keeps_busy}

    def _drop(self, message_id: str) -> bool:
        """Whether there was a reply; its objects are not fetched."""
        try:
            download = claim_reply(self._grid, message_id, QUERY_LIMITS)
        except UnusableReplyError:
            return True
        if download is not None:
            download.discard()
        return download is not None
