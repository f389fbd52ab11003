"""Flower's SuperNode with its memory kept flat.

httpx ties every response to itself: its stream holds the response, which holds the stream. What a SuperNode
has received and sent is therefore not freed when it is done with, but when Python's collector next looks at
all objects, which in this process was every thirtieth round. At full size each round is 300 MB.

`client/bin`, first on the PATH of a SuperNode, holds this module under the name of Flower's program.
"""

import gc
import threading

__all__ = ["collect", "main"]

_SECONDS_BETWEEN_COLLECTIONS = 2.0


def main() -> None:
    """Run Flower's `flower-supernode`, and the collector beside it."""
    from flwr.supernode.cli import flower_supernode

    gc.collect()
    gc.freeze()  # what is imported stays anyway; without it a collection takes milliseconds
    ended = threading.Event()
    collector = threading.Thread(target=collect, args=(_SECONDS_BETWEEN_COLLECTIONS, ended), daemon=True)
    collector.start()
    try:
        flower_supernode()
    finally:
        ended.set()


def collect(seconds: float, ended: threading.Event) -> None:
    """Free what nothing but itself refers to, every so many `seconds`, until `ended` is set."""
    while not ended.wait(seconds):
        gc.collect()
