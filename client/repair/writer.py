"""Writes the episodes that `client/repair/source.py` found as a LeRobot dataset of format 3.

LeRobot itself writes meta/; the numbers and times of the frames are made anew.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.compute_stats import DEFAULT_QUANTILES, compute_episode_stats, get_feature_stats
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.utils.constants import DEFAULT_FEATURES
from numpy.typing import NDArray

from client.repair.source import Episode, Source
from client.repair.videos import VideoCopies, sample_pictures
from federation.errors import DatasetError, one_line

__all__ = ["measure_rate", "write_dataset"]

_MAX_RATE_ERROR = 0.05  # of fps: past it the recorded times are believed
_MAX_SECONDS = 1e5  # float32 times past it do not resolve a frame
_REQUIRED = ("observation.state", "action")
_PICTURE_SHAPES = ((3, 1, 1), (1, 1, 1))
_FILES_IN_CHUNK = 1000


def measure_rate(source: Source, episodes: Sequence[Episode]) -> int:
    """Return frames a second: what meta/info.json says unless the recorded times differ clearly.

    Raises:
        DatasetError: neither gives a rate.
    """
    try:
        told = float(source.info["fps"])
    except (KeyError, TypeError, ValueError):
        told = 0.0
    steps = []
    for episode in episodes:
        frames = source.frames_of(episode)
        times = (
            frames["timestamp"].to_numpy().astype(np.float64) if "timestamp" in frames.column_names else None
        )
        if times is not None and len(times) > 1 and np.abs(times).max() < _MAX_SECONDS:
            steps.append(np.diff(times))
    step = float(np.median(np.concatenate(steps))) if steps else 0.0
    measured = 1 / step if np.isfinite(step) and step > 0 else 0.0
    rate = told
    if measured and (not told or abs(measured / told - 1) > _MAX_RATE_ERROR):
        rate = measured
    if not 1 <= round(rate) <= 1000:
        raise DatasetError(
            f"meta/info.json has fps {source.info.get('fps')!r}, and the frames' times give no rate"
        )
    return round(rate)


def write_dataset(root: Path, source: Source, episodes: Sequence[Episode], fps: int) -> None:
    """Write `episodes` to the folder `root`, which must not exist.

    Raises:
        DatasetError: the frames do not fit what meta/info.json says of them.
    """
    features = _features(source, episodes[0], fps)
    videos = [key for key, feature in features.items() if feature["dtype"] == "video"]
    robot = source.info.get("robot_type")
    meta = LeRobotDatasetMetadata.create(f"local/{root.name}", fps, features, robot, root, bool(videos))
    schema = get_hf_features_from_features(meta.features).arrow_schema
    kept = [part for episode in episodes for part in episode.footage.values()]
    copies = VideoCopies(root, str(meta.video_path), source.footage, kept, fps)
    pictures = _picture_statistics(episodes, fps)
    data = _DataFiles(root, meta, schema)
    for number, episode in enumerate(episodes):
        frames = source.frames_of(episode)
        tasks = [source.tasks[index] for index in frames["task_index"].to_pylist()]
        distinct = list(dict.fromkeys(tasks))
        meta.save_episode_tasks(distinct)
        count = np.arange(episode.length)
        own = {
            "timestamp": count / fps,
            "frame_index": count,
            "episode_index": np.full(episode.length, number),
            "index": meta.total_frames + count,
            "task_index": np.array([meta.get_task_index(task) for task in tasks]),
        }
        table = _table(frames, own, schema, episode)
        places: dict[str, Any] = data.write(table)
        for key in videos:
            places |= copies.place(key, episode.footage[key])
        statistics = compute_episode_stats(_numbers(table), meta.features) | pictures[number]
        meta.save_episode(number, episode.length, distinct, statistics, places)
    data.close()
    meta.finalize()


class _DataFiles:
    """The files in data/, as large as LeRobot makes them."""

    def __init__(self, root: Path, meta: LeRobotDatasetMetadata, schema: pa.Schema) -> None:
        self._root, self._meta, self._schema = root, meta, schema
        self._writer: pq.ParquetWriter | None = None
        self._number = -1

    def write(self, table: pa.Table) -> dict[str, int]:
        """Append the episode `table`; what meta/episodes has to name for it."""
        if self._writer is None or self._file().stat().st_size > self._meta.data_files_size_in_mb * 2**20:
            self.close()
            self._number += 1
            self._file().parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._file(), self._schema, compression="snappy")
        self._writer.write_table(table)
        chunk, number = divmod(self._number, _FILES_IN_CHUNK)
        return {"data/chunk_index": chunk, "data/file_index": number}

    def close(self) -> None:
        """End the file that is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _file(self) -> Path:
        chunk, number = divmod(self._number, _FILES_IN_CHUNK)
        return self._root / str(self._meta.data_path).format(chunk_index=chunk, file_index=number)


