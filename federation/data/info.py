"""Reading `meta/info.json` of a LeRobot dataset: every key that LeRobot or this project reads has its type.

`describe_dataset` reads it for everybody. What LeRobot would trip over when a round opens the dataset is
refused here, in one line that names the key; what LeRobot takes is taken here too.
"""

import json
import re
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

import numpy as np

from federation.data.advice import repair
from federation.data.statistics import FEATURES
from federation.errors import DatasetError, one_line

__all__ = [
    "IMAGE_PREFIX",
    "check_info",
    "check_names",
    "check_stats",
    "load_info",
    "read_info",
    "recorded_cameras",
    "video_path_of",
]

IMAGE_PREFIX = "observation.images."

_SIZES = ("chunks_size", "data_files_size_in_mb", "video_files_size_in_mb")
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_PLACE = ("chunk_index", "file_index")
_FORMATS = {"video_key": re.compile("")} | dict.fromkeys(_PLACE, re.compile(r"(0?\d?d)?"))
_FLOATS = ("float32", "float64")
_WHOLE = ("int64", "int32")
_NUMBERS = {
    "timestamp": _FLOATS,
    "frame_index": _WHOLE,
    "episode_index": _WHOLE,
    "index": _WHOLE,
    "task_index": _WHOLE,
}
_MAX_NUMBER = 10**9
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_info(root: Path) -> dict[str, Any]:
    """Return the content of meta/info.json of the dataset in `root`, checked and complete (see `check_info`).

    Raises:
        DatasetError: it is missing, damaged or not as LeRobot writes it.
    """
    return check_info(root, load_info(root))


def load_info(root: Path) -> dict[str, Any]:
    """Return the content of meta/info.json of the dataset in `root`, as it was written.

    Raises:
        DatasetError: it is missing or no JSON object.
    """
    file = root / "meta" / "info.json"
    if not file.is_file():
        raise DatasetError(
            f"dataset {root}: no meta/info.json there; give the folder of a LeRobot v3 dataset "
            "(it holds data/, meta/ and videos/)"
        )
    content = _load_json(root, file, "copy it again")
    if not isinstance(content, dict):
        raise DatasetError(f"dataset {root}: meta/info.json must hold a JSON object; copy it again")
    return content


def check_stats(root: Path) -> None:
    """Raise a `DatasetError` if meta/stats.json is there and LeRobot, which reads it unasked, cannot."""
    file = root / "meta" / "stats.json"
    fix = "delete it: training does not use it"
    if not file.is_file():
        return
    content = _load_json(root, file, fix)
    if not isinstance(content, dict):
        raise DatasetError(f"dataset {root}: meta/stats.json must hold a JSON object; {fix}")
    try:
        _check_arrays(content)
    except (RecursionError, ValueError) as error:
        raise DatasetError(
            f"dataset {root}: meta/stats.json is no statistics ({one_line(error)}); {fix}"
        ) from None


def _check_arrays(stats: Any) -> None:
    if not isinstance(stats, dict):
        np.array(stats)
        return
    for value in stats.values():
        _check_arrays(value)


def _load_json(root: Path, file: Path, fix: str) -> Any:
    name = file.relative_to(root)
    try:
        text = file.read_bytes()
        if text.startswith(_BYTE_ORDER_MARK):
            path = shlex.quote(str(file))
            command = f"tail -c +{len(_BYTE_ORDER_MARK) + 1} {path} > {path}.new && mv {path}.new {path}"
            raise DatasetError(f"dataset {root}: {name} starts with a byte order mark; remove it: {command}")
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"dataset {root}: {name} cannot be read ({one_line(error)}); {fix}") from None


