"""Samples a second: LeRobot's own DataLoader against the sample cache, on the same recording in the same run.

    python -m tests.benchmarks.data_loading [--out tests/benchmarks/data_loading.json]

The recording is like an SO-101's: two cameras of 640 x 480, encoded with LeRobot's defaults. Batch size and
workers are those of a run's defaults. `lerobot` decodes with PyAV, as training does here;
`lerobot_torchcodec` with TorchCodec, where that finds a shared FFmpeg (PyAV brings its own). `cache_filling`
starts from an empty cache, `cache_full` finds nearly everything in it. `filling_in_order` is the one process
that decodes beside training, when nothing else wants its core.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from federation.data.sample_cache import SampleCache

EPISODES, FRAMES = 4, 120
WIDTH, HEIGHT = 640, 480
BATCH_SIZE, WORKERS = 16, 2


def record(root: Path) -> None:
    """Record a dataset of moving noise in `root`: harder to compress than a workshop."""
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = [f"{joint}.pos" for joint in ("pan", "lift", "elbow", "flex", "roll", "gripper")]
    vector = {"dtype": "float32", "shape": (6,), "names": names}
    image = {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
    cameras = ("observation.images.top", "observation.images.wrist")
    dataset = LeRobotDataset.create(
        repo_id="local/benchmark",
        root=root,
        fps=30,
        robot_type="so101_follower",
        features={"observation.state": vector, "action": vector, **dict.fromkeys(cameras, image)},
    )
    random = np.random.default_rng(0)
    scene = random.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    for _ in range(EPISODES):
        for t in range(FRAMES):
            pose = np.sin(np.arange(6) + t / 20).astype(np.float32) * 60
            frames = {camera: np.roll(scene, t * 3, axis) for axis, camera in enumerate(cameras)}
            dataset.add_frame({"observation.state": pose, "action": pose, **frames, "task": "move"})
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def samples_a_second(batches: Iterable[dict[str, Any]], count: int) -> float:
    """Take `count` samples; the first batch, with the start of the workers, is not timed."""
    iterator = iter(batches)
    next(iterator)
    started = time.perf_counter()
    taken = sum(len(batch["action"]) for batch in itertools.islice(iterator, count // BATCH_SIZE - 1))
    return taken / (time.perf_counter() - started)


def _fill(samples: "SampleCache") -> float:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.perf_counter()
    filled = samples.fill(lambda: True)
    seconds = time.perf_counter() - started
    torch.set_num_threads(threads)
    return filled / seconds


def main() -> None:
    """Measure, print the ratios, write the JSON."""
    import torch
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.utils.import_utils import get_safe_default_video_backend
    from torch.utils.data import DataLoader

    from client.frames import FrameStream
    from federation.data.sample_cache import open_samples
    from federation.policy.build import build_policy
    from federation.settings import PolicyConfig

    parser = argparse.ArgumentParser(description="Samples a second against LeRobot's own DataLoader.")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/data_loading.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "recording"
        record(root)
        policy = build_policy(
            PolicyConfig(size="tiny"), seed=0, device=torch.device("cpu"), cache=Path(folder) / "vlm"
        )
        policy.config.resize_imgs_with_padding = (512, 512)  # full size; nothing of the model is used
        length = EPISODES * FRAMES
        metadata = LeRobotDatasetMetadata("local/benchmark", root=root)
        deltas = resolve_delta_timestamps(policy.config, metadata)
        backends = {"lerobot": "pyav"}
        if get_safe_default_video_backend() == "torchcodec":
            backends["lerobot_torchcodec"] = "torchcodec"
        figures = {}
        for name, backend in backends.items():
            theirs = LeRobotDataset("local/benchmark", root, delta_timestamps=deltas, video_backend=backend)
            loader = DataLoader(theirs, batch_size=BATCH_SIZE, shuffle=True, num_workers=WORKERS)
            figures[name] = samples_a_second(loader, length)
        for name in ("cache_filling", "cache_full"):
            samples = open_samples(root, policy.config, Path(folder) / "samples", 10**10)
            stream = FrameStream(samples, seed=0, name="benchmark")
            loader = DataLoader(stream, batch_size=BATCH_SIZE, num_workers=WORKERS)
            figures[name] = samples_a_second(loader, length)
        figures["filling_in_order"] = _fill(open_samples(root, policy.config, Path(folder) / "own", 10**10))
        (file,) = (Path(folder) / "samples").glob("*.samples")
        result = {
            "samples_a_second": figures,
            "ratio_to_lerobot": {name: figures[name] / figures["lerobot"] for name in figures},
            "kilobytes_a_sample": file.stat().st_size / length / 1e3,
        }
    for name, value in figures.items():
        print(f"{name}: {value:.1f} samples/s, {result['ratio_to_lerobot'][name]:.2f} of LeRobot's")
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
