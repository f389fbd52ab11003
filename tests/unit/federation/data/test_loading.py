import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from federation.data.loading import open_dataset, policy_inputs
from federation.errors import DatasetError
from tests.synthetic import record_dataset, set_info, video_of

pytestmark = pytest.mark.slow


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def test_a_frame_is_lerobots_own(root: Path, policy) -> None:
    opened = LeRobotDataset("local/site-a", root=root, episodes=[0, 1, 2], video_backend="pyav")
    deltas = resolve_delta_timestamps(policy.config, opened.meta)
    theirs = LeRobotDataset(
        "local/site-a", root=root, episodes=[0, 1, 2], delta_timestamps=deltas, video_backend="pyav"
    )
    ours = open_dataset(root, policy.config)
    assert len(ours) == len(theirs) == 120
    for index in (0, 39, 40, 119):
        assert _same(ours[index], theirs[index])


def test_rows_in_any_order_give_each_frame_its_own_actions(root: Path, policy) -> None:
    before = open_dataset(root, policy.config)
    (file,) = (root / "data").glob("*/*.parquet")
    table = pq.read_table(file)
    order = np.random.default_rng(0).permutation(len(table))
    expected = {number: before[before.position(number)] for number in (0, 17, 40, 85, 119)}
    pq.write_table(table.take(pa.array(order)), file)
    shuffled = open_dataset(root, policy.config)
    for number, item in expected.items():
        assert _same(shuffled[shuffled.position(number)], item)


def test_a_camera_that_is_not_used_is_neither_opened_nor_decoded(
    root: Path, policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(video_of(root, "wrist").parents[1])
    decoded: list[str] = []
    from lerobot.datasets import dataset_reader

    decode = dataset_reader.decode_video_frames

    def counting(video: Path, *arguments: object, **options: object) -> torch.Tensor:
        decoded.append(video.parts[-3])
        return decode(video, *arguments, **options)

    monkeypatch.setattr(dataset_reader, "decode_video_frames", counting)
    item = open_dataset(root, policy.config, cameras={"top": "top"})[50]
    assert decoded == ["observation.images.top"]
    assert item["observation.images.top"].shape == (3, 64, 64)
    assert "observation.images.wrist" not in item


def test_a_picture_in_png_is_shaped_as_one_of_a_video(policy, tmp_path: Path) -> None:
    root = record_dataset(tmp_path / "site", episodes=1, frames=5, codec="image", cameras=("top",))
    item = policy_inputs(open_dataset(root, policy.config)[2], policy.config, {"top": "top"})
    assert item["observation.images.top"].shape == (3, 64, 64)


def test_an_error_at_opening_names_its_cause(root: Path, policy) -> None:
    set_info(root, features={"observation.state": {"shape": [12]}})
    with pytest.raises(DatasetError) as refused:
        open_dataset(root, policy.config)
    assert "An error occurred while generating the dataset" not in str(refused.value)
    assert "copy it again" not in str(refused.value)
    assert "LeRobot cannot open it (" in str(refused.value)
