"""Rounds of an adapter between the real server and real sites, in this process: whatever handles weights by
name handles an adapter's. `tests/integration/test_adapter.py` has the same over TLS.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from client.recordings import held
from client.recordings.sources import Source
from client.round import answer_train_request
from client.site import Site
from federation.config import RunConfig, flatten, parse_run_config
from federation.data.statistics import Statistics
from federation.judgement.judge import describe_fitting
from federation.policy.build import build_policy, build_processors, frozen_fingerprint, trainable_parameters
from federation.policy.folder import save_policy_folder
from federation.wire.codec import encoded_bytes
from server.aggregation.collector import make_server_optimizer
from server.join_answer import Node
from server.model import GlobalModel
from server.rounds import run_round
from server.run.checkpoint_file import restore_model
from server.run.checkpoints import Checkpoints
from server.run.records import RunRecord
from server.run.round_record import RoundRecord
from tests.conftest import TINY
from tests.fake_grid import FakeGrid

pytestmark = pytest.mark.slow

NAMES = ("site-a", "site-b")


@pytest.fixture
def settings(
    policy, statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:  # of a run with an adapter over a saved policy
    monkeypatch.setattr(
        held, "judge_each", lambda uses: [describe_fitting(use.root, use.policy, use.names) for use in uses]
    )
    save_policy_folder(tmp_path / "base", policy, build_processors(policy, statistics), "card")
    adapter = {"policy.size": "pretrained", "policy.pretrained": str(tmp_path / "base")}
    adapter |= {"policy.adapter": "lora", "policy.lora_rank": 4, "training.local_steps": 2}
    return TINY | adapter | {"run.num_rounds": 3, "training.learning_rate": 1e-2}


def _new_model(config: RunConfig, statistics: Statistics, cache: Path) -> GlobalModel:
    policy = build_policy(config.policy, seed=config.run.seed, device=torch.device("cpu"), cache=cache)
    weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
    optimizer = make_server_optimizer(config.aggregation, weights)
    return GlobalModel(weights, statistics, frozen_fingerprint(policy), optimizer)


def _federate(
    folder: Path,
    data: Path,
    statistics: Statistics,
    settings: dict[str, Any],
    *,
    rounds: int,
    resumed_after: int = 0,
) -> tuple[GlobalModel, list[RoundRecord]]:
    config = parse_run_config(settings, "tests")
    record = RunRecord(folder, "run", config)
    checkpoints = Checkpoints(record.folder / "checkpoints", config.checkpoint, flatten(config), "m")
    sites = [Site(name, (Source(str(data / name)),), folder / name, 0.0) for name in NAMES]
    for site in sites:
        site.scratch.mkdir()
    answers = {
        number: lambda message, site=site: answer_train_request(message, config, site)
        for number, site in enumerate(sites, start=10)
    }
    nodes = [Node(10 + number, name, 30, 3, 120, ("top", "wrist"), {}) for number, name in enumerate(NAMES)]
    model, entries = _new_model(config, statistics, folder / "cache"), []
    for round_ in range(1, rounds + 1):
        entries.append(run_round(FakeGrid(answers), model, nodes, round_, config, record))  # type: ignore
        assert sorted(entries[-1].clients) == sorted(NAMES), (entries[-1].rejected, entries[-1].missing)
        if round_ == resumed_after:
            checkpoints.save(round_, model, None, entries[-1])
            model = _new_model(config, statistics, folder / "cache")
            newest = checkpoints.newest()
            assert newest is not None
            restore_model(model, newest)
    return model, entries


def test_a_resumed_run_ends_with_the_same_adapter_bit_for_bit(
    settings, data: Path, statistics, tmp_path: Path
) -> None:
    settings |= {"wire.upload": "fp32", "aggregation.strategy": "fedavgm"}
    models = []
    for name, resumed_after in (("straight", 0), ("resumed", 2)):
        (tmp_path / name).mkdir()
        model, _ = _federate(
            tmp_path / name, data, statistics, settings, rounds=3, resumed_after=resumed_after
        )
        models.append(model.weights)
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], tensor) for name, tensor in models[1].items())
    assert all(tensor.any() for tensor in models[0].values())


@pytest.mark.parametrize(
    "changes",
    [
        {"policy.lora_train": "b", "wire.upload": "int8", "aggregation.method": "median"},
        {"wire.upload": "int4", "privacy.mode": "central", "privacy.noise_multiplier": 0.01},
        {
            "policy.lora_train": "b",
            "privacy.mode": "local",
            "privacy.noise_multiplier": 0.01,
            "aggregation.method": "trimmed_mean",
        },
        {"aggregation.strategy": "fedadam", "aggregation.server_learning_rate": 0.002},
    ],
    ids=["B alone, median", "central noise, int4", "local noise, trimmed mean", "Adam"],
)
def test_whatever_works_by_name_works_on_an_adapter(
    settings, data: Path, statistics, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings |= changes
    model, entries = _federate(tmp_path, data, statistics, settings, rounds=2)
    factors = {name.split(".lora_")[1][0] for name in model.weights}
    assert factors == ({"B"} if "policy.lora_train" in changes else {"A", "B"})
    upload = settings.get("wire.upload", "int8")
    sent = sum(encoded_bytes(shape, upload) for shape in model.shapes.values())
    for entry in entries:
        assert entry.aggregated
        assert entry.update_norm > 0
        assert {figures["update_bytes"] for figures in entry.clients.values()} == {sent}
    for name in NAMES:
        for kind in ("optimizer", "feedback"):
            assert len(list((tmp_path / name / kind).glob("*.safetensors"))) == 2
