"""Flower's SuperLink, which lets in what it should and no more.

    flower-superlink --control-secret-file FILE [options of Flower's]

`server/superlink/bin`, first on the PATH of a SuperLink, holds this module under the name of Flower's
program. It runs Flower's own with two gaps of Flower 1.42 closed:

- a node may send whatever it likes, in whose name it likes: to another node, or to SuperLink, which hands it
  to the ServerApp beside the replies that that asks for. Here a node sends replies of its own, and nothing
  else;
- whoever reaches the Control API registers keys and starts code on the server. Here a request needs the
  secret of the file, which `server/superlink/control.py` sends.

Uses Flower and the standard library only: nothing else is in SuperLink's image.
"""

import argparse
import hmac
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID

__all__ = ["CONTROL_FILE", "ControlGuard", "check_sender", "main"]

CONTROL_FILE = "control.secret"  # the file, beside the authority's certificate
_CONTROL_PATH = "/v1/control/"


def main() -> None:
    """Run Flower's `flower-superlink` behind the two checks."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--control-secret-file", type=Path, required=True)
    own, others = parser.parse_known_args()
    secret = own.control_secret_file.read_bytes().strip()
    if not secret:
        sys.exit(f"{own.control_secret_file} is empty; remove it and run make certs")
    sys.argv[1:] = others

    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from flwr.superlink.servicer.fleet import fleet_handlers
    from starlette.middleware import Middleware

    first = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(ControlGuard, secret=secret), *first())
    push = fleet_handlers.push_messages

    def push_own(request: Any, state: Any) -> Any:
        check_sender(request)
        return push(request, state)

    fleet_handlers.push_messages = push_own
    flower_superlink()


def check_sender(request: Any) -> None:
    """Raise an HTTP error unless a `PushMessagesRequest` holds one reply of the node that sends it.

    It is 400, for Flower takes 403 for a run that is over. That the node is who it says was checked before
    (`flwr.superlink.routers.fleet.node_auth`).
    """
    from fastapi import HTTPException

    said = [message.metadata for message in request.messages_list]
    if len(said) != 1 or len(request.message_object_trees) != 1:
        raise HTTPException(400, "one message at a time")
    (metadata,) = said
    ends = (metadata.src_node_id, metadata.dst_node_id)
    if not metadata.reply_to_message_id or ends != (request.node.node_id, SUPERLINK_NODE_ID):
        raise HTTPException(400, "a node sends replies of its own, and nothing else")


class ControlGuard:
    """ASGI middleware: a request to the Control API needs the secret as a bearer token (RFC 6750)."""

    def __init__(self, app: Callable[..., Awaitable[None]], secret: bytes) -> None:
        self._app, self._expected = app, b"Bearer " + secret

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, or answer 401."""
        if scope.get("path", "").startswith(_CONTROL_PATH):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"the Control API needs its secret"})
                return
        await self._app(scope, receive, send)
