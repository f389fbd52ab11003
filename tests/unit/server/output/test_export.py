"""The exported folder, opened with LeRobot's own loaders only."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from federation.config import RunConfig, flatten
from federation.errors import PolicyError
from federation.policy.build import (
    build_policy,
    build_processors,
    frozen_fingerprint,
    load_trainable,
    trainable_parameters,
)
from federation.policy.folder import load_policy_folder, save_policy_folder
from federation.settings import PolicyConfig
from server.model import GlobalModel
from server.output.export import export_best, export_last, export_policy, write_cards
from server.run.checkpoints import Checkpoints
from tests.unit.server.output.test_model_card import METRICS

pytestmark = pytest.mark.slow


def _observation() -> dict:
    generator = torch.Generator().manual_seed(0)
    images = {
        f"observation.images.{name}": torch.rand(1, 3, 64, 64, generator=generator)
        for name in ("top", "wrist")
    }
    return {"observation.state": torch.rand(1, 6, generator=generator), "task": ["pick"], **images}


def _chunk(policy, processors) -> torch.Tensor:
    size = policy.config.chunk_size, policy.config.max_action_dim
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
    return processors[1](policy.predict_action_chunk(processors[0](_observation()), noise))


@pytest.fixture
def exported(policy, weights, statistics, tmp_path: Path):
    model = GlobalModel(weights, statistics, frozen_fingerprint(policy))
    export_policy(tmp_path / "pretrained_model", policy, model, METRICS, round_=2)
    return tmp_path / "pretrained_model"


def test_a_moved_export_acts_the_same_under_lerobots_own_loaders(
    exported: Path, policy, statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _chunk(policy, build_processors(policy, statistics))
    moved = tmp_path / "another machine" / "policy"
    moved.parent.mkdir()
    shutil.move(exported, moved)
    monkeypatch.chdir(moved)
    config = PreTrainedConfig.from_pretrained(".")
    loaded = get_policy_class(config.type).from_pretrained(".", config=config, strict=True)
    processors = make_pre_post_processors(config, pretrained_path=".")
    assert torch.equal(_chunk(loaded, processors), expected)


def test_an_export_names_no_path_of_the_machine_that_made_it(exported: Path, cache: Path) -> None:
    for path in exported.rglob("*"):
        if path.suffix in (".json", ".md"):
            text = path.read_text()
            assert str(cache) not in text
            assert str(exported.parent) not in text


def test_our_own_loader_needs_no_working_directory(exported: Path, policy, statistics) -> None:
    expected = _chunk(policy, build_processors(policy, statistics))
    loaded, processors = load_policy_folder(exported, torch.device("cpu"))
    assert torch.equal(_chunk(loaded, processors), expected)


def test_an_export_replaces_the_one_before_it_and_leaves_no_litter(
    exported: Path, policy, weights, statistics
) -> None:
    (exported / "of-the-old-one").touch()
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    export_policy(exported, policy, GlobalModel(changed, statistics, ""), METRICS, round_=2)
    assert not (exported / "of-the-old-one").exists()
    assert [path.name for path in exported.parent.iterdir()] == ["pretrained_model"]


def test_an_export_that_fails_leaves_the_old_one_and_no_litter(
    exported: Path, policy, weights, statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("federation.policy.folder.shutil.copytree", full)
    with pytest.raises(OSError, match="No space left"):
        export_policy(exported, policy, GlobalModel(weights, statistics, ""), METRICS, round_=2)
    assert (exported / "model.safetensors").is_file()
    assert [path.name for path in exported.parent.iterdir()] == ["pretrained_model"]


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "vlm/tokenizer.json"])
def test_a_damaged_folder_is_refused_by_name(exported: Path, damage: str) -> None:
    (exported / damage).unlink()
    with pytest.raises(PolicyError, match="pretrained_model"):
        load_policy_folder(exported, torch.device("cpu"))


def test_the_card_says_who_trained_how_and_how_well(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    for expected in (
        "license: apache-2.0",
        "library_name: lerobot",
        "| lab-b | 7 | 650 |",
        "| round 2 | 0.5000 |",
    ):
        assert expected in card
    assert "base_model: lerobot/smolvla_base" in card
    assert f"| `training.local_steps` | {METRICS['config']['training.local_steps']} |" in card


def test_only_a_local_vlm_is_bundled(exported: Path) -> None:
    assert json.loads((exported / "config.json").read_text())["vlm_model_name"] == "./vlm"
    assert (exported / "vlm" / "tokenizer.json").is_file()


def test_of_a_run_with_an_adapter_come_both_kinds_of_folders_with_cards_of_their_own(
    policy, statistics, cache: Path, tmp_path: Path
) -> None:
    save_policy_folder(tmp_path / "base", policy, build_processors(policy, statistics), "card")
    settings = PolicyConfig(pretrained=str(tmp_path / "base"), adapter="lora", lora_rank=2)
    adapted = build_policy(settings, seed=0, device=torch.device("cpu"), cache=cache)
    weights = {name: torch.full_like(p, 0.1) for name, p in trainable_parameters(adapted).items()}
    model = GlobalModel(weights, statistics, frozen_fingerprint(adapted))
    config = RunConfig(policy=settings)
    checkpoints = Checkpoints(tmp_path / "checkpoints", config.checkpoint, flatten(config), "m")
    checkpoints.save(1, model, 1.0, entry=None)
    metrics = METRICS | {"config": flatten(config)}
    run = tmp_path / "run"
    run.mkdir()
    export_last(run, adapted, model, metrics, 2)
    assert export_best(run, adapted, checkpoints, metrics) == 1
    names = {"pretrained_model", "pretrained_model_best", "adapter", "adapter_best"}
    assert {path.name for path in run.iterdir()} == names
    for name in names:
        (run / name / "README.md").write_text("old")
    write_cards(run, metrics, 2, 1)
    for name in names:
        card = (run / name / "README.md").read_text()
        assert ("This folder holds it alone" in card) == name.startswith("adapter")
        assert f"weights after round {1 if name.endswith('best') else 2} of" in card
        assert (run / name / "policy_preprocessor.json").is_file()
        assert (run / name / "vlm" / "tokenizer.json").is_file()
    merged, processors = load_policy_folder(run / "pretrained_model", torch.device("cpu"))
    load_trainable(adapted, weights)
    expected = _chunk(adapted, build_processors(adapted, statistics))
    assert torch.allclose(_chunk(merged, processors), expected, atol=1e-3)  # in degrees, of hundreds
