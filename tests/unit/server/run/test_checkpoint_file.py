from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies

from federation.config import RunConfig, flatten
from server.model import GlobalModel
from server.run.checkpoint_file import CheckpointError, load_checkpoint, restore_model
from server.run.round_record import RoundRecord
from tests.unit.server.run.test_checkpoints import _model, _store


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadam"])
def test_a_restored_model_goes_on_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    def step(model: GlobalModel, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.weights.values():
            update = torch.randn(tensor.shape, generator=generator)
            if model.optimizer is None:
                tensor.add_(update)
            else:
                tensor.grad = update
        if model.optimizer is not None:
            model.optimizer.step()

    through = _model(1.0, strategy)
    for seed in (1, 2):
        step(through, seed)
    _store(tmp_path).save(2, through, 0.5, RoundRecord(2))
    step(through, 3)

    resumed = _model(9.0, strategy)
    checkpoint = _store(tmp_path).newest()
    assert checkpoint
    restore_model(resumed, checkpoint)
    step(resumed, 3)
    assert all(resumed.weights[name].equal(tensor) for name, tensor in through.weights.items())
    assert load_checkpoint(tmp_path / "round_0002.safetensors").round == 2  # training on does not touch it
    assert checkpoint.entry == RoundRecord(2)
    assert checkpoint.config == flatten(RunConfig())
    assert checkpoint.statistics["action"]["mean"].tolist() == [0.1, 1 / 3]
    assert list(resumed.norms) == [1.5, 2.5]


def test_the_average_of_the_rounds_is_kept_beside_the_weights(tmp_path: Path) -> None:
    model = _model(1.0)
    model.average = {name: torch.full_like(tensor, 5.0) for name, tensor in model.weights.items()}
    _store(tmp_path).save(1, model, 0.5, RoundRecord(1))
    checkpoint = load_checkpoint(tmp_path / "round_0001.safetensors")
    assert checkpoint.weights.keys() == model.weights.keys()
    resumed = _model(9.0)
    resumed.average = {name: torch.zeros_like(tensor) for name, tensor in resumed.weights.items()}
    restore_model(resumed, checkpoint)
    assert resumed.evaluated["a"].tolist() == [5.0] * 3
    assert resumed.weights["a"].tolist() == [1.0] * 3


@pytest.mark.parametrize("change", ["fingerprint", "shape"])
def test_a_checkpoint_of_another_policy_is_refused(tmp_path: Path, change: str) -> None:
    _store(tmp_path).save(1, _model(), None, RoundRecord(1))
    checkpoint = load_checkpoint(tmp_path / "round_0001.safetensors")
    model = _model()
    if change == "fingerprint":
        model.fingerprint = "0" * 64
    else:
        model.weights["a"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match=r"round 1"):
        restore_model(model, checkpoint)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return _store(folder).save(1, _model(), 1.0, RoundRecord(1))


@settings(max_examples=150)
@given(data=strategies.data())
def test_whatever_is_in_the_file_the_error_is_ours(whole: Path, data: strategies.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(strategies.integers(1, 3))):
        content[data.draw(strategies.integers(0, len(content) - 1))] = data.draw(strategies.integers(0, 255))
    content = content[: data.draw(strategies.integers(0, len(content)))]
    damaged = whole.with_name("damaged.safetensors")
    damaged.write_bytes(content)
    try:
        checkpoint = load_checkpoint(damaged)
    except CheckpointError:
        return
    untouched = load_checkpoint(whole)  # only blanks in the file's header may differ
    assert all(checkpoint.weights[name].equal(tensor) for name, tensor in untouched.weights.items())
    assert (checkpoint.round, checkpoint.statistics.keys()) == (1, untouched.statistics.keys())
