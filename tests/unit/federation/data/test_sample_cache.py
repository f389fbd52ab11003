import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from lerobot.policies.common.vla_utils import resize_with_pad

from federation.data.loading import open_dataset, policy_inputs
from federation.data.sample_cache import SampleCache, open_samples
from tests.synthetic import record_dataset, video_of

pytestmark = pytest.mark.slow

GB = 10**9


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))


def _open(root: Path, policy, max_bytes: int = GB) -> SampleCache:
    return open_samples(root, policy.config, root.parent / "samples", max_bytes)


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def _count_decodes(samples: SampleCache, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decoded: list[int] = []
    dataset = samples._dataset
    original = type(dataset).__getitem__

    def counting(self, index: int):
        decoded.append(index)
        return original(self, index)

    monkeypatch.setattr(type(dataset), "__getitem__", counting)
    return decoded


def test_a_sample_is_lerobots_own_at_8_bits_and_the_same_the_second_time(policy, root, monkeypatch) -> None:
    reference = open_dataset(root, policy.config)
    expected = [policy_inputs(reference[i], policy.config) for i in (0, 39, 40, 119)]
    samples = _open(root, policy)
    decoded = _count_decodes(samples, monkeypatch)
    for index, sample in zip((0, 39, 40, 119), expected, strict=True):
        first, second = samples[index], samples[index]
        assert _same(first, second)
        assert _same(first, sample)  # these images are not larger than the policy wants
    assert decoded == [0, 39, 40, 119]
    (file,) = (root.parent / "samples").glob("*.samples")
    pixels = 2 * 3 * 64 * 64  # one byte each
    assert pixels < file.stat().st_size / 120 < 1.1 * pixels + 2048


def test_another_process_finds_what_the_first_stored(policy, root, monkeypatch) -> None:
    first = _open(root, policy)[7]
    again = _open(root, policy)
    decoded = _count_decodes(again, monkeypatch)
    assert _same(again[7], first)
    assert decoded == []


@pytest.mark.parametrize(("height", "width"), [(96, 128), (128, 96), (75, 100), (64, 64), (31, 17)])
def test_shrinking_leaves_what_the_policy_sees(policy, height: int, width: int) -> None:
    from federation.data.sample_cache import _shrink

    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))
    seen = resize_with_pad(image[None], 64, 64, pad_value=0)
    assert torch.equal(resize_with_pad(_shrink(image, policy.config)[None], 64, 64, pad_value=0), seen)


def test_a_damaged_record_is_decoded_again(policy, root) -> None:
    samples = _open(root, policy)
    good = samples[3]
    (file,) = (root.parent / "samples").glob("*.samples")
    with file.open("r+b") as stored:
        stored.seek(3 * samples._layout.itemsize + 1000)
        byte = stored.read(1)
        stored.seek(-1, os.SEEK_CUR)
        stored.write(bytes([byte[0] ^ 1]))
    assert _same(samples[3], good)
    assert _same(_open(root, policy)[3], good)


def test_data_that_changed_gets_a_new_file_and_the_old_one_goes(policy, root) -> None:
    _open(root, policy)[0]
    (before,) = (root.parent / "samples").glob("*.samples")
    (copied,) = (root.parent / "samples" / "arrow").iterdir()
    later = time.time() + 10
    os.utime(next((root / "videos").rglob("*.mp4")), (later, later))
    _open(root, policy)[0]
    (after,) = (root.parent / "samples").glob("*.samples")
    assert after != before
    (copied_anew,) = (root.parent / "samples" / "arrow").iterdir()
    assert copied_anew != copied


def test_the_file_stays_below_its_limit(policy, root, caplog) -> None:
    size = _open(root, policy)._layout.itemsize
    samples = _open(root, policy, max_bytes=10 * size + size // 2)
    assert "room for 10 of 120 decoded samples" in caplog.text
    for index in range(len(samples)):
        samples[index]
    (file,) = (root.parent / "samples").glob("*.samples")
    assert file.stat().st_size == 10 * size


def test_a_full_disk_costs_the_cache_not_the_training(policy, root, monkeypatch, caplog) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    samples = _open(root, policy)
    monkeypatch.setattr(os, "pwrite", full)
    assert samples[0]["task"]
    assert samples[1]["task"]
    assert caplog.text.count("No space left on device") == 1


def test_a_task_too_long_to_store_is_still_trained_on(policy, root) -> None:
    samples = _open(root, policy)
    item = samples._dataset[0]

    class LongTask(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, _: int) -> dict:
            return item | {"task": "pick " * 200}

    samples._dataset = LongTask()
    assert samples[0]["task"] == "pick " * 200


def test_an_episode_that_is_left_out_leaves_the_others_as_they_are(
    root: Path, policy, tmp_path: Path
) -> None:
    everything = open_dataset(root, policy.config)
    samples = open_samples(root, policy.config, tmp_path / "part", 10**9, episodes=[0, 2])
    assert len(samples) == 80
    for mine, recorded in ((0, 0), (39, 39), (40, 80), (79, 119)):
        sample, item = samples[mine], everything[recorded]
        for key in ("observation.state", "action", "action_is_pad"):
            assert sample[key].equal(item[key]), (mine, key)
        torch.testing.assert_close(
            sample["observation.images.top"], item["observation.images.top"], atol=1 / 255, rtol=0
        )


@pytest.mark.parametrize("codec", ["h264", "libsvtav1", "hevc", "image"])
def test_filling_in_order_writes_what_a_draw_writes(policy, tmp_path: Path, codec: str) -> None:
    root = record_dataset(tmp_path / "site", episodes=2, frames=12, codec=codec, size=(48, 64))
    drawn, filled = (open_samples(root, policy.config, tmp_path / name, GB) for name in ("drawn", "filled"))
    for index in (7, 20, 3, *range(len(drawn))):
        _ = drawn[index]
    assert not filled.is_full
    _ = filled[7]  # a sample that is there is left as it is
    assert filled.fill(lambda: True) == len(filled) - 1
    assert filled.is_full
    assert filled.fill(lambda: True) == 0
    (one,), (other,) = ((tmp_path / name).glob("*.samples") for name in ("drawn", "filled"))
    assert one.read_bytes() == other.read_bytes()


def test_filling_passes_over_a_damaged_video_and_stops_when_told(policy, root) -> None:
    samples = _open(root, policy)
    assert samples.fill(iter([True, True, False]).__next__) == 2
    video = video_of(root, "top")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    again = _open(root, policy)
    assert 0 < again.fill(lambda: True) < len(again)
    assert not again.is_full


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"cameras": {"top": "top", "wrist": "wrist"}}, {"cameras": {"top": "wrist", "wrist": "top"}}),
        ({"episodes": [0, 1]}, {"episodes": [0, 2]}),
    ],
    ids=["cameras", "episodes"],
)
def test_nothing_of_another_choice_comes_from_the_cache(policy, root: Path, first: dict, other: dict) -> None:
    kept = open_samples(root, policy.config, root.parent / "s", GB, **first)
    kept.fill(lambda: True)
    fresh = open_samples(root, policy.config, root.parent / "fresh", 0, **other)[60]
    assert not _same(kept[60], fresh)
    assert _same(open_samples(root, policy.config, root.parent / "s", GB, **other)[60], fresh)
