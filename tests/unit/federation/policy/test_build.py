from pathlib import Path

import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file, save_file

from federation.errors import PolicyError
from federation.policy.build import (
    build_policy,
    build_policy_config,
    build_processors,
    frozen_fingerprint,
    load_trainable,
    round_frozen,
    trainable_parameters,
)
from federation.policy.folder import load_policy_folder, save_policy_folder
from federation.policy.vlm_folder import vlm_folder
from federation.settings import PolicyConfig

CPU = torch.device("cpu")


def test_the_same_seed_gives_the_same_policy(make_policy) -> None:
    first, second = make_policy(seed=3), make_policy(seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert frozen_fingerprint(first) == frozen_fingerprint(second)


def test_another_seed_gives_another_fingerprint(make_policy) -> None:
    assert frozen_fingerprint(make_policy(seed=3)) != frozen_fingerprint(make_policy(seed=4))


def test_the_fingerprint_ignores_what_is_trained(policy) -> None:
    before = frozen_fingerprint(policy)
    with torch.no_grad():
        next(iter(trainable_parameters(policy).values())).add_(1)
    assert frozen_fingerprint(policy) == before


def test_the_fingerprint_sees_a_single_frozen_value(policy) -> None:
    before = frozen_fingerprint(policy)
    frozen = next(p for p in policy.parameters() if not p.requires_grad)
    with torch.no_grad():
        frozen.view(-1)[0] += 1e-6
    assert frozen_fingerprint(policy) != before


def test_building_leaves_the_global_random_state_alone(make_policy) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    make_policy()
    assert torch.equal(torch.rand(1), expected)


def test_only_the_expert_and_the_projections_are_trained(policy) -> None:
    names = trainable_parameters(policy).keys()
    assert len(names) == 29
    assert not any(".vlm." in name for name in names)


def test_the_small_one_learns_to_see_and_stays_so_once_exported(statistics, tmp_path: Path) -> None:
    small = build_policy(PolicyConfig(size="small"), seed=0, device=CPU, cache=tmp_path / "cache")
    seen = {name for name in trainable_parameters(small) if ".vision_model." in name}
    assert len(seen) > 20
    save_policy_folder(tmp_path / "exported", small, build_processors(small, statistics), "card")
    loaded, _ = load_policy_folder(tmp_path / "exported", CPU)
    assert trainable_parameters(loaded).keys() == trainable_parameters(small).keys()
    assert frozen_fingerprint(loaded) == frozen_fingerprint(small)


def test_weights_that_do_not_fit_are_refused_and_change_nothing(policy, weights) -> None:
    name = next(iter(weights))
    before = trainable_parameters(policy)[name].detach().clone()
    with pytest.raises(PolicyError, match="1 names differ"):
        load_trainable(policy, {**weights, "extra": torch.zeros(1)})
    changed = {n: w + 1 for n, w in weights.items()}
    changed[list(weights)[-1]] = torch.zeros(3, 3, 3)
    with pytest.raises(PolicyError, match=r"has shape \(3, 3, 3\)"):
        load_trainable(policy, changed)
    assert torch.equal(trainable_parameters(policy)[name], before)


def test_a_pretrained_policy_is_loaded_from_a_folder_with_the_federations_features(
    policy, statistics, tmp_path: Path, cache: Path
) -> None:
    policy.save_pretrained(tmp_path / "base")
    config = PolicyConfig(
        size="pretrained", pretrained=str(tmp_path / "base"), cameras="front", chunk_size=20
    )
    loaded = build_policy(config, seed=99, device=CPU, cache=cache)
    assert frozen_fingerprint(loaded) == frozen_fingerprint(policy)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), policy.parameters(), strict=True))
    assert list(loaded.config.image_features) == ["observation.images.front"]
    assert loaded.config.chunk_size == 20
    assert next(loaded.parameters()).dtype == torch.float32
    build_processors(loaded, statistics)


def test_a_missing_pretrained_policy_is_named(tmp_path: Path, cache: Path) -> None:
    config = PolicyConfig(size="pretrained", pretrained=str(tmp_path / "none"))
    with pytest.raises(PolicyError, match=r"policy.pretrained = .*none.*no policy configuration found"):
        build_policy(config, seed=0, device=CPU, cache=cache)


def test_pretrained_weights_with_a_missing_tensor_are_refused(policy, tmp_path: Path, cache: Path) -> None:
    policy.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors.popitem()
    save_file(tensors, file)
    with pytest.raises(PolicyError, match="cannot be loaded"):
        build_policy(
            PolicyConfig(size="pretrained", pretrained=str(tmp_path / "base")),
            seed=0,
            device=CPU,
            cache=cache,
        )


