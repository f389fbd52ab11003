"""The training samples of all recordings of a site, each with a cache of its own on scratch."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.common.vla_utils import resize_with_pad
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from torch.utils.data import Dataset

from client.recordings.held import Holdings
from client.recordings.opened import folder_key, remove_others
from client.recordings.sources import Source
from federation.data.loading import DECODE_ERRORS
from federation.data.sample_cache import SampleCache, open_samples
from federation.errors import DatasetError, first_cause, one_line

__all__ = ["JoinedSamples", "open_recorded_samples"]


_FOLDER = "samples"  # on scratch


class JoinedSamples(Dataset[dict[str, Any]]):
    """The samples of several recordings, one recording after the other, with images of one size.

    Args:
        parts: of each recording.
        shares: how often each of them is drawn, in any unit; () to draw every frame equally often.
    """

    def __init__(self, parts: Sequence[SampleCache], policy: SmolVLAConfig, shares: Sequence[float]) -> None:
        if policy.resize_imgs_with_padding is None:
            raise DatasetError(
                "the policy takes pictures as they are, so a site can train on one recording only; name one"
            )
        self._parts, self._policy = list(parts), policy
        self.name = ", ".join(part.name for part in parts)
        self.shares = tuple(zip(map(len, parts), shares, strict=True)) if shares else ()

    def __len__(self) -> int:
        """Return the number of samples of all recordings."""
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the sample `index`, with what tells the policy which cameras are there.

        Raises:
            DECODE_ERRORS: its video cannot be decoded.
        """
        own = index
        for part in self._parts:
            if own < len(part):
                break
            own -= len(part)
        try:
            return self._in_one_size(part[own])
        except DECODE_ERRORS as error:
            raise OSError(f"frame {own} of {part.name}: {one_line(first_cause(error))}") from error

    @property
    def is_full(self) -> bool:
        """Whether no recording has a sample that is not kept yet and could be."""
        return all(part.is_full for part in self._parts)

    def fill(self, may_go_on: Callable[[], bool]) -> int:
        """Decode the samples of one recording after the other, as `SampleCache.fill` does."""
        return sum(part.fill(may_go_on) for part in self._parts)

    def _in_one_size(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return `sample` with pictures as the policy itself would scale and pad them, so that they batch."""
        width, height = self._policy.resize_imgs_with_padding
        resized = {
            key: resize_with_pad(sample[key][None], height, width, pad_value=0)[0]
            for key in self._policy.image_features
        }
        masks = {f"{key}_padding_mask": torch.tensor(True) for key in resized}
        return masks | sample | resized


def open_recorded_samples(
    holdings: Holdings, policy: SmolVLAConfig, scratch: Path, max_bytes: int
) -> SampleCache | JoinedSamples:
    """Return the samples of all recordings, of which `max_bytes` are kept in `scratch`.

    Each recording has its share of the room by its number of frames. What `scratch` has of recordings that
    are not named any more is removed.

    Raises:
        DatasetError: LeRobot cannot open one of them.
    """
    folders = [scratch / _FOLDER / folder_key(part.recording.folder) for part in holdings.parts]
    if holdings.is_complete:
        remove_others(scratch, [part.recording for part in holdings.parts])
        for other in set((scratch / _FOLDER).glob("*")) - set(folders):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    parts = [
        open_samples(
            part.recording.root,
            policy,
            own,
            max_bytes * part.description.usable_frames // holdings.frames,
            part.description.used_cameras,
            part.description.usable_episodes,
        )
        for part, own in zip(holdings.parts, folders, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    sources = [part.recording.source for part in holdings.parts]
    return JoinedSamples(parts, policy, _shares(sources, [len(part) for part in parts]))


def _shares(sources: Sequence[Source], frames: Sequence[int]) -> list[float]:
    """Return how often each recording is drawn; [] if its owner gave no weights.

    The recordings of one folder share its weight by their number of frames.
    """
    if not any(source.weight for source in sources):
        return []
    together: dict[str, int] = {}
    for source, count in zip(sources, frames, strict=True):
        together[source.data] = together.get(source.data, 0) + count
    return [
        source.weight * count / together[source.data] for source, count in zip(sources, frames, strict=True)
    ]
