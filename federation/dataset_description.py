"""What a LeRobot dataset says of itself, read from its files without torch or LeRobot.

Both sides look here first: a SuperNode answers the handshake with it, the server checks its evaluation sets
with it, and `make demo` and `make doctor` name what is wrong before a single process starts. LeRobot itself
would try to download a missing file from the Hub; so every file is looked for here, before LeRobot opens
anything.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from federation.cameras import CameraChoice, match_cameras
from federation.config import PolicyConfig
from federation.dataset_advice import REPAIRED, check_finalised, check_totals, conversion, repair
from federation.dataset_tables import read_episodes, read_frames, read_tasks
from federation.episode_faults import find_faults, split_episodes, video_of_episode
from federation.errors import DatasetError
from federation.joint_names import check_joint_names
from federation.joint_units import JointUnits, check_joint_units, find_joint_units
from federation.joint_values import check_joint_values, value_warnings
from federation.simulated import is_simulated
from federation.statistics import FEATURES, Statistics, statistics_of_frames

__all__ = ["ARM_DIM", "DatasetDescription", "check_fits", "describe_dataset", "find_datasets"]

ARM_DIM = 6  # an SO-100/SO-101 arm: five joints and the gripper, in state and in action
_MOST_LEFT_OUT = 0.2
_IMAGE_PREFIX = "observation.images."


@dataclass(frozen=True)
class DatasetDescription:
    """The facts of one dataset that matter to a federation; no frame, no path."""

    fps: int
    episodes: int
    frames: int
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    statistics: Statistics  # without the episodes that are left out
    left_out: Mapping[int, str]  # index of an episode that cannot be trained on -> why
    joint_units: JointUnits = field(default_factory=JointUnits)  # as far as the numbers tell
    simulated: bool = False  # recorded on the simulated arm
    used_cameras: Mapping[str, str] = field(default_factory=dict)  # the policy's camera -> the dataset's
    warnings: tuple[str, ...] = ()  # what training survives; each is one line with its subject and a fix

    @property
    def usable_episodes(self) -> list[int]:
        """Indices of the others."""
        return [episode for episode in range(self.episodes) if episode not in self.left_out]

    @property
    def usable_frames(self) -> int:
        """How many frames they have."""
        return int(self.statistics["action"]["count"][0])


def describe_dataset(root: Path, cameras: CameraChoice | None = None) -> DatasetDescription:
    """Read the description of the LeRobot v3 dataset in the folder `root` and check that its files exist.

    Statistics are computed from the frames, not taken from `meta/stats.json`.

    Args:
        cameras: which cameras the run uses; all of them if None.

    Raises:
        DatasetError: `root` is no dataset, is of another format version, a file is missing, damaged or may
            not be read, more than a fifth of the episodes must be left out, or a camera is lacking.
    """
    if not (root / "meta" / "info.json").is_file():
        raise DatasetError(
            f"dataset {root}: no meta/info.json there; give the folder of a LeRobot v3 dataset "
            "(it holds data/, meta/ and videos/)"
        )
    info = _read_json(root, "meta/info.json")
    version = str(info.get("codebase_version", "none"))
    if not version.startswith("v3."):
        raise DatasetError(
            f"dataset {root}: format version is {version}, must be v3.x; {conversion(root, version)}"
        )
    try:
        features = info["features"]
        recorded = tuple(
            key.removeprefix(_IMAGE_PREFIX)
            for key, feature in features.items()
            if key.startswith(_IMAGE_PREFIX) and feature["dtype"] in ("video", "image")
        )
        dims = [int(np.prod(features[key]["shape"])) for key in FEATURES]
        fps, episodes, frames = int(info["fps"]), int(info["total_episodes"]), int(info["total_frames"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"dataset {root}: meta/info.json lacks or garbles {error}") from None
    if episodes < 1 or frames < 1:
        raise DatasetError(f"dataset {root}: holds {episodes} episodes and {frames} frames; record some")
    used = {camera: camera for camera in recorded}
    if cameras is not None:
        used = match_cameras(cameras.wanted, recorded, cameras.names, cameras.may_lack, str(root))
    warnings = check_joint_names(info, root)
    check_finalised(root, info)
    rows = read_episodes(root)
    _check_files(root, info, rows)
    check_totals(root, rows, episodes, frames)
    values = read_frames(root)
    own = split_episodes(values)
    check_joint_values(own, root)
    left_out = find_faults(root, info, rows, values, len(read_tasks(root)))
    if len(left_out) > _MOST_LEFT_OUT * episodes:
        raise _too_many(root, left_out, episodes)
    usable = {index: frames for index, frames in own.items() if index not in left_out}
    return DatasetDescription(
        fps=fps,
        episodes=episodes,
        frames=frames,
        cameras=recorded,
        state_dim=dims[0],
        action_dim=dims[1],
        statistics=statistics_of_frames(values, without=left_out),
        left_out=left_out,
        simulated=is_simulated(info),
        used_cameras=used,
        joint_units=find_joint_units(usable, root),
        warnings=(*warnings, *value_warnings(usable, fps, root)),
    )


def check_fits(
    description: DatasetDescription, policy: PolicyConfig, name: str, names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Which of the dataset's cameras is which of the policy's (see `match_cameras`).

    Args:
        name: names the dataset in errors.
        names: what the site says of its cameras.

    Raises:
        DatasetError: the dataset lacks what the policy needs, or is of another arm, in other units or at
            another rate.
    """
    for what, dim in (("observation.state", description.state_dim), ("action", description.action_dim)):
        if dim != ARM_DIM:
            raise DatasetError(
                f"dataset {name}: {what} has {dim} values, an SO-100/SO-101 arm has {ARM_DIM}; "
                "use a dataset of that arm"
            )
    check_joint_units(description.joint_units, policy.joint_units, name)
    if description.fps != policy.fps:
        raise DatasetError(
            f"dataset {name}: recorded at {description.fps} frames/s, and policy.fps is {policy.fps}; use "
            f"data recorded with --dataset.fps={policy.fps}, or fps = {description.fps} with such data at "
            "all sites"
        )
    return match_cameras(policy.camera_names, description.cameras, names or {}, policy.empty_cameras, name)


