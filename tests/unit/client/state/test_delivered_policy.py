import json
from pathlib import Path
from typing import Any

import pytest

from client.state.delivered_policy import (
    DELIVERED_POLICY_FILE,
    note_delivered_policy,
    read_delivered_policy,
    read_expected,
    read_training,
)
from federation.settings import PolicyConfig, TrainingConfig

TRAINING = TrainingConfig(batch_size=4, learning_rate=2e-3)


def test_how_the_run_trained_is_read_again(tmp_path: Path) -> None:
    note_delivered_policy(tmp_path, "run", 3, "0" * 64, TRAINING)
    assert read_training(read_delivered_policy(tmp_path)) == TRAINING


@pytest.mark.parametrize("expected", [None, [], {"fps": 0}, {"colour": 1}, {"cameras": 4}])
def test_what_recordings_it_trained_on_is_read_again_or_as_the_invitation_says(
    expected: Any, tmp_path: Path
) -> None:
    invited = PolicyConfig(size="tiny", fps=30)
    ran = PolicyConfig(cameras="front", empty_cameras=1, fps=15, joint_units="range")
    note_delivered_policy(tmp_path, "run", 3, "0" * 64, TRAINING, ran)
    found = read_expected(read_delivered_policy(tmp_path), invited)
    assert (found.size, found.cameras, found.empty_cameras) == ("tiny", "front", 1)
    assert (found.fps, found.joint_units) == (15, "range")
    assert read_expected({"expected": expected}, invited) == invited


@pytest.mark.parametrize("training", [None, [], {"batch_size": 0}, {"colour": 1}, {"batch_size": "4"}])
def test_what_cannot_be_read_is_the_default(training: Any, tmp_path: Path) -> None:
    content = {"run": "run", "training": training}
    (tmp_path / DELIVERED_POLICY_FILE).write_text(json.dumps(content))
    assert read_training(read_delivered_policy(tmp_path)) == TrainingConfig()
    note_delivered_policy(tmp_path, "run", 3, "0" * 64)
    assert read_training(read_delivered_policy(tmp_path)) == TrainingConfig()
    assert read_training({}) == TrainingConfig()
