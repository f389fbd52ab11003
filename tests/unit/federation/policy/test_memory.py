"""The estimate of GPU memory, against the policy's own parameters."""

import dataclasses
from pathlib import Path

import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from federation.policy.adapter import add_adapter
from federation.policy.build import build_policy_config, round_frozen, trainable_parameters
from federation.policy.memory import memory_parts, training_gigabytes
from federation.settings import PolicyConfig


@pytest.mark.parametrize(
    "config",
    [PolicyConfig(size="smolvla"), PolicyConfig(size="smolvla", adapter="lora", lora_rank=8)],
    ids=["dense", "lora"],
)
def test_the_parts_that_are_weights_are_those_of_the_policy_as_it_is_trained(
    config: PolicyConfig, cache: Path
) -> None:
    with torch.device("meta"):
        policy = SmolVLAPolicy(build_policy_config(config, cache))
    if config.adapter == "lora":
        add_adapter(policy, config, seed=0)
    round_frozen(policy)
    parts = memory_parts(config, 1)
    trained = trainable_parameters(policy)
    sizes = {
        is_trained: sum(
            p.numel() * p.element_size() for n, p in policy.named_parameters() if (n in trained) == is_trained
        )
        for is_trained in (True, False)
    }
    assert parts["trained weights"] == pytest.approx(sizes[True] / 1e9, rel=1e-9)
    assert parts["frozen weights"] == pytest.approx(sizes[False] / 1e9, rel=1e-3)  # PEFT: a few norms' worth
    assert parts["moments of Adam"] == 2 * parts["trained weights"]


def test_a_batch_and_an_adapter_count() -> None:
    whole = PolicyConfig()
    assert training_gigabytes(whole, 64) - training_gigabytes(whole, 16) == pytest.approx(48 * 0.168)
    adapter = dataclasses.replace(whole, adapter="lora")
    assert training_gigabytes(adapter, 4) < 3 < training_gigabytes(whole, 4)