def find_datasets(folder: Path) -> dict[str, Path]:
    """The datasets in `folder`, by name: the folder itself, or its direct subfolders, sorted.

    `NAME-repaired`, which `client/repair.py` wrote, takes the place of `NAME`; `NAME_old`, which LeRobot's
    conversion leaves beside `NAME`, is none of them.

    Raises:
        DatasetError: there is none.
    """
    if (folder / "meta").is_dir():
        return {folder.name: folder}
    if folder.is_dir():
        found = {sub.name: sub for sub in sorted(folder.iterdir()) if (sub / "meta").is_dir()}
        for name in sorted(found, key=len, reverse=True):  # what was repaired twice first
            if f"{name}{REPAIRED}" in found:
                found[name] = found.pop(f"{name}{REPAIRED}")
        converted = {f"{name}_old" for name in found}
        if found:
            return {name: sub for name, sub in found.items() if name not in converted}
    raise DatasetError(f"no dataset in {folder}: make it, or name a folder that holds LeRobot v3 datasets")


def _too_many(root: Path, left_out: Mapping[int, str], episodes: int) -> DatasetError:
    first, why = next(iter(left_out.items()))
    return DatasetError(
        f"dataset {root}: {len(left_out)} of {episodes} episodes cannot be trained on, the first is {first} "
        f"({why}); more than {_MOST_LEFT_OUT:.0%} are refused, not excluded: {repair(root)} "
        "writes what can be saved to a new folder"
    )


def _read_json(root: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((root / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"dataset {root}: {name} is missing; copy the dataset again") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"dataset {root}: {name} cannot be read ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise DatasetError(f"dataset {root}: {name} must hold a JSON object")
    return content


def _check_files(root: Path, info: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Every file the episodes name must be there, and this user must be allowed to read it."""
    video_keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    needed = {"meta/tasks.parquet", "meta/stats.json"}
    columns = {"episode_index", "length", "dataset_from_index"}
    columns |= {f"videos/{key}/from_timestamp" for key in video_keys}
    try:
        for row in rows:
            if lacking := sorted(columns - row.keys()):
                raise KeyError(lacking[0])
            chunk, file = row["data/chunk_index"], row["data/file_index"]
            needed.add(info["data_path"].format(chunk_index=chunk, file_index=file))
            for key in video_keys:
                needed.add(video_of_episode(info, row, key))
    except KeyError as error:
        raise DatasetError(f"dataset {root}: meta/episodes lacks {error}; copy the dataset again") from None
    missing = sorted(name for name in needed if not (root / name).is_file())
    if missing:
        raise DatasetError(
            f"dataset {root}: {len(missing)} files are missing, the first is {missing[0]}; copy it again"
        )
    closed = sorted(name for name in needed if not os.access(root / name, os.R_OK))
    if closed:
        raise DatasetError(
            f"dataset {root}: user {os.getuid()} may not read {len(closed)} files, the first is "
            f"{closed[0]}; give it the right: chmod -R a+rX {root}"
        )
