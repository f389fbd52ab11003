"""A video that is read forward gives the pictures that LeRobot's own decoder gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames

from federation.data.forward_video import ForwardVideo
from tests.synthetic import write_video

FPS, NUM_PICTURES = 30, 70
TOLERANCE = 1e-4


def _pictures(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    noise = random.integers(0, 255, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return [np.roll(noise, 3 * number, 1) for number in range(count)]


@pytest.fixture(params=[("h264", 2), ("h264", 12), ("libsvtav1", 2), ("libsvtav1", 30), ("mpeg4", 12)])
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    codec, group = request.param
    write_video(tmp_path / "a.mp4", _pictures(NUM_PICTURES), FPS, codec, g=str(group))
    return tmp_path / "a.mp4"


def _lerobots(video: Path, seconds: float) -> torch.Tensor:
    return decode_video_frames(video, [seconds], TOLERANCE, "pyav")[0]


@pytest.mark.parametrize(
    "numbers",
    [range(NUM_PICTURES), [5, 6, 5, 0, 69, 3, 3, 68], range(40, NUM_PICTURES, 3), [0, 65]],
    ids=["all", "to and fro", "gaps", "far"],
)
def test_each_picture_is_lerobots_bit_for_bit(video: Path, numbers: list[int]) -> None:
    forward = ForwardVideo(video, TOLERANCE)
    assert forward.is_closed
    for number in numbers:
        assert torch.equal(forward.picture(number / FPS), _lerobots(video, number / FPS)), number
    forward.close()


@pytest.mark.parametrize("seconds", [NUM_PICTURES / FPS, 0.5 / FPS, 100.0])
def test_a_time_without_a_picture_is_an_error_and_the_next_one_is_found(video: Path, seconds: float) -> None:
    forward = ForwardVideo(video, TOLERANCE)
    with pytest.raises(FrameTimestampError, match=r"a\.mp4: has no picture at"):
        forward.picture(seconds)
    assert torch.equal(forward.picture(0.0), _lerobots(video, 0.0))


def test_hevc_is_left_to_lerobot(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", _pictures(4), FPS, "hevc")
    assert not ForwardVideo(tmp_path / "a.mp4", TOLERANCE).is_closed
