"""Prediction of an episode; what losses are is in tests/unit/server/evaluation/test_held_out.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federation.data.loading import open_dataset, policy_inputs
from federation.errors import DatasetError
from federation.policy.build import build_processors
from federation.policy.held_out import _fixed_draw, measure_policy, predict_episode

pytestmark = pytest.mark.slow


class _Counted:
    """Frames of a dataset, and which of them were looked at."""

    def __init__(self, root: Path, policy: Any) -> None:
        self.frames, self.config = open_dataset(root, policy.config), policy.config
        self.seen: list[int] = []

    def __getitem__(self, frame: int) -> dict[str, Any]:
        self.seen.append(frame)
        return policy_inputs(self.frames[frame], self.config)


@pytest.mark.parametrize(
    ("chunk", "looks"), [(50, [0, 25]), (10, list(range(0, 40, 5))), (80, [0]), (1, list(range(40)))]
)
def test_a_whole_episode_is_predicted_half_a_chunk_at_a_time(
    chunk: int, looks: list[int], policy: Any, statistics: Any, data: Path
) -> None:
    policy.config.chunk_size = policy.config.n_action_steps = chunk
    policy.model.config.chunk_size = chunk
    recorded = _Counted(data / "holdout", policy)
    processors, frames = build_processors(policy, statistics), range(40)
    truth, guesses = predict_episode(policy, processors, recorded, "holdout", frames)
    assert np.shape(truth) == np.shape(guesses) == (40, 6)  # its first episode has 40 frames
    expected = [recorded.frames[frame]["action"][0].tolist() for frame in range(40)]
    np.testing.assert_allclose(truth, expected)
    assert recorded.seen == looks


def test_the_same_weights_predict_the_same(policy: Any, statistics: Any, data: Path) -> None:
    processors, recorded = build_processors(policy, statistics), _Counted(data / "holdout", policy)
    first, second = (
        predict_episode(policy, processors, recorded, "holdout", range(40, 80)) for _ in range(2)
    )
    assert first == second


def test_where_no_frame_can_be_decoded_the_dataset_is_named(policy: Any, statistics: Any) -> None:
    class Broken:
        def __getitem__(self, frame: int) -> dict[str, Any]:
            raise OSError("no picture")

    with pytest.raises(DatasetError, match="evaluation dataset kitchen: no frame can be decoded"):
        measure_policy(policy, build_processors(policy, statistics), Broken(), "kitchen", range(3), 2)


def test_fixed_draws_are_distributed_as_in_training() -> None:
    draws = [_fixed_draw("x", frame, 2, 32) for frame in range(3000)]
    times = torch.stack([time for _, time in draws]).double()
    noise = torch.stack([noise for noise, _ in draws])
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    assert times.mean().item() == pytest.approx(0.001 + 0.999 * 1.5 / 2.5, abs=0.01)  # Beta(1.5, 1)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
