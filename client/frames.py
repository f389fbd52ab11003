"""An endless, shuffled stream of training samples that survives damaged frames."""

import gc
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from federation.data.loading import DECODE_ERRORS
from federation.errors import DatasetError, one_line
from federation.logs import get_logger

__all__ = ["MAX_SKIPPED_IN_A_ROW", "SKIPPED_FRAMES", "FrameStream", "load_batches"]

MAX_SKIPPED_IN_A_ROW = 50
_DRAWN = 256  # parts drawn at a time
SKIPPED_FRAMES = "skipped_frames"  # key of an item: frames left out since the item before it
_log = get_logger("client.frames")


class FrameStream(IterableDataset[dict[str, Any] | DatasetError]):
    """Samples of a dataset in a new random order each epoch; a frame that cannot be decoded is left out.

    All data loading workers draw the same order from `seed` and share it out, each taking every n-th frame:
    together they visit each frame once an epoch. With shares each part has epochs of its own, and they draw
    which part the next frame is of.

    Args:
        dataset: of policy inputs, e.g. a `SampleCache`.
        name: names the dataset in errors.
        shares: (frames, how often it is drawn) of each part, where that is not by their number.
    """

    def __init__(
        self,
        dataset: Dataset[dict[str, Any]],
        *,
        seed: int,
        name: str,
        shares: Sequence[tuple[int, float]] = (),
    ) -> None:
        self.dataset, self.seed, self.name, self.shares = dataset, seed, name, shares

    def __iter__(self) -> Iterator[dict[str, Any] | DatasetError]:
        """Yield samples for ever; last an error if `MAX_SKIPPED_IN_A_ROW` frames could not be decoded.

        The error is not raised: out of a worker it would come as the text of a traceback.
        """
        worker = get_worker_info()
        frames = self._frames()
        if worker is not None:
            frames = islice(frames, worker.id, None, worker.num_workers)
        skipped = 0
        for frame in frames:
            try:
                item = self.dataset[frame]
            except DECODE_ERRORS as error:
                skipped += 1
                _log.warning("frame %d skipped: %s", frame, one_line(error))
                if skipped >= MAX_SKIPPED_IN_A_ROW:
                    yield DatasetError(
                        f"dataset {self.name}: {skipped} frames in a row cannot be decoded, the last is "
                        f"frame {frame}; check its videos or record it again"
                    )
                    return
                continue
            yield {**item, SKIPPED_FRAMES: skipped}
            skipped = 0

    def _frames(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        if not self.shares:
            yield from _shuffled(0, len(self.dataset), generator)  # type: ignore[arg-type]
        lengths, weights = [length for length, _ in self.shares], [share for _, share in self.shares]
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        parts = [_shuffled(*own, generator) for own in zip(starts, lengths, strict=True)]
        while True:
            drawn = torch.multinomial(torch.tensor(weights), _DRAWN, replacement=True, generator=generator)
            yield from (next(parts[number]) for number in drawn.tolist())


def _shuffled(start: int, length: int, generator: torch.Generator) -> Iterator[int]:
    """Yield `start` and the `length - 1` numbers after it, for ever, in a new random order each time."""
    while True:
        for number in torch.randperm(length, generator=generator).tolist():
            yield start + number


def load_batches(
    stream: FrameStream, *, batch_size: int, num_workers: int, pin_memory: bool
) -> Iterator[dict[str, Any]]:
    """Yield batches of `stream`, loaded ahead by `num_workers` processes, one for each core at most.

    Raises:
        DatasetError: too many frames in a row could not be decoded. It is raised by `next`.
    """
    num_workers = min(num_workers, os.cpu_count() or 1)  # the server asks for them
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
    )
    if num_workers:
        # The processes are forks. A collector in one of them that freed a decoder of this process would wait
        # for good for the decoder's threads, which only this process has.
        gc.collect()
        gc.freeze()
    return _raising(iter(loader))  # the processes start here, not at the first batch


def _collate(items: list[dict[str, Any] | DatasetError]) -> Any:
    error = next((item for item in items if isinstance(item, DatasetError)), None)
    return error or default_collate(items)


def _raising(batches: Iterator[dict[str, Any] | DatasetError]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        if isinstance(batch, DatasetError):
            raise batch
        yield batch
