from dataclasses import replace
from pathlib import Path

import torch

from federation.config import RunConfig
from federation.policy.build import build_policy, trainable_parameters
from federation.settings import PolicyConfig
from server.deploy.expectations import describe_run


def test_of_a_run_with_an_adapter_the_adapters_bytes_are_counted(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    build_policy(PolicyConfig(size="tiny"), seed=0, device=cpu, cache=tmp_path).save_pretrained(
        tmp_path / "p"
    )
    policy = PolicyConfig(pretrained=str(tmp_path / "p"), adapter="lora", lora_rank=4)
    expects = describe_run(replace(RunConfig(), policy=policy))
    trained = trainable_parameters(build_policy(policy, seed=0, device=cpu, cache=tmp_path))
    values = sum(tensor.numel() for tensor in trained.values())
    assert expects.download_bytes == 2 * values  # in bf16
    assert expects.upload_bytes is not None
    assert expects.upload_bytes < 4 * values
