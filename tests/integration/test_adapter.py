"""An adapter over a saved policy, federated by two sites over TLS, resumed once.

That it ends bit for bit the same as without is in `tests/unit/server/test_rounds_of_adapters.py`.
"""

import shutil
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
from server.run.recorded import as_continuation, read_events, read_metrics
from server.superlink.control import online_sites, register_supernode
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.membership import wait_for

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


def test_a_site_with_another_base_is_denied_by_name_and_the_run_goes_on(
    certs: Path, data: Path, base: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = {name: tmp_path / f"home of {name}" for name in ("site-a", "site-b")}
    for home in homes.values():
        shutil.copytree(base, home / "base")
    other = build_policy(PolicyConfig(size="tiny"), seed=8, device=torch.device("cpu"), cache=cache)
    other.save_pretrained(homes["site-b"] / "base")
    outputs, settings = tmp_path / "outputs", TINY | {"run.name": "other-base", "run.num_rounds": 1}
    settings |= {"policy.size": "pretrained", "policy.pretrained": "~/base", "policy.adapter": "lora"}

    monkeypatch.setenv("HOME", str(homes["site-a"]))  # the server's too
    sites, scratch = {"site-a": data / "site-a"}, tmp_path / "scratch"
    with LocalCluster(sites, data / "holdout", outputs, certs, free_port(), scratch) as cluster:
        register_supernode(
            cluster.superlink, (certs / "sites" / "site-b" / "node.key.pub").read_text(), "site-b"
        )
        monkeypatch.setenv("HOME", str(homes["site-b"]))
        cluster.start_supernode("site-b", data / "site-b")
        both = {"site-a", "site-b"}
        wait_for(lambda: online_sites(cluster.superlink) == both, cluster.logs / "site-b.log")
        config, said = parse_run_config(settings | {"federation.min_nodes": 1}, ""), []
        supervise_run(cluster.superlink, outputs, config, said.append)

    (denied,) = read_events(outputs / "other-base", ["join_denied"])
    assert denied["node"] == "site-b"
    assert denied["reason"].startswith("its adapter has base ")
    metrics = read_metrics(outputs / "other-base")
    assert metrics["status"] == "finished", said
    assert [sorted(entry["clients"]) for entry in metrics["rounds"]] == [["site-a"]]
