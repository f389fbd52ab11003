"""Every way to aggregate, in a run of one round on real processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from federation.config import parse_run_config
from federation.privacy_budget import NOT_COVERED, epsilon
from server.deploy.local_cluster import LocalCluster
from server.deploy.supervise import supervise_run
from server.run.recorded import read_metrics
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.synthetic import record_dataset

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster(
    certs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalCluster, Path]]:
    folder = tmp_path_factory.mktemp("aggregation")
    # One site calls its camera differently and has no second one.
    other = record_dataset(folder / "other", seed=1, cameras=("overhead",))
    sites = {"site-a": data / "site-a", "site-b": other}
    with LocalCluster(sites, data / "holdout", folder, certs, free_port(), folder / "scratch") as cluster:
        yield cluster, folder


@pytest.mark.parametrize(
    "changes",
    [
        {
            "aggregation.method": "median",
            "aggregation.strategy": "fedadam",
            "aggregation.server_learning_rate": 0.002,
            "wire.upload": "int4",
        },
        {
            "aggregation.method": "krum",
            "aggregation.byzantine": 0,
            "aggregation.strategy": "fedavgm",
        },
    ],
    ids=["median, Adam, int4", "krum, momentum"],
)
def test_it_aggregates_the_updates_of_a_real_run(
    cluster: tuple[LocalCluster, Path], changes: dict, request: pytest.FixtureRequest
) -> None:
    entry, said = _run(cluster, changes, f"run-{request.node.callspec.indices['changes']}")
    assert sorted(entry["clients"]) == ["site-a", "site-b"], said
    assert entry["aggregated"]
    assert entry["update_norm"] > 0


def test_a_spike_of_the_policy_loss_takes_the_weights_back_to_the_best_round(
    cluster: tuple[LocalCluster, Path],
) -> None:
    changes = {
        "run.num_rounds": 2,
        "training.learning_rate": 0.5,
        "training.local_epochs": 0.05,
        "training.keep_optimizer": True,
        "training.adapt_proximal_mu": True,
        "evaluation.ema_decay": 0.1,
        "evaluation.rollback_ratio": 1.1,
    }
    entry, said = _run(cluster, changes, "spike")
    folder = cluster[1] / "spike"
    baseline = json.loads((folder / "server_eval_round_0.json").read_text())["policy_loss"]
    assert entry["evaluation"]["policy_loss"] > 1.1 * baseline, said
    assert entry["rolled_back_to"] == 0
    before, after = (load_file(folder / f"checkpoints/round_000{round_}.safetensors") for round_ in (0, 2))
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    kept = sorted(path.stem[-1] for path in (cluster[1] / "scratch").rglob("optimizer/*.safetensors"))
    assert kept == ["2", "2"]  # of both sites; round 1 was undone, and neither went on with what it left


@pytest.mark.parametrize("mode", ["central", "local"])
def test_the_record_says_what_differential_privacy_has_cost(
    cluster: tuple[LocalCluster, Path], mode: str
) -> None:
    changes = {"privacy.mode": mode, "privacy.clip_norm": 0.01, "privacy.noise_multiplier": 0.5}
    entry, said = _run(cluster, changes, f"private-{mode}")
    assert entry["aggregated"], said
    spent = epsilon({0.5: 1}, delta=1e-5)
    assert entry["privacy"]["epsilon"] == {"site-a": spent, "site-b": spent}
    assert entry["privacy"]["not_covered"] == NOT_COVERED
    assert entry["update_norm"] > 0.1  # 0.005 in each of a million parameters drowns the update


def _run(cluster: tuple[LocalCluster, Path], changes: dict, name: str) -> tuple[dict, list[str]]:
    settings = TINY | {"run.name": name, "run.num_rounds": 1, "training.local_steps": 2}
    settings |= {"policy.empty_cameras": 1} | changes
    said: list[str] = []
    supervise_run(cluster[0].superlink, cluster[1], parse_run_config(settings, "tests"), said.append)
    metrics = read_metrics(cluster[1] / name)
    assert metrics["status"] == "finished", said
    cameras = {name: facts["cameras"] for name, facts in metrics["nodes"].items()}
    assert cameras == {"site-a": ["top", "wrist"], "site-b": ["top=overhead", "wrist=none"]}
    return metrics["rounds"][-1], said
