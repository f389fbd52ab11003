"""How long the doctor, the first join and the second take with a large dataset, each in a fresh process.

    python -m tests.benchmarks.judgement [--frames 50000] [--out tests/benchmarks/judgement.json]

Two cameras of 64 x 64: decoding costs next to nothing, reading tables and packets what it does
with large pictures. A first join looks at samples, a second finds the verdict of the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.synthetic import read_pictures, record_dataset, set_info, video_of, write_video

FPS, EPISODE_FRAMES, VIDEO_EPISODES = 30, 500, 20
CAMERAS = ("top", "wrist")


def record(root: Path, episodes: int) -> None:
    """Record one episode in `root` with LeRobot and repeat it, each time with other values."""
    record_dataset(root, episodes=1, frames=EPISODE_FRAMES, cameras=CAMERAS)
    (file,) = (root / "data").glob("*/*.parquet")
    table, parts = pq.read_table(file), []
    for episode in range(episodes):
        changed = {
            "episode_index": np.full(EPISODE_FRAMES, episode),
            "index": np.arange(EPISODE_FRAMES) + episode * EPISODE_FRAMES,
            **{
                key: _scaled(table, key, 1 - episode / (4 * episodes))
                for key in ("action", "observation.state")
            },
        }
        parts.append(_with_columns(table, changed))
    pq.write_table(pa.concat_tables(parts), file)
    (file,) = (root / "meta" / "episodes").glob("*/*.parquet")
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables(_episode_row(table, episode) for episode in range(episodes)), file)
    for camera in CAMERAS:
        video = video_of(root, camera)
        pictures = read_pictures(video)
        for number, first in enumerate(range(0, episodes, VIDEO_EPISODES)):
            repeated = pictures * min(VIDEO_EPISODES, episodes - first)
            write_video(video.with_name(f"file-{number:03d}.mp4"), repeated, FPS)
    set_info(root, total_episodes=episodes, total_frames=episodes * EPISODE_FRAMES)


def _scaled(table: pa.Table, key: str, factor: float) -> list[np.ndarray]:
    return list(np.stack(table[key].to_numpy()) * np.float32(factor))


def _with_columns(table: pa.Table, columns: dict[str, object]) -> pa.Table:
    for key, values in columns.items():
        column = pa.array(values, table.schema.field(key).type)
        table = table.set_column(table.column_names.index(key), key, column)
    return table


def _episode_row(table: pa.Table, episode: int) -> pa.Table:
    start = episode % VIDEO_EPISODES * EPISODE_FRAMES / FPS
    changed: dict[str, object] = {
        "episode_index": [episode],
        "dataset_from_index": [episode * EPISODE_FRAMES],
        "dataset_to_index": [(episode + 1) * EPISODE_FRAMES],
    }
    for camera in CAMERAS:
        key = f"videos/observation.images.{camera}"
        changed[f"{key}/file_index"] = [episode // VIDEO_EPISODES]
        changed[f"{key}/from_timestamp"] = [start]
        changed[f"{key}/to_timestamp"] = [start + EPISODE_FRAMES / FPS]
    return _with_columns(table, changed)


_JOIN = """
import sys
from types import SimpleNamespace
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from client.app import join
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
node = {"name": "site-a", "dataset": sys.argv[1], "scratch": sys.argv[2]}
context = SimpleNamespace(node_config=node, run_config={"policy.size": "smolvla"})
answer = join(Message(RecordDict(), 1, "query.join"), context)
assert not answer.has_error(), answer.error.reason
"""


def _seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 2)


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="Seconds of the doctor and of a join.")
    parser.add_argument("--frames", type=int, default=50_000, help=f"a multiple of {EPISODE_FRAMES}")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/judgement.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, scratch = Path(folder) / "site", str(Path(folder) / "scratch")
        record(root, arguments.frames // EPISODE_FRAMES)
        measured = {
            "frames": arguments.frames,
            "doctor_seconds": _seconds("-m", "client.cli", "doctor", "--dataset", str(root)),
            "first_join_seconds": _seconds("-c", _JOIN, str(root), scratch),
            "second_join_seconds": _seconds("-c", _JOIN, str(root), scratch),
        }
    print(json.dumps(measured, indent=2))
    arguments.out.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
