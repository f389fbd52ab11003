"""The frames that a policy is measured on, decoded once: the same in every round of a run."""

from collections.abc import Mapping
from typing import Any

import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from federation.data.loading import Frames, policy_inputs

__all__ = ["DecodedFrames"]


class DecodedFrames:
    """Frames of a dataset as `policy_inputs` returns them, kept in memory while there is room.

    An image is kept in the 8 bits that it was recorded in, where that gives back the very same values.

    Args:
        cameras: as for `policy_inputs`.
        max_bytes: of the frames that are kept; the others are decoded in every round.
    """

    def __init__(
        self, frames: Frames, policy: SmolVLAConfig, cameras: Mapping[str, str] | None, max_bytes: int
    ) -> None:
        self._frames, self._policy, self._cameras = frames, policy, cameras
        self._room = max_bytes
        self._kept: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the inputs of frame `index`.

        Raises:
            DECODE_ERRORS: its video cannot be decoded.
        """
        if index in self._kept:
            return {key: _unpack(value) for key, value in self._kept[index].items()}
        inputs = policy_inputs(self._frames[index], self._policy, self._cameras)
        packed = {key: _pack(key, value) for key, value in inputs.items()}
        size = sum(value.nbytes for value in packed.values() if isinstance(value, Tensor))
        if size <= self._room:
            self._room -= size
            self._kept[index] = packed
        return inputs


def _pack(key: str, value: Any) -> Any:
    if not key.startswith(OBS_IMAGES) or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    packed = (value * 255).round().to(torch.uint8)
    return packed if torch.equal(_unpack(packed), value) else value


def _unpack(value: Any) -> Any:
    return value.float() / 255 if isinstance(value, Tensor) and value.dtype == torch.uint8 else value
