import json
from pathlib import Path
from typing import Any

import pytest

from client.state.delivered_policy import (
    DELIVERED_POLICY_FILE,
    note_delivered_policy,
    read_delivered_policy,
    read_training,
)
from federation.settings import TrainingConfig

TRAINING = TrainingConfig(batch_size=4, learning_rate=2e-3)


def test_how_the_run_trained_is_read_again(tmp_path: Path) -> None:
    note_delivered_policy(tmp_path, "run", 3, "0" * 64, TRAINING)
    assert read_training(read_delivered_policy(tmp_path)) == TRAINING


@pytest.mark.parametrize("training", [None, [], {"batch_size": 0}, {"colour": 1}, {"batch_size": "4"}])
def test_what_cannot_be_read_is_the_default(training: Any, tmp_path: Path) -> None:
    content = {"run": "run", "training": training}
    (tmp_path / DELIVERED_POLICY_FILE).write_text(json.dumps(content))
    assert read_training(read_delivered_policy(tmp_path)) == TrainingConfig()
    note_delivered_policy(tmp_path, "run", 3, "0" * 64)
    assert read_training(read_delivered_policy(tmp_path)) == TrainingConfig()
    assert read_training({}) == TrainingConfig()
