"""The adapter in the tiny policy: what is trained, what it starts as, and the two folders that come out."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.rollout import context as rollout
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file

from federation.errors import PolicyError
from federation.policy import adapter
from federation.policy.build import (
    build_policy,
    build_processors,
    frozen_fingerprint,
    load_trainable,
    trainable_parameters,
)
from federation.policy.folder import load_policy_folder, save_adapter_folder, save_policy_folder
from federation.settings import PolicyConfig

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
Build = Callable[..., SmolVLAPolicy]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, cache: Path, statistics: Any) -> Path:
    """The tiny policy of seed 5, as an earlier run would have exported it."""
    tiny = build_policy(PolicyConfig(size="tiny"), seed=5, device=CPU, cache=cache)
    folder = tmp_path_factory.mktemp("runs") / "pretrained_model"
    save_policy_folder(folder, tiny, build_processors(tiny, statistics), "card")
    return folder


@pytest.fixture
def build(base: Path, cache: Path) -> Build:
    def make(seed: int = 0, **settings: Any) -> SmolVLAPolicy:
        config = PolicyConfig(
            **{"size": "pretrained", "pretrained": str(base), "adapter": "lora", "lora_rank": 4} | settings
        )
        return build_policy(config, seed=seed, device=CPU, cache=cache)

    return make


def _weights(policy: SmolVLAPolicy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}


@torch.no_grad()
def _trained(policy: SmolVLAPolicy) -> SmolVLAPolicy:
    """`policy` with an adapter that counts: B is zero before training."""
    torch.manual_seed(1)
    for parameter in trainable_parameters(policy).values():
        parameter.normal_(std=0.1)
    return policy


@torch.no_grad()
def _actions(policy: SmolVLAPolicy, statistics: Any) -> torch.Tensor:
    preprocessor, _ = build_processors(policy, statistics)
    generator = torch.Generator().manual_seed(2)
    frames: dict[str, Any] = {"observation.state": torch.randn(3, 6, generator=generator), "task": ["x"] * 3}
    for key in policy.config.image_features:
        frames[key] = torch.rand(3, 3, 64, 64, generator=generator)
    noise = torch.randn(3, policy.config.chunk_size, policy.config.max_action_dim, generator=generator)
    return policy.predict_action_chunk(preprocessor(frames), noise)


def test_exactly_the_adapter_is_trained_in_the_same_order_everywhere(build: Build) -> None:
    first, second = build(), build()
    names = list(trainable_parameters(first))
    assert names == list(trainable_parameters(second))
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    # Queries and values of the expert's two layers, and five projections.
    assert len(names) == 2 * (2 * 2 + 5)
    assert all(min(p.shape) <= 4 for p in trainable_parameters(first).values())


def test_it_begins_as_its_base_with_an_a_that_the_seed_draws(build: Build, base: Path, statistics) -> None:
    plain, _ = load_policy_folder(base, CPU)
    policy, same, other = build(seed=3), build(seed=3), build(seed=4)
    assert torch.equal(_actions(policy, statistics), _actions(plain, statistics))
    first, second = _weights(policy), _weights(same)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(not tensor.any() for name, tensor in first.items() if ".lora_B." in name)
    drawn = [name for name in first if ".lora_A." in name]
    assert all(not torch.equal(first[name], _weights(other)[name]) for name in drawn)


def test_b_alone_is_half_of_it_and_the_drawn_a_must_be_the_same_everywhere(build: Build) -> None:
    policy = build(seed=3, lora_train="b")
    assert all(".lora_B." in name for name in trainable_parameters(policy))
    assert len(trainable_parameters(policy)) == 9
    assert frozen_fingerprint(policy) == frozen_fingerprint(build(seed=3, lora_train="b"))
    assert frozen_fingerprint(policy) != frozen_fingerprint(build(seed=4, lora_train="b"))


@pytest.mark.parametrize(
    "settings", [{"lora_rank": 2}, {"lora_alpha": 8}, {"lora_targets": r".*lm_expert.*\.q_proj"}]
)
def test_the_fingerprint_tells_other_adapters(build: Build, settings: dict[str, Any]) -> None:
    assert frozen_fingerprint(build()) == frozen_fingerprint(_trained(build(seed=1)))
    assert frozen_fingerprint(build()) != frozen_fingerprint(build(**settings))


def test_the_fingerprint_covers_the_base(build: Build) -> None:
    policy = build()
    before = frozen_fingerprint(policy)
    base = next(p for name, p in policy.named_parameters() if name.endswith("state_proj.base_layer.weight"))
    with torch.no_grad():
        base.view(-1)[0] += 1e-6
    assert frozen_fingerprint(policy) != before


def test_alpha_follows_the_rank_unless_it_is_set(build: Build, statistics) -> None:
    policy, weak = _trained(build(lora_rank=8)), _trained(build(lora_rank=8, lora_alpha=2))
    layers = [
        [layer.scaling["default"] for layer in made.modules() if isinstance(layer, adapter.LoraLayer)]
        for made in (policy, weak)
    ]
    assert (set(layers[0]), set(layers[1])) == ({1.0}, {0.25})
    assert not torch.equal(_actions(policy, statistics), _actions(weak, statistics))


@pytest.mark.parametrize("targets", ["no such layer", r"model\.vlm_with_expert"])
def test_targets_that_fit_nothing_are_refused_by_name(build: Build, targets: str) -> None:
    with pytest.raises(PolicyError, match=r"policy\.lora_targets = .*: no adapter can be made \(.*; it must"):
        build(lora_targets=targets)


@pytest.mark.parametrize("layer", ["patch_embedding", "embed_tokens"])
def test_layers_that_are_not_linear_are_refused_before_anything_is_trained(build: Build, layer: str) -> None:
    with pytest.raises(
        PolicyError, match=rf"no adapter can be made \(.*{layer} is no linear layer\); it must"
    ):
        build(lora_targets=rf".*(q_proj|{layer})")


def test_building_it_leaves_the_global_random_state_alone(build: Build) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    build()
    assert torch.equal(torch.rand(1), expected)


def test_the_product_is_rounded_rank_by_rank_as_every_machine_rounds() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(5, 7, generator=generator), torch.randn(3, 5, generator=generator)
    layer = SimpleNamespace(
        lora_A={"default": SimpleNamespace(weight=a)},
        lora_B={"default": SimpleNamespace(weight=b)},
        scaling={"default": 0.3},
    )
    expected = np.zeros((3, 7), np.float32)
    for rank in range(5):
        for i in range(3):
            for j in range(7):
                expected[i, j] += np.float32(b[i, rank].item()) * np.float32(a[rank, j].item())
    assert np.array_equal(adapter._product(layer).numpy(), expected * np.float32(0.3))


@pytest.mark.parametrize("settings", [{}, {"lora_train": "b"}, {"lora_alpha": 16}])
def test_merged_weights_and_the_adapter_over_its_base_give_the_same_actions(
    build: Build, base: Path, statistics, tmp_path: Path, settings: dict[str, Any]
) -> None:
    policy = _trained(build(**settings))
    expected = _actions(policy, statistics)
    assert not torch.allclose(expected, _actions(load_policy_folder(base, CPU)[0], statistics), atol=1e-3)
    processors = build_processors(policy, statistics)
    save_policy_folder(tmp_path / "merged", policy, processors, "card")
    save_adapter_folder(tmp_path / "adapter", policy, processors, "card")

    merged, _ = load_policy_folder(tmp_path / "merged", CPU)
    assert not adapter.has_adapter(merged)
    assert torch.allclose(_actions(merged, statistics), expected, atol=1e-5)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["use_peft"], config["pretrained_path"]) == (False, None)

    loaded = PeftModel.from_pretrained(load_policy_folder(base, CPU)[0], tmp_path / "adapter")
    assert torch.allclose(_actions(loaded.get_base_model(), statistics), expected, atol=1e-5)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert json.loads((tmp_path / "adapter" / "config.json").read_text())["use_peft"] is True
    # The run goes on with the policy after an export.
    assert torch.equal(_actions(policy, statistics), expected)
    load_trainable(policy, _weights(policy))


def test_lerobots_rollout_loads_the_adapter_over_its_base(
    build: Build, statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = _trained(build())
    save_adapter_folder(tmp_path / "adapter", policy, build_processors(policy, statistics), "card")
    monkeypatch.chdir(tmp_path / "adapter")
    config = PreTrainedConfig.from_pretrained(".")
    config.pretrained_path = Path()
    loaded = rollout._load_pretrained_policy(config)
    assert isinstance(loaded, PeftModel)
    assert torch.allclose(
        _actions(loaded.get_base_model(), statistics), _actions(policy, statistics), atol=1e-5
    )


def test_the_adapters_file_names_its_base(build: Build, base: Path, statistics, tmp_path: Path) -> None:
    policy = build()
    save_adapter_folder(tmp_path / "out", policy, build_processors(policy, statistics), "card")
    config = PeftConfig.from_pretrained(tmp_path / "out")
    assert (config.base_model_name_or_path, config.revision) == (str(base.resolve()), None)
    assert config.r == config.lora_alpha == 4  # type: ignore[attr-defined]
    assert config.modules_to_save in (None, [])  # type: ignore[attr-defined]
    names = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert len(names) == 18
    assert all(name.startswith("base_model.model.model.") and "default" not in name for name in names)


def test_a_base_on_the_hub_is_pinned_to_the_commit_it_was_loaded_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "0123abc" / "model.safetensors"
    monkeypatch.setattr(adapter, "try_to_load_from_cache", lambda *_: str(snapshot))
    assert adapter._revision("lerobot/smolvla_base") == "0123abc"
    assert adapter._revision(str(tmp_path)) is None


def test_an_adapter_is_trained_on_what_an_earlier_adapter_made(
    build: Build, cache: Path, statistics, tmp_path: Path
) -> None:
    first = _trained(build())
    save_policy_folder(tmp_path / "first", first, build_processors(first, statistics), "card")
    second = build(pretrained=str(tmp_path / "first"))
    assert torch.allclose(_actions(second, statistics), _actions(first, statistics), atol=1e-5)
