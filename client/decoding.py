"""Frames are decoded in their order while a GPU trains, by a process that takes what training leaves over.

Training on a CPU leaves nothing over: beside it, also with the least priority, a round of configs/arm.toml on
two cores took half as long again (39 s against 26 s, 2026-11-27).
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

import torch

from client.recordings.samples import JoinedSamples
from federation.data.sample_cache import SampleCache

__all__ = ["decode_beside"]

_LEAST_PRIORITY = 19


@contextmanager
def decode_beside(samples: SampleCache | JoinedSamples, device: torch.device) -> Iterator[Callable[[], None]]:
    """Fill the cache of `samples` in a process of its own, which ends with the block.

    The block gets a function that lets it begin: the first step waits for no other frames than its own.

    Args:
        device: that trains.
    """
    if device.type == "cpu" or samples.is_full:
        yield lambda: None
        return
    begin = multiprocessing.Event()
    # As data loading's processes, it is forked before there is anything to compute.
    process = multiprocessing.Process(target=_fill, args=(samples, begin, os.getpid()), daemon=True)
    process.start()
    try:
        yield begin.set
    finally:
        process.kill()  # a record that is cut off has a wrong checksum
        process.join()


def _fill(samples: SampleCache | JoinedSamples, begin: Event, parent: int) -> None:
    torch.set_num_threads(1)  # the threads of the process that it is forked from are not there
    os.nice(_LEAST_PRIORITY)
    while not begin.wait(1.0):
        if os.getppid() != parent:
            return
    samples.fill(lambda: os.getppid() == parent)
