import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from federation.data.description import describe_dataset
from federation.data.faults import find_faults, split_episodes
from federation.errors import DatasetError
from tests.synthetic import blank_frames, record_dataset

FPS, FRAMES, EPISODES = 30, 20, 3


def _tables() -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Three good episodes of twenty frames, as read from a dataset."""
    rows = [
        {
            "episode_index": i,
            "length": FRAMES,
            "dataset_from_index": i * FRAMES,
            "dataset_to_index": (i + 1) * FRAMES,
        }
        for i in range(EPISODES)
    ]
    number = np.tile(np.arange(FRAMES, dtype=np.float64), EPISODES)
    vectors = np.random.default_rng(0).normal(size=(EPISODES * FRAMES, 6))
    return rows, {
        "episode_index": np.repeat(np.arange(EPISODES, dtype=np.float64), FRAMES),
        "frame_index": number,
        "index": np.arange(EPISODES * FRAMES, dtype=np.float64),
        "timestamp": (number / FPS).astype(np.float32).astype(np.float64),
        "task_index": np.zeros(EPISODES * FRAMES),
        "observation.state": vectors,
        "action": vectors.copy(),
    }


def _faults(rows: list[dict[str, Any]], frames: dict[str, np.ndarray]) -> dict[int, str]:
    return find_faults(Path(), {"fps": FPS}, rows, frames, tasks=[0], videos=[])


def test_good_episodes_have_no_fault_in_whatever_order_they_are_stored() -> None:
    rows, frames = _tables()
    assert _faults(rows, frames) == {}
    order = np.random.default_rng(0).permutation(EPISODES * FRAMES)
    shuffled = {name: values[order] for name, values in frames.items()}
    assert _faults(rows, shuffled) == {}
    assert list(split_episodes(shuffled)) == [0, 1, 2]
    assert split_episodes(shuffled)[2]["index"].tolist() == list(range(40, 60))
    np.testing.assert_array_equal(split_episodes(shuffled)[2]["action"], frames["action"][40:])


@pytest.mark.parametrize(
    ("column", "frame", "value", "fault"),
    [
        ("action", (25, 3), np.nan, "action is NaN or infinite in frame 5"),
        ("observation.state", (25, 0), np.inf, "observation.state is NaN or infinite in frame 5"),
        ("timestamp", 25, 9.0, "frame 5 is at 9.0000 s, must be at 5/30 s"),
        ("timestamp", 25, 5 / 30 + 2e-4, "frame 5 is at 0.1669 s, must be at 5/30 s"),
        ("timestamp", 25, np.nan, "frame 5 is at nan s, must be at 5/30 s"),
        ("frame_index", 25, 4, "its frames are not numbered one after the other"),
        ("index", 25, 24, "its frames are not numbered one after the other"),
        ("episode_index", 25, np.nan, "data/ has 19 of its 20 frames"),
        ("task_index", 25, 1, "frame 5 has a task that meta/tasks.parquet lacks"),
        ("task_index", 25, -1, "frame 5 has a task that meta/tasks.parquet lacks"),
    ],
)
def test_an_episode_lerobot_could_not_load_is_named_with_the_reason(
    column: str, frame: Any, value: float, fault: str
) -> None:
    rows, frames = _tables()
    frames[column][frame] = value
    assert _faults(rows, frames) == {1: fault}


def test_a_timestamp_within_lerobots_tolerance_is_none_of_them() -> None:
    rows, frames = _tables()
    frames["timestamp"][25] += 9e-5
    assert _faults(rows, frames) == {}


def test_an_episode_without_frames_is_empty_or_lost() -> None:
    rows, frames = _tables()
    frames = {name: values[:40] for name, values in frames.items()}
    assert _faults(rows, frames) == {2: "data/ has 0 of its 20 frames"}
    rows[2]["length"] = 0
    assert _faults(rows, frames) == {2: "it is empty"}


@pytest.mark.parametrize("end", [20, 60, 59.5, 10**6])
def test_an_episode_that_ends_elsewhere_than_its_frames_is_named(end: float) -> None:
    rows, frames = _tables()
    rows[1]["dataset_to_index"] = end
    assert _faults(rows, frames) == {1: f"it ends at frame {end} in meta/episodes, by its length at 40"}


def test_numbers_of_frames_may_have_gaps_and_lie_in_any_order_but_belong_to_one_episode() -> None:
    rows, frames = _tables()
    shared = "its frames have numbers that those of episode 0 have"
    for starts, faults in (([100, 0, 20], {}), ([0, 20, 10], {2: shared})):
        for row, start in zip(rows, starts, strict=True):
            row |= {"dataset_from_index": start, "dataset_to_index": start + FRAMES}
        frames["index"] = np.concatenate([start + np.arange(FRAMES) for start in starts])
        assert _faults(rows, frames) == faults


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_dataset(tmp_path_factory.mktemp("faults") / "site", episodes=6, frames=20, cameras=("top",))


@pytest.fixture
def video(recorded: Path, tmp_path: Path) -> Path:
    """The video of a copy of the dataset, to be damaged."""
    copy = Path(shutil.copytree(recorded, tmp_path / "site"))
    (video,) = (copy / "videos").rglob("*.mp4")
    return video


def _packets(video: Path) -> list[tuple[int, int]]:
    with av.open(str(video)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos is not None]


def _root(video: Path) -> Path:
    return video.parents[3]


def test_an_episode_whose_video_is_cut_is_left_out_and_does_not_count(video: Path) -> None:
    assert describe_dataset(_root(video)).left_out == {}
    with video.open("r+b") as file:
        file.truncate(_packets(video)[110][0])
    description = describe_dataset(_root(video))
    assert list(description.left_out) == [5]
    assert (
        "observation.images.top/chunk-000/file-000.mp4 lacks 10 of its 20 frames" in description.left_out[5]
    )
    assert description.usable_episodes == [0, 1, 2, 3, 4]
    assert description.usable_frames == 100


def test_a_frame_less_at_the_end_of_a_video_is_left_to_training(video: Path) -> None:
    with video.open("r+b") as file:
        file.truncate(_packets(video)[118][0])
    assert describe_dataset(_root(video)).left_out == {}


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: b"x" * len(content), lambda c: c[: len(c) // 2]]
)
def test_too_many_lost_episodes_are_refused_with_the_first_named(
    video: Path, damage: Callable[[bytes], bytes]
) -> None:
    video.write_bytes(damage(video.read_bytes()))
    with pytest.raises(DatasetError, match=r"of 6 episodes cannot be trained on, the first is \d \(videos/"):
        describe_dataset(_root(video))


def test_what_is_damaged_inside_a_packet_is_left_to_training(video: Path) -> None:
    blank_frames(video, range(40, 100))
    assert describe_dataset(_root(video)).left_out == {}


def test_frames_at_times_of_another_rate_are_told_from_frames_that_are_lost(
    recorded: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(recorded, tmp_path / "site"))
    (video,) = (root / "videos").rglob("*.mp4")
    with av.open(str(video)) as source, av.open(str(tmp_path / "late.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                half = round(1 / (2 * FPS) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + half, packet.dts + half, stream
                target.mux(packet)
    (tmp_path / "late.mp4").replace(video)
    with pytest.raises(
        DatasetError, match=r"has \d+ of its 20 frames between the times of a video with 30 frames/s"
    ):
        describe_dataset(root)
