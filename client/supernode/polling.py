"""Makes a SuperNode wait less between messages while a run is under way.

Flower's SuperNode asks SuperLink for a message and sleeps three seconds if there is none; while its ClientApp
works it looks for the reply twice a second. A round of a few steps spent a third of its time in these sleeps.
Here they are shorter until half a minute after the last message. An idle site still asks every three seconds:
a question is a TLS request with a signature, and a query in SuperLink's database.

A ClientApp starts while its SuperNode still downloads the message, and asks the SuperNode for it again after
1, 2, 4, ... seconds: one that starts warm asks early, and waited for seconds after the message was there.
"""

import functools
import time
from types import SimpleNamespace
from typing import Any

__all__ = ["ask_often", "shorten_waits"]

_BUSY_SECONDS = 30.0  # after a message
_MAX_WAIT_SECONDS = 0.3  # meanwhile
_ASK_SECONDS = 0.2  # between two questions of a ClientApp to its own SuperNode


def shorten_waits(flower: Any) -> None:
    """Replace the sleeps of Flower's main loop, the module `flwr.supernode.start_client_internal`."""
    pull, push = flower._pull_and_store_message, flower._push_messages
    busy_until = 0.0

    def stay_busy() -> None:
        nonlocal busy_until
        busy_until = time.monotonic() + _BUSY_SECONDS

    def pull_and_stay_busy(**arguments: Any) -> int | None:
        run_id: int | None = pull(**arguments)
        if run_id is not None:
            stay_busy()
        return run_id

    def push_and_stay_busy(**arguments: Any) -> None:
        push(**arguments)
        stay_busy()

    def sleep(seconds: float) -> None:
        is_busy = time.monotonic() < busy_until
        time.sleep(min(seconds, _MAX_WAIT_SECONDS) if is_busy else seconds)

    flower._pull_and_store_message, flower._push_messages = pull_and_stay_busy, push_and_stay_busy
    flower.time = SimpleNamespace(sleep=sleep)


def ask_often(flower: Any) -> None:
    """Have a ClientApp, `flwr.supernode.runtime.run_clientapp`, ask for its message in equal, short steps.

    It may ask as often as it likes: Flower's limit of time stays, that of tries is made for its own steps.
    """
    flower.pull_and_inflate_object_from_tree = functools.partial(
        flower.pull_and_inflate_object_from_tree,
        initial_backoff=_ASK_SECONDS,
        backoff_cap=_ASK_SECONDS,
        max_tries_per_object=None,
    )
