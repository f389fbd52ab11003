"""What a LeRobot dataset says of itself, read from its files without torch or LeRobot.

Both sides look here first: a SuperNode answers the handshake with it, the server checks its evaluation sets
with it, and `make demo` and `make doctor` name what is wrong before a single process starts. LeRobot itself
would try to download a missing file from the Hub; so every file is looked for here, before LeRobot opens
anything.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from federation.data.advice import REPAIRED, check_finalised, check_totals, conversion, repair
from federation.data.cameras import CameraChoice, match_cameras
from federation.data.faults import find_faults, split_episodes
from federation.data.file_checks import check_data_files, check_files
from federation.data.info import IMAGE_PREFIX, check_info, check_stats, load_info, recorded_cameras
from federation.data.joint_names import check_joint_names
from federation.data.joint_units import JointUnits, check_joint_units, find_joint_units
from federation.data.joint_values import check_joint_values, value_warnings
from federation.data.simulated import is_simulated
from federation.data.statistics import FEATURES, Statistics, statistics_of_frames
from federation.data.tables import check_episodes, read_episodes, read_frames, read_tasks
from federation.errors import DatasetError, one_line
from federation.settings import PolicyConfig

__all__ = ["ARM_DIM", "DatasetDescription", "check_fits", "describe_dataset", "find_datasets"]

ARM_DIM = 6  # an SO-100/SO-101 arm: five joints and the gripper, in state and in action
_MAX_EXCLUDED = 0.2
_VERSION = re.compile(r"v?3(\.\d+)*")


@dataclass(frozen=True)
class DatasetDescription:
    """The facts of one dataset that matter to a federation; no frame, no path."""

    fps: int
    episodes: int
    frames: int
    cameras: tuple[str, ...]
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
        DatasetError: `root` is no dataset, is of another format version or another arm, a file is missing,
            damaged or may not be read, more than a fifth of the episodes must be left out, or a camera is
            lacking.
    """
    try:
        return _describe(root, cameras)
    except PermissionError as error:
        raise DatasetError(
            f"dataset {root}: cannot be read ({error.strerror}); give user {os.getuid()} the right to read "
            f"it: chmod -R a+rX {shlex.quote(str(root))}; in a site's container see SITE_UID in .env"
        ) from None
    except OSError as error:
        raise DatasetError(
            f"dataset {root}: cannot be read ({error.strerror}); see whether its disk is there and whole"
        ) from None


def _describe(root: Path, cameras: CameraChoice | None) -> DatasetDescription:
    info = load_info(root)
    _check_version(root, info)
    info = check_info(root, info)
    check_stats(root)
    episodes, frames = info["total_episodes"], info["total_frames"]
    if episodes < 1 or frames < 1:
        raise DatasetError(f"dataset {root}: holds {episodes} episodes and {frames} frames; record some")
    dims = _check_dims(root, info)
    recorded = recorded_cameras(info)
    used = {camera: camera for camera in recorded}
    if cameras is not None:
        used = match_cameras(cameras.wanted, recorded, cameras.names, cameras.may_lack, str(root))
    warnings = check_joint_names(info, root)
    videos = [
        key
        for key in (f"{IMAGE_PREFIX}{own}" for own in used.values())
        if info["features"][key]["dtype"] == "video"
    ]
    check_finalised(root, info)
    rows = read_episodes(root)
    check_episodes(root, rows, videos)
    check_files(root, info, rows, videos)
    check_totals(root, rows, episodes, frames)
    values = read_frames(root)
    _check_shapes(root, dims, values)
    check_data_files(root, info, rows, values)
    stored, listed = split_episodes(values), {int(row["episode_index"]) for row in rows}
    own = {index: frames for index, frames in stored.items() if index in listed}
    check_joint_values(own, root)
    left_out = find_faults(root, info, rows, values, read_tasks(root), videos)
    if len(left_out) > _MAX_EXCLUDED * episodes:
        raise _too_many(root, left_out, episodes)
    usable = {index: frames for index, frames in own.items() if index not in left_out}
    return DatasetDescription(
        fps=info["fps"],
        episodes=episodes,
        frames=frames,
        cameras=recorded,
        statistics=statistics_of_frames(values, usable),
        left_out=left_out,
        simulated=is_simulated(info),
        used_cameras=used,
        joint_units=find_joint_units(usable, root),
        warnings=(*warnings, *_unlisted(stored, listed, root), *value_warnings(usable, info["fps"], root)),
    )


