"""An endless, shuffled stream of training samples that survives damaged frames."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from federation.dataset import DECODE_ERRORS
from federation.errors import DatasetError, one_line
from federation.logs import get_logger

__all__ = ["MAX_SKIPPED_IN_A_ROW", "SKIPPED_FRAMES", "FrameStream"]

MAX_SKIPPED_IN_A_ROW = 50
SKIPPED_FRAMES = "skipped_frames"  # key of an item: frames left out since the item before it
_log = get_logger("client.frames")


class FrameStream(IterableDataset[dict[str, Any]]):
    """Samples of a data set in a new random order each epoch; a frame that cannot be decoded is left out.

    Each data loading worker draws its own order from `seed` over the whole data set.

    Args:
        dataset: of policy inputs, e.g. a `SampleCache`.
        name: names the data set in errors.
    """

    def __init__(self, dataset: Dataset[dict[str, Any]], *, seed: int, name: str) -> None:
        self.dataset, self.seed, self.name = dataset, seed, name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield samples for ever.

        Raises:
            DatasetError: `MAX_SKIPPED_IN_A_ROW` frames in a row could not be decoded.
        """
        worker = get_worker_info()
        generator = torch.Generator().manual_seed(self.seed + (worker.id if worker else 0))
        skipped = 0
        while True:
            for frame in torch.randperm(len(self.dataset), generator=generator).tolist():  # type: ignore
                try:
                    item = self.dataset[frame]
                except DECODE_ERRORS as error:
                    skipped += 1
                    _log.warning("frame %d left out: %s", frame, one_line(error))
                    if skipped >= MAX_SKIPPED_IN_A_ROW:
                        raise DatasetError(
                            f"data set {self.name}: {skipped} frames in a row cannot be decoded, the last is "
                            f"frame {frame}; check its videos or record it again"
                        ) from error
                    continue
                yield {**item, SKIPPED_FRAMES: skipped}
                skipped = 0
