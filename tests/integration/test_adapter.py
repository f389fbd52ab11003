"""An adapter over a saved policy, federated by two sites over TLS, resumed once.

That it ends bit for bit the same as without is in `tests/unit/server/test_rounds_of_adapters.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from federation.config import parse_run_config
from federation.policy.build import build_policy, build_processors
from federation.policy.folder import load_policy_folder, save_policy_folder
from federation.settings import PolicyConfig
from server.deploy.local_cluster import LocalCluster
from server.deploy.supervise import supervise_run
from server.run.recorded import as_continuation, read_metrics
from tests.conftest import TINY
from tests.integration.conftest import free_port

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def base(cache: Path, statistics: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that nobody trained."""
    folder = tmp_path_factory.mktemp("base") / "pretrained_model"
    policy = build_policy(PolicyConfig(size="tiny"), seed=7, device=torch.device("cpu"), cache=cache)
    save_policy_folder(folder, policy, build_processors(policy, statistics), "card")
    return folder


@pytest.fixture(scope="module")
def cluster(
    certs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalCluster, Path]]:
    folder = tmp_path_factory.mktemp("adapter")
    sites = {name: data / name for name in ("site-a", "site-b")}
    with LocalCluster(sites, data / "holdout", folder, certs, free_port(), folder / "scratch") as cluster:
        yield cluster, folder


def _run(cluster: tuple[LocalCluster, Path], name: str, rounds: int, **changes: Any) -> dict[str, Any]:
    """Do `rounds` rounds, or as many more as `name` has not done yet; what the run recorded."""
    settings = TINY | {"run.name": name, "run.num_rounds": rounds, "training.schedule": "constant"}
    config = parse_run_config(
        settings | {"policy.size": "pretrained", "policy.adapter": "lora"} | changes, ""
    )
    if (cluster[1] / name).exists():
        config = as_continuation(config)
    said: list[str] = []
    supervise_run(cluster[0].superlink, cluster[1], config, said.append)
    metrics = read_metrics(cluster[1] / name)
    assert metrics["status"] == "finished", said
    assert [sorted(entry["clients"]) for entry in metrics["rounds"]] == [["site-a", "site-b"]] * rounds, said
    return metrics


def test_an_adapter_is_trained_resumed_and_exported(cluster: tuple[LocalCluster, Path], base: Path) -> None:
    changes = {"policy.pretrained": str(base), "policy.lora_rank": 4, "wire.upload": "fp32"}
    _run(cluster, "resumed", 1, **changes)
    metrics = _run(cluster, "resumed", 2, **changes)
    assert metrics["resumed"][0]["after_round"] == 1
    trained = load_file(cluster[1] / "resumed" / "checkpoints" / "round_0002.safetensors")
    assert len(trained) == 18
    assert all(".lora_" in name for name in trained)
    assert any(tensor.any() for name, tensor in trained.items() if ".lora_B." in name)

    folder, whole = cluster[1] / "resumed", load_file(base / "model.safetensors")
    assert metrics["config"]["policy.adapter"] == "lora"
    assert metrics["rounds"][0]["bytes"]["up"] < 0.05 * 2 * 4 * sum(t.numel() for t in whole.values())
    for name in ("pretrained_model", "pretrained_model_best"):
        load_policy_folder(folder / name, torch.device("cpu"))
    for name in ("adapter", "adapter_best"):
        assert load_file(folder / name / "adapter_model.safetensors")
    assert "Trained was a LoRA adapter of rank 4" in (folder / "adapter" / "README.md").read_text()