def _features(source: Source, episode: Episode, fps: int) -> dict[str, Any]:
    """Return the features of meta/info.json that the data has, without those that LeRobot adds itself.

    Raises:
        DatasetError: state or action is not among them.
    """
    columns = source.frames_of(episode).column_names
    features = {}
    for key, feature in source.info["features"].items():
        if key in DEFAULT_FEATURES or not (feature.get("dtype") == "video" or key in columns):
            continue
        shape = tuple(feature["shape"])
        # The rate is repeated in what is known of each video.
        info = {
            name: fps if name == "video.fps" else value for name, value in (feature.get("info") or {}).items()
        }
        features[key] = feature | {"shape": shape} | ({"info": info} if info else {})
    if lacking := [key for key in _REQUIRED if key not in features]:
        raise DatasetError(f"the frames have no {lacking[0]}: record again")
    return features


def _table(frames: pa.Table, own: dict[str, NDArray[Any]], schema: pa.Schema, episode: Episode) -> pa.Table:
    columns = []
    for field in schema:
        try:
            columns.append(
                pa.array(own[field.name]).cast(field.type)
                if field.name in own
                else frames[field.name].cast(field.type)
            )
        except (pa.ArrowException, KeyError) as error:
            raise DatasetError(
                f"{field.name} of episode {episode.number} is not as meta/info.json says: {one_line(error)}"
            ) from None
    return pa.Table.from_arrays(columns, schema=schema)


def _numbers(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return the numeric columns by name: (frames,) or (frames, values)."""
    numbers = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        rows = len(column)
        while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            values = column.to_numpy(zero_copy_only=False)
            numbers[name] = values if len(values) == rows else values.reshape(rows, -1)
    return numbers


def _picture_statistics(episodes: Sequence[Episode], fps: int) -> list[dict[str, dict[str, NDArray[Any]]]]:
    """Statistics of each episode's pictures: what the old dataset knew, if of all, else of some pictures.

    LeRobot's tables need the same columns for every episode.
    """
    known = [_known_statistics(episode) for episode in episodes]
    columns = {tuple(sorted((key, *sorted(named)) for key, named in each.items())) for each in known}
    if len(columns) == 1 and known[0].keys() >= episodes[0].footage.keys():
        return known
    try:
        return [
            {key: _measure(sample_pictures(part, fps)) for key, part in episode.footage.items()}
            for episode in episodes
        ]
    except (
        ValueError
    ):  # without statistics of pictures; the judgement finds the episode whose pictures are lost
        return [{} for _ in episodes]


def _measure(pictures: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """LeRobot's statistics of (n, 3, height, width), scaled to 0..1."""
    measured = get_feature_stats(pictures, axis=(0, 2, 3), keepdims=True, quantile_list=DEFAULT_QUANTILES)
    return {
        name: value if name == "count" else np.squeeze(value / 255.0, axis=0)
        for name, value in measured.items()
    }


def _known_statistics(episode: Episode) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the old dataset's statistics of the episode's pictures, as far as they have LeRobot's form."""
    statistics: dict[str, dict[str, NDArray[Any]]] = {}
    for path, value in episode.statistics.items():
        _, key, name = path.split("/")
        array = np.array(value)
        if array.shape in (((1,),) if name == "count" else _PICTURE_SHAPES):
            statistics.setdefault(key, {})[name] = array
    whole = {"min", "max", "mean", "std", "count"}
    return {key: named for key, named in statistics.items() if whole <= named.keys()}