def test_an_error_without_text_is_named_by_its_type(
    policy, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    policy.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(SmolVLAPolicy, "from_pretrained", full)
    config = PolicyConfig(size="pretrained", pretrained=str(tmp_path / "base"))
    with pytest.raises(PolicyError, match=r"cannot be loaded \(MemoryError\); it needs"):
        build_policy(config, seed=0, device=CPU, cache=cache)


def test_the_vlm_folder_is_the_same_wherever_it_is_built(tmp_path: Path) -> None:
    first, second = vlm_folder("tiny", tmp_path / "a"), vlm_folder("tiny", tmp_path / "b")
    files = sorted(path.name for path in first.iterdir())
    assert "tokenizer.json" in files
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    assert list((tmp_path / "a").iterdir()) == [first]


def _pretrained(folder: Path | str, **settings: str) -> PolicyConfig:
    return PolicyConfig(size="pretrained", pretrained=str(folder), **settings)  # type: ignore[arg-type]


def test_a_policy_of_an_old_lerobot_is_told_apart_with_the_command_that_converts_it(
    policy, tmp_path: Path, cache: Path
) -> None:
    base = tmp_path / "my base"
    policy.save_pretrained(base)
    buffers = {
        f"{name}.buffer_{key}.{value}": torch.ones(6)
        for name, key in (("normalize_inputs", "observation_state"), ("unnormalize_outputs", "action"))
        for value in ("mean", "std")
    }
    save_file(load_file(base / "model.safetensors") | buffers, base / "model.safetensors")
    with pytest.raises(PolicyError) as refused:
        build_policy(_pretrained(base), seed=0, device=CPU, cache=cache)
    assert "LeRobot before 0.4 saved it, with normalize_inputs among its weights" in str(refused.value)
    assert f"migrate_policy_normalization --pretrained-path='{base}'" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_tilde_is_this_users_home(
    policy, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    policy.save_pretrained(tmp_path / "models" / "base")
    loaded = build_policy(_pretrained("~/models/base"), seed=9, device=CPU, cache=cache)
    assert frozen_fingerprint(loaded) == frozen_fingerprint(policy)
    with pytest.raises(PolicyError, match=f"policy.pretrained = '{tmp_path}/models/none': no policy"):
        build_policy_config(_pretrained("~/models/none"), cache)


def test_an_adapter_alone_is_no_policy(policy, tmp_path: Path, cache: Path) -> None:
    policy.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(PolicyError, match=r"holds a LoRA adapter .* merge it into the policy"):
        build_policy(_pretrained(tmp_path), seed=0, device=CPU, cache=cache)


@pytest.mark.parametrize("size", ["tiny", "pretrained"])
def test_a_configuration_is_the_policys_own_and_needs_no_weights(
    policy, tmp_path: Path, cache: Path, size: str
) -> None:
    policy.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    config = PolicyConfig(size=size, pretrained=str(tmp_path))
    made = build_policy_config(config, cache)
    assert (made.input_features, made.output_features) == (
        policy.config.input_features,
        policy.config.output_features,
    )
    assert made.resize_imgs_with_padding == policy.config.resize_imgs_with_padding


def _loss_and_gradients(policy: SmolVLAPolicy) -> tuple[float, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    batch: dict[str, torch.Tensor] = {
        **{key: torch.rand(2, 3, 64, 64, generator=draw) for key in policy.config.image_features},
        "observation.state": torch.randn(2, 6, generator=draw),
        "action": torch.randn(2, policy.config.chunk_size, 6, generator=draw),
        "action_is_pad": torch.zeros(2, policy.config.chunk_size, dtype=torch.bool),
        "observation.language.tokens": torch.full((2, 24), 20),
        "observation.language.attention_mask": torch.ones(2, 24, dtype=torch.bool),
    }
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = policy.forward(batch)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in trainable_parameters(policy).items() if p.grad is not None}


def test_rounded_frozen_weights_change_nothing_under_autocast(make_policy) -> None:
    exact, rounded = make_policy(), make_policy()
    round_frozen(rounded)
    dtypes = {name: p.dtype for name, p in rounded.named_parameters()}
    assert {dtypes[name] for name in trainable_parameters(rounded)} == {torch.float32}
    assert dtypes["model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight"] == torch.float32
    assert list(dtypes.values()).count(torch.bfloat16) > 20
    (loss, gradients), (same, others) = _loss_and_gradients(exact), _loss_and_gradients(rounded)
    assert loss == same
    # The robot's state is an input of the frozen layers: its gradient comes back through them, in bf16.
    through = {"model.state_proj.weight", "model.state_proj.bias"}
    assert all(torch.equal(gradients[name], others[name]) for name in gradients.keys() - through)
    for name in through:
        torch.testing.assert_close(others[name], gradients[name], rtol=0.02, atol=1e-5)
