"""Small LeRobot datasets with the shape of SO-100 recordings, for tests: seconds, not minutes.

A coloured square follows a sine; the joints follow it too, so there is something to learn.
"""

import json
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
EDGE_PIXELS = 64
FPS = 30


def record_dataset(
    root: Path,
    *,
    episodes: int = 3,
    frames: int = 40,
    cameras: tuple[str, ...] = ("top", "wrist"),
    seed: int = 0,
    dim: int = 6,
    fps: int = FPS,
    reach: float = 60.0,
    codec: str = "h264",
    size: tuple[int, int] = (EDGE_PIXELS, EDGE_PIXELS),
) -> Path:
    """Record a dataset of `episodes` x `frames` frames in `root` and return `root`.

    Args:
        reach: degrees to either side that the joints go.
        codec: "h264", "hevc", "libsvtav1" or "image", for PNG.
        size: of the pictures, (height, width).
    """
    names = [f"{joint}.pos" for joint in JOINTS][:dim]
    vector = {"dtype": "float32", "shape": (dim,), "names": names}
    image = {
        "dtype": "image" if codec == "image" else "video",
        "shape": (*size, 3),
        "names": ["height", "width", "channels"],
    }
    dataset = LeRobotDataset.create(
        repo_id=f"local/{root.name}",
        root=root,
        fps=fps,
        robot_type="so100_follower",
        features={
            "observation.state": vector,
            "action": vector,
            **{f"observation.images.{camera}": image for camera in cameras},
        },
        rgb_encoder=RGBEncoderConfig(vcodec="h264" if codec == "image" else codec),
    )
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for _ in range(episodes):
        phases = random.uniform(0, 2 * np.pi, dim)
        colour = random.integers(60, 255, 3)
        for t in range(frames):
            pose = _pose(t, frames, phases, reach)
            picture = np.full((*size, 3), 90, np.uint8)
            centre = np.array(size) / 2 * (1 + 0.6 * pose[:2] / reach)
            picture[(abs(rows - centre[0]) < 8) & (abs(columns - centre[1]) < 8)] = colour
            background = (picture == 90).astype(np.uint8)
            pictures = {  # each camera has another background: one taken for another would be seen
                f"observation.images.{camera}": picture + np.uint8(25 * number) * background
                for number, camera in enumerate(cameras)
            }
            dataset.add_frame(
                {
                    "observation.state": pose,
                    "action": _pose(t + 1, frames, phases, reach),
                    **pictures,
                    "task": "follow the square",
                }
            )
        dataset.save_episode(parallel_encoding=False)  # a fork of a process with threads may hang
    dataset.finalize()
    return root


def video_of(root: Path, camera: str) -> Path:
    """The first video of the camera."""
    return root / "videos" / f"observation.images.{camera}" / "chunk-000" / "file-000.mp4"


def read_pictures(video: Path) -> list[np.ndarray]:
    """The pictures of a video, (height, width, 3) uint8 each."""
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write_video(
    video: Path, pictures: list[np.ndarray], fps: int = FPS, codec: str = "h264", **options: str
) -> None:
    """Write pictures (height, width, 3) uint8 as a video, in place of one that is there."""
    video.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(video), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size = "yuv420p", 2
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def set_info(root: Path, **changes: Any) -> None:
    """Set keys of meta/info.json, one in a feature as `{"features": {"action": {"shape": [12]}}}`."""
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if key == "features":
            for feature, entry in value.items():
                info["features"][feature] = info["features"].get(feature, {}) | entry
        else:
            info[key] = value
    file.write_text(json.dumps(info), encoding="utf-8")


def set_episodes(root: Path, columns: dict[str, list[Any]]) -> None:
    """Set columns of meta/episodes."""
    (file,) = (root / "meta" / "episodes").glob("*/*.parquet")
    table = pq.read_table(file)
    for key, values in columns.items():
        column = pa.array(values, table.schema.field(key).type)
        table = table.set_column(table.column_names.index(key), key, column)
    pq.write_table(table, file)


def as_format_2(root: Path, version: str = "v2.1") -> Path:
    """Rewrite the dataset in `root` as LeRobot of early 2025 did: a file for each episode."""
    info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
    (file,) = (root / "data").glob("*/*.parquet")
    table = pq.read_table(file, partitioning=None)
    numbers = table["episode_index"].to_numpy()
    videos = {video.parents[1].name: read_pictures(video) for video in root.glob("videos/*/*/*.mp4")}
    for folder in ("data", "videos", "meta"):
        shutil.rmtree(root / folder)
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    for episode in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == episode)
        name = f"episode_{episode:06d}"
        pq.write_table(table.take(rows), root / f"data/chunk-000/{name}.parquet")
        for key, pictures in videos.items():
            own = pictures[rows[0] : rows[-1] + 1]
            write_video(root / f"videos/chunk-000/{key}/{name}.mp4", own, info["fps"], crf="10")
    task = json.dumps({"task_index": 0, "task": "follow the square"})
    (root / "meta" / "tasks.jsonl").write_text(f"{task}\n", encoding="utf-8")
    name = "episode_{episode_index:06d}"
    changes = {
        "codebase_version": version,
        "data_path": f"data/chunk-{{episode_chunk:03d}}/{name}.parquet",
        "video_path": f"videos/chunk-{{episode_chunk:03d}}/{{video_key}}/{name}.mp4",
    }
    (root / "meta" / "info.json").write_text(json.dumps(info | changes), encoding="utf-8")
    return root


def split_video(root: Path, camera: str, size: tuple[int, int]) -> None:
    """Put the last half of the episodes, all equally long, into a second video of another (height, width)."""
    video, key = video_of(root, camera), f"videos/observation.images.{camera}"
    (file,) = (root / "meta" / "episodes").glob("*/*.parquet")
    lengths = pq.read_table(file, columns=["length"])["length"].to_pylist()
    half, seconds = len(lengths) // 2, lengths[0] / FPS
    pictures = read_pictures(video)
    first, second = pictures[: half * lengths[0]], pictures[half * lengths[0] :]
    write_video(video, first)
    tall, wide = size
    write_video(video.with_name("file-001.mp4"), [np.tile(one, (2, 2, 1))[:tall, :wide] for one in second])
    starts = [i * seconds for i in (*range(half), *range(len(lengths) - half))]
    columns = {"from_timestamp": starts, "to_timestamp": [start + seconds for start in starts]}
    files = [0] * half + [1] * (len(lengths) - half)
    set_episodes(
        root, {f"{key}/{name}": values for name, values in (columns | {"file_index": files}).items()}
    )


def blank_frames(video: Path, frames: Container[int]) -> None:
    """Zero the packets of `frames` (in their stored order): they are there, but cannot be decoded."""
    content = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        for index, packet in enumerate(container.demux(video=0)):
            if packet.size and index in frames:
                content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    video.write_bytes(content)


def _pose(t: int, frames: int, phases: np.ndarray, reach: float) -> np.ndarray:
    return (reach * np.sin(2 * np.pi * t / frames + phases)).astype(np.float32)
