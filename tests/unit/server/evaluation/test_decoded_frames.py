from pathlib import Path
from typing import Any

import torch

from federation.data.loading import open_dataset, policy_inputs
from server.evaluation.decoded_frames import DecodedFrames


class _Counting:
    """Frames that count how often each is decoded."""

    def __init__(self, frames: Any) -> None:
        self.frames, self.decoded = frames, 0

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.decoded += 1
        return self.frames[index]


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) and value.dtype == other[key].dtype
        if isinstance(value, torch.Tensor)
        else value == other[key]
        for key, value in one.items()
    )


def test_a_frame_is_decoded_once_and_is_the_same_bit_for_bit(data: Path, policy) -> None:
    opened = open_dataset(data / "holdout", policy.config)
    frames = DecodedFrames(_Counting(opened), policy.config, None, 10**9)  # type: ignore[arg-type]
    for index in (0, 7, len(frames) - 1):
        expected = policy_inputs(opened[index], policy.config)
        assert _equal(frames[index], expected)
        assert _equal(frames[index], expected)
    assert frames._frames.decoded == 3  # type: ignore[attr-defined]


def test_an_image_is_kept_in_a_quarter_of_its_memory(data: Path, policy) -> None:
    frames = DecodedFrames(open_dataset(data / "holdout", policy.config), policy.config, None, 10**9)
    inputs = frames[0]
    images = [key for key in inputs if key.startswith("observation.images.")]
    assert images
    assert all(frames._kept[0][key].nbytes * 4 == inputs[key].nbytes for key in images)


def test_an_image_that_is_not_of_8_bits_stays_as_it_is(policy) -> None:
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    item = {"observation.state": torch.zeros(1, 6), "observation.images.top": image}
    frames = DecodedFrames([item], policy.config, {"top": "top"}, 10**9)  # type: ignore[arg-type]
    assert torch.equal(frames[0]["observation.images.top"], image)
    assert torch.equal(frames[0]["observation.images.top"], image)


def test_without_room_each_is_decoded_every_time(data: Path, policy) -> None:
    counting = _Counting(open_dataset(data / "holdout", policy.config))
    frames = DecodedFrames(counting, policy.config, None, 10)  # type: ignore[arg-type]
    assert _equal(frames[3], frames[3])
    assert counting.decoded == 2
