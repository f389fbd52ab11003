"""No false alarm: what LeRobot records at any usual rate and in any usual format joins, and trains."""

import json
from pathlib import Path

import pytest

from tests.one_site import join, train_step
from tests.synthetic import read_pictures, record_dataset, video_of, write_video

pytestmark = pytest.mark.slow

# Every rate, and every format at a low and a high one. mpeg4 comes from older recorders.
RECORDINGS = [
    (5, "h264"),
    (10, "hevc"),
    (15, "libsvtav1"),
    (20, "mpeg4"),
    (25, "image"),
    (30, "libsvtav1"),
    (50, "hevc"),
    (60, "h264"),
    (60, "mpeg4"),
    (50, "image"),
]


@pytest.mark.parametrize(("fps", "codec"), RECORDINGS)
def test_a_healthy_recording_joins_and_trains(
    tmp_path: Path, looks: list[Path], fps: int, codec: str
) -> None:
    recorded = "h264" if codec == "mpeg4" else codec
    root = record_dataset(
        tmp_path / "site", episodes=2, frames=fps, fps=fps, cameras=("top",), codec=recorded
    )
    if codec == "mpeg4":
        video = video_of(root, "top")
        write_video(video, read_pictures(video), fps, "mpeg4")
    settings = {"policy_cameras": "top", "policy_fps": fps, "policy_chunk_size": 10}
    answer = join(root, tmp_path / "scratch", **settings)
    assert not answer.has_error(), answer.error.reason
    assert train_step(root, tmp_path / "scratch", **settings) > 0
    assert len(looks) == 1
    (verdict,) = (tmp_path / "scratch" / "judged").iterdir()
    assert json.loads(verdict.read_text()) == {"error": "", "lasts": True, "warnings": []}


def test_the_sample_datas_kind_of_recording_has_no_warnings(
    data: Path, tmp_path: Path, looks: list[Path]
) -> None:
    for site in ("site-a", "site-b"):
        assert not join(data / site, tmp_path).has_error()
    assert len(looks) == 2
