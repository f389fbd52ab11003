"""Opening a LeRobot dataset for a policy, and the errors its frames can raise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import FrameTimestampError
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from federation.errors import DatasetError, one_line

__all__ = ["DECODE_ERRORS", "open_dataset", "policy_inputs", "with_empty_cameras"]

_EMPTY_PIXELS = 8  # SmolVLA scales every image; a small black one is enough

DECODE_ERRORS: tuple[type[Exception], ...] = (FrameTimestampError, av.FFmpegError, OSError)
"""What LeRobot raises for a frame whose video is truncated, damaged or out of step with its timestamps."""


def open_dataset(root: Path, policy: SmolVLAConfig, episodes: Sequence[int] | None = None) -> LeRobotDataset:
    """Open the dataset in `root` so that each item is one training sample of `policy`.

    An item has `observation.state` (1, 6), `observation.images.<camera>` (3, H, W) in [0, 1],
    `action` (chunk_size, 6), `action_is_pad` (chunk_size,) bool and `task` str; floats are fp32, in the
    dataset's own units. Call `describe_dataset` first: LeRobot would look for missing files on the Hub.

    Args:
        episodes: indices of the episodes to open; all of them if None.

    Raises:
        DatasetError: LeRobot cannot open it.
    """
    name = f"local/{root.name}"
    try:
        metadata = LeRobotDatasetMetadata(name, root=root)
        return LeRobotDataset(
            name,
            root=root,
            episodes=None if episodes is None else list(episodes),
            delta_timestamps=resolve_delta_timestamps(policy, metadata),
            video_backend="pyav",
        )
    except Exception as error:  # parquet, JSON and version errors of three libraries
        raise DatasetError(
            f"dataset {root}: LeRobot cannot open it ({one_line(error)}); copy it again"
        ) from error


def policy_inputs(
    item: dict[str, Any], policy: SmolVLAConfig, cameras: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The entries of a dataset item that `policy` learns from; the rest only costs collation.

    Args:
        cameras: the policy's camera -> the dataset's, without those that it lacks; None if all are there
            under the policy's names.
    """
    keys = {key: key for key in (OBS_STATE, *policy.image_features, ACTION, "action_is_pad", "task")}
    if cameras is not None:
        for feature in policy.image_features:
            camera = feature.removeprefix(f"{OBS_IMAGES}.")
            keys[feature] = f"{OBS_IMAGES}.{cameras.get(camera)}"
        keys = {key: own for key, own in keys.items() if own in item}
    return {key: item[own] for key, own in keys.items()}


def with_empty_cameras(inputs: dict[str, Any], policy: SmolVLAConfig) -> dict[str, Any]:
    """`inputs` with every camera of `policy`: a lacking one is black, masked as SmolVLA's own padding is."""
    missing = [feature for feature in policy.image_features if feature not in inputs]
    return (
        inputs
        | {feature: torch.zeros(3, _EMPTY_PIXELS, _EMPTY_PIXELS) for feature in missing}
        | {f"{feature}_padding_mask": torch.tensor(False) for feature in missing}
    )
