"""Opening a LeRobot dataset for a policy, and the errors its frames can raise."""

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import pandas as pd
import torch
from datasets import Dataset as ArrowDataset
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import hf_transform_to_torch
from lerobot.datasets.video_utils import FrameTimestampError
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import ACTION, DEFAULT_FEATURES, OBS_IMAGES, OBS_STATE
from lerobot.utils.utils import SuppressProgressBars
from pyarrow import dataset as parquet
from torch import Tensor
from torch.utils.data import Dataset

from federation.data.forward_video import ForwardVideo
from federation.data.tables import read_tasks
from federation.errors import DatasetError, first_cause, one_line

__all__ = ["DECODE_ERRORS", "Frames", "open_dataset", "policy_inputs", "with_empty_cameras"]

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_EMPTY_PIXELS = 8  # SmolVLA scales every image; a small black one is enough
_TOLERANCE_SECONDS = 1e-4  # LeRobot's own, between the time of a frame and that of its picture

DECODE_ERRORS: tuple[type[Exception], ...] = (FrameTimestampError, av.FFmpegError, OSError)
"""What LeRobot raises for a frame whose video is truncated, damaged or out of step with its timestamps."""


class _Reader(DatasetReader):  # type: ignore[misc]
    """LeRobot's reader, of the columns that its metadata names; data/ may have others."""

    arrow: Path | None = None  # where the Arrow copy of the parquet files lies
    videos: dict[str, ForwardVideo] | None = None  # of each camera, where frames are read in their order

    def _query_videos(self, query_timestamps: dict[str, list[float]], ep_idx: int) -> dict[str, Tensor]:
        if self.videos is None:
            return dict(super()._query_videos(query_timestamps, ep_idx))
        pictures: dict[str, Tensor] = {}
        for key, (seconds,) in query_timestamps.items():
            video = self._forward_video(key, ep_idx)
            if video.is_closed:
                start = self._meta.episodes[ep_idx][f"videos/{key}/from_timestamp"]
                pictures[key] = video.picture(start + seconds)
            else:
                pictures |= super()._query_videos({key: [seconds]}, ep_idx)
        return pictures

    def _forward_video(self, key: str, ep_idx: int) -> ForwardVideo:
        assert self.videos is not None
        path = self.root / self._meta.get_video_file_path(ep_idx, key)
        if key not in self.videos or self.videos[key].path != path:
            if former := self.videos.pop(key, None):
                former.close()
            self.videos[key] = ForwardVideo(path, self._tolerance_s)
        return self.videos[key]

    def _load_hf_dataset(self) -> ArrowDataset:
        features = get_hf_features_from_features(self._meta.features)
        files = [str(path) for path in sorted((self.root / "data").glob("*/*.parquet"))]
        chosen = parquet.field("episode_index").isin(self.episodes)
        with SuppressProgressBars():
            table = ArrowDataset.from_parquet(
                files, filters=chosen, features=features, columns=list(features), cache_dir=self.arrow
            )
        table.set_transform(hf_transform_to_torch)
        return table


class Frames(Dataset[dict[str, Any]]):
    """The frames of a reader, as `LeRobotDataset` gives them."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return int(self._reader.num_frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = self._reader.get_item(index)
        return item

    def read_forward(self) -> None:
        """Expect items in their order from now on: each picture is decoded once, without a seek."""
        self._reader.videos = {}

    def position(self, number: int) -> int:
        """Where the frame with this number in the dataset is among those that were opened."""
        return int(self._reader._absolute_to_relative_idx[number])


def open_dataset(
    root: Path,
    policy: SmolVLAConfig,
    episodes: Sequence[int] | None = None,
    cameras: Mapping[str, str] | None = None,
    arrow: Path | None = None,
) -> Frames:
    """Open the dataset in `root` so that each item is one training sample of `policy`.

    An item has `observation.state` (1, 6), `observation.images.<camera>` (3, H, W) in [0, 1],
    `action` (chunk_size, 6), `action_is_pad` (chunk_size,) bool and `task` str; floats are fp32, in the
    dataset's own units. Call `describe_dataset` first: LeRobot would look for missing files on the Hub.

    Args:
        episodes: indices of the episodes to open; all of them if None.
        cameras: the policy's camera -> the dataset's: only these are opened and decoded. All if None.
        arrow: where LeRobot keeps an Arrow copy of the parquet files: the dataset may be read-only. None for
            the folder that HF_DATASETS_CACHE named when `datasets` was imported.

    Raises:
        DatasetError: LeRobot cannot open it.
    """
    try:
        metadata = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
        metadata.tasks = _numbered_tasks(root)
        metadata.info.features = _used_features(metadata.features, cameras)
        reader = _Reader(
            metadata,
            root,
            # Without a list LeRobot takes a frame's number for that of its row; rows lie in any order.
            list(range(metadata.total_episodes) if episodes is None else episodes),
            _TOLERANCE_SECONDS,
            "pyav",  # with an FFmpeg of its own; TorchCodec needs one on the machine
            resolve_delta_timestamps(policy, metadata),
            image_transforms=None,
        )
        reader.arrow = arrow
        reader.load_and_activate()
    except Exception as error:  # parquet, JSON and version errors of three libraries
        cause = first_cause(error)
        if isinstance(cause, OSError) and cause.errno in _OF_THE_DISK:
            raise DatasetError(
                f"dataset {root}: LeRobot's copy of its tables cannot be written to scratch "
                f"({cause.strerror}); make room there"
            ) from error
        raise DatasetError(
            f"dataset {root}: LeRobot cannot open it ({one_line(cause)}); meta/info.json must describe what "
            "data/ and meta/ hold: correct it, or record the dataset again with LeRobot 0.6"
        ) from error
    return Frames(reader)


def _used_features(
    recorded: Mapping[str, dict[str, Any]], cameras: Mapping[str, str] | None
) -> dict[str, dict[str, Any]]:
    """Those of the features `recorded` that training reads."""
    wanted = {OBS_STATE, ACTION, *DEFAULT_FEATURES}
    if cameras is not None:
        wanted |= {f"{OBS_IMAGES}.{own}" for own in cameras.values()}
    is_used = {key: key in wanted or (cameras is None and key.startswith(OBS_IMAGES)) for key in recorded}
    return {**DEFAULT_FEATURES, **{key: value for key, value in recorded.items() if is_used[key]}}


def _numbered_tasks(root: Path) -> pd.DataFrame:
    """Return the tasks as LeRobot reads them: it takes the number of a task for that of its row."""
    texts = read_tasks(root)
    numbers = range(max(texts, default=-1) + 1)
    return pd.DataFrame({"task_index": numbers}, index=[texts.get(number, "") for number in numbers])


def policy_inputs(
    item: dict[str, Any], policy: SmolVLAConfig, cameras: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the entries of a dataset item that `policy` learns from; the rest only costs collation.

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
    inputs = {key: item[own] for key, own in keys.items()}
    # Of a PNG LeRobot gives a series of one picture, (1, 3, H, W), of a video the picture itself.
    return {k: v[-1] if k in policy.image_features and v.ndim == 4 else v for k, v in inputs.items()}


def with_empty_cameras(inputs: dict[str, Any], policy: SmolVLAConfig) -> dict[str, Any]:
    """Return `inputs` with all cameras of `policy`: a lacking one is black, masked as SmolVLA's padding."""
    missing = [feature for feature in policy.image_features if feature not in inputs]
    return (
        inputs
        | {feature: torch.zeros(3, _EMPTY_PIXELS, _EMPTY_PIXELS) for feature in missing}
        | {f"{feature}_padding_mask": torch.tensor(False) for feature in missing}
    )