def check_fits(description: DatasetDescription, policy: PolicyConfig, name: str) -> None:
    """Raise a `DatasetError` unless the dataset is in the units of `policy` and at its rate.

    Args:
        name: names the dataset in errors.
    """
    check_joint_units(description.joint_units, policy.joint_units, name)
    if description.fps != policy.fps:
        raise DatasetError(
            f"dataset {name}: recorded at {description.fps} frames/s, and policy.fps is {policy.fps}; use "
            f"data recorded with --dataset.fps={policy.fps}, or fps = {description.fps} with such data at "
            "all sites"
        )


def find_datasets(folder: Path) -> dict[str, Path]:
    """Return the datasets in `folder`, by name: the folder itself, or its direct subfolders, sorted.

    `NAME-repaired`, which `client/repair/main.py` wrote, takes the place of `NAME`; `NAME_old`, which
    LeRobot's conversion leaves beside `NAME`, is none of them.

    Raises:
        DatasetError: there is none.
    """
    if (folder / "meta").is_dir():
        return {folder.name: folder}
    if folder.is_dir():
        found = {sub.name: sub for sub in sorted(folder.iterdir()) if _may_be_dataset(sub)}
        for name in sorted(found, key=len, reverse=True):  # what was repaired twice first
            if f"{name}{REPAIRED}" in found:
                found[name] = found.pop(f"{name}{REPAIRED}")
        converted = {f"{name}_old" for name in found}
        if found:
            return {name: sub for name, sub in found.items() if name not in converted}
    raise DatasetError(f"no dataset in {folder}: make it, or name a folder that holds LeRobot v3 datasets")


def _may_be_dataset(folder: Path) -> bool:
    """Return whether `folder` is one, or cannot be looked into: whoever reads it says so."""
    try:
        return (folder / "meta").is_dir()
    except PermissionError:
        return folder.name != "lost+found" and not folder.name.startswith(".")  # disks have such of their own


def _too_many(root: Path, left_out: Mapping[int, str], episodes: int) -> DatasetError:
    first, why = next(iter(left_out.items()))
    return DatasetError(
        f"dataset {root}: {len(left_out)} of {episodes} episodes cannot be trained on, the first is {first} "
        f"({why}); more than {_MAX_EXCLUDED:.0%} are refused, not excluded: {repair(root)} "
        "writes what can be saved to a new folder"
    )


def _unlisted(
    stored: Mapping[int, Mapping[str, NDArray[Any]]], listed: set[int], root: Path
) -> Iterator[str]:
    """Yield a warning of frames that no episode has: recording ended before their episode was complete."""
    if unlisted := sorted(stored.keys() - listed):
        number = sum(len(stored[episode]["index"]) for episode in unlisted)
        yield (
            f"dataset {root}: data/ has {number} frames of episode {unlisted[0]}, which meta/episodes lacks, "
            "as after a recording that was interrupted; they are not used: record that episode again"
        )


def _check_version(root: Path, info: Mapping[str, Any]) -> None:
    version = str(info.get("codebase_version", "none"))
    if not isinstance(info.get("codebase_version"), str) or not _VERSION.fullmatch(version.strip()):
        raise DatasetError(
            f"dataset {root}: format version is {one_line(version)}, must be v3.x; "
            f"{conversion(root, version)}"
        )


def _check_dims(root: Path, info: Mapping[str, Any]) -> list[int]:
    dims = [int(info["features"][feature]["shape"][0]) for feature in FEATURES]
    for feature, dim in zip(FEATURES, dims, strict=True):
        if dim != ARM_DIM:
            raise DatasetError(
                f"dataset {root}: {feature} has {dim} values, an SO-100/SO-101 arm has {ARM_DIM}; "
                "use a dataset of that arm"
            )
    return dims


def _check_shapes(root: Path, dims: Sequence[int], frames: Mapping[str, NDArray[Any]]) -> None:
    for feature, dim in zip(FEATURES, dims, strict=True):
        if (there := frames[feature].shape[1]) != dim:
            raise DatasetError(
                f"dataset {root}: {feature} has {there} values in data/ and {dim} in meta/info.json, an "
                f"SO-100/SO-101 arm has {ARM_DIM} in both; use a dataset of that arm"
            )
