"""Small LeRobot datasets with the shape of SO-100 recordings, for tests: seconds, not minutes.

A coloured square follows a sine; the joints follow it too, so there is something to learn.
"""

from collections.abc import Container
from pathlib import Path

import av
import numpy as np
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
) -> Path:
    """Record a dataset of `episodes` x `frames` frames in `root` and return `root`.

    Args:
        reach: degrees to either side that the joints go.
    """
    names = [f"{joint}.pos" for joint in JOINTS][:dim]
    vector = {"dtype": "float32", "shape": (dim,), "names": names}
    image = {
        "dtype": "video",
        "shape": (EDGE_PIXELS, EDGE_PIXELS, 3),
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
        rgb_encoder=RGBEncoderConfig(vcodec="h264"),
    )
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:EDGE_PIXELS, :EDGE_PIXELS]
    for _ in range(episodes):
        phases = random.uniform(0, 2 * np.pi, dim)
        colour = random.integers(60, 255, 3)
        for t in range(frames):
            pose = _pose(t, frames, phases, reach)
            picture = np.full((EDGE_PIXELS, EDGE_PIXELS, 3), 90, np.uint8)
            centre = EDGE_PIXELS / 2 * (1 + 0.6 * pose[:2] / reach)
            picture[(abs(rows - centre[0]) < 8) & (abs(columns - centre[1]) < 8)] = colour
            dataset.add_frame(
                {
                    "observation.state": pose,
                    "action": _pose(t + 1, frames, phases, reach),
                    **{f"observation.images.{camera}": picture for camera in cameras},
                    "task": "follow the square",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


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