def check_info(root: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return `info` with its numbers as int and with LeRobot's own paths where it has none.

    Raises:
        DatasetError: a key is missing or holds what LeRobot cannot use.
    """
    checked = dict(info)
    fix = f"{repair(root)} finds it out and writes a new dataset"
    for key in ("fps", "total_episodes", "total_frames"):
        if (number := _whole_number(info.get(key))) is None:
            raise _wrong(root, key, info.get(key), "a whole number", fix)
        checked[key] = number
    if checked["fps"] < 1:
        raise _wrong(root, "fps", info["fps"], "1 or more", fix)
    if "total_tasks" in info and _whole_number(info["total_tasks"]) is None:
        raise _wrong(root, "total_tasks", info["total_tasks"], "a whole number", fix)
    for key in _SIZES:
        if key in info and not (_is_number(info[key]) and info[key] > 0):
            raise _wrong(root, key, info[key], "a number above 0", "remove the key: LeRobot has a default")
    _check_features(root, info.get("features"))
    checked["data_path"] = info.get("data_path")
    if not _is_path(checked["data_path"], _PLACE):
        checked["data_path"] = _DATA_PATH  # LeRobot finds the files of data/ without it
    has_videos = any(feature.get("dtype") == "video" for feature in info["features"].values())
    checked["video_path"] = video_path_of(root, info) if has_videos else _VIDEO_PATH
    return checked


def video_path_of(root: Path, info: Mapping[str, Any]) -> str:
    """Return where `info` says that videos lie, to be filled in with `format`, or else LeRobot's own place.

    Raises:
        DatasetError: it is no path below the dataset, or could not be filled in.
    """
    path = info.get("video_path", _VIDEO_PATH)
    if not _is_path(path, ("video_key", *_PLACE)):
        raise _wrong(root, "video_path", path, "the path of a video", f'set it to "{_VIDEO_PATH}"')
    return str(path)


def recorded_cameras(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a dataset's cameras, without `observation.images.`."""
    return tuple(
        key.removeprefix(IMAGE_PREFIX)
        for key, feature in info["features"].items()
        if key.startswith(IMAGE_PREFIX) and feature.get("dtype") in ("video", "image")
    )


def _check_features(root: Path, features: Any) -> None:
    if not isinstance(features, dict):
        raise _wrong(root, "features", features, "an object with the columns of data/", "copy it again")
    check_names(root, features)
    for key, feature in features.items():
        if not isinstance(feature, dict):
            raise _wrong(root, f"features.{key}", feature, "an object with dtype and shape", "copy it again")
        for name in ("info", "video_info"):
            if feature.get(name) and not isinstance(feature[name], dict):
                raise _wrong(root, f"features.{key}.{name}", feature[name], "an object", "remove the key")
    for key in FEATURES:
        if key not in features:
            raise _wrong(root, f"features.{key}", None, "there", "use a recording of an arm")
        _check_feature(root, features, key, _FLOATS)
        dim = features[key].get("shape")
        if not (isinstance(dim, list) and len(dim) == 1 and (_whole_number(dim[0]) or 0) > 0):
            fix = "set it to [6] if data/ holds six values, one for each joint, in every frame"
            raise _wrong(root, f"features.{key}.shape", dim, "a list of one number", fix)
    for key, types in _NUMBERS.items():
        if key in features:
            _check_feature(root, features, key, types)
            if features[key].get("shape") != [1]:
                shape = features[key].get("shape")
                raise _wrong(root, f"features.{key}.shape", shape, "[1]", "set it to [1]")


def check_names(root: Path, features: Mapping[str, Any]) -> None:
    """Raise a `DatasetError` if the name of a column would lead out of the dataset; LeRobot writes none."""
    for key in features:
        if "/" in key:
            raise _wrong(root, "features", key, "names without a slash", "copy it again")


def _check_feature(root: Path, features: Mapping[str, Any], key: str, types: Sequence[str]) -> None:
    dtype = features[key].get("dtype")
    if dtype not in types:
        raise _wrong(root, f"features.{key}.dtype", dtype, " or ".join(types), f'set it to "{types[0]}"')


def _whole_number(value: Any) -> int | None:
    """Return `value` as int; None if it is no whole number, or beyond what any dataset has."""
    if not _is_number(value) or not abs(value) <= _MAX_NUMBER or value != int(value):
        return None
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_path(template: Any, fields: Sequence[str]) -> bool:
    """Whether `template` is a path below the dataset that can be filled in with `fields`, harmlessly so."""
    try:
        parts = list(Formatter().parse(template))
    except (TypeError, ValueError):
        return False
    place = PurePosixPath(template)
    if place.is_absolute() or ".." in place.parts or not template.isprintable():
        return False
    return all(
        name is None or (name in fields and not conversion and _FORMATS[name].fullmatch(spec or ""))
        for _, name, spec, conversion in parts
    )


def _wrong(root: Path, key: str, value: Any, must: str, fix: str) -> DatasetError:
    shown = "missing or null" if value is None else one_line(reprlib.repr(value))
    return DatasetError(
        f"dataset {root}: {one_line(key)} in meta/info.json is {shown}, must be {must}; {fix}"
    )
