"""Rounds between the real server and a real site with several recordings, in this process.

`tests/integration/test_membership.py` has the same over TLS.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from client.recordings import held
from client.recordings.sources import Source, parse_sources, write_list
from client.round import answer_train_request
from client.site import Site
from federation.config import RunConfig, flatten, parse_run_config
from federation.judgement.judge import describe_fitting
from federation.policy.build import build_policy, frozen_fingerprint, trainable_parameters
from server.aggregation.collector import make_server_optimizer
from server.join_answer import Node
from server.model import GlobalModel
from server.rounds import run_round
from server.run.records import RunRecord
from server.run.round_record import RoundRecord
from tests.fake_grid import FakeGrid
from tests.synthetic import as_format_2, record_dataset


@pytest.fixture
def sources(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """One of format 3 and one of format 2.1, whose cameras have other names and sizes."""
    monkeypatch.setattr(
        held, "judge_each", lambda uses: [describe_fitting(use.root, use.policy, use.names) for use in uses]
    )
    kitchen = tmp_path / "kitchen"
    record_dataset(kitchen, episodes=2, frames=20, cameras=("phone", "hand"), seed=7, size=(48, 48))
    as_format_2(kitchen)
    return [Source(str(data / "site-a"), {}, 1.0), Source(str(kitchen), {"top": "phone"}, 3.0)]


def _rounds(
    folder: Path, config: RunConfig, statistics: Any, cache: Path, rounds: list[list[Source]]
) -> tuple[GlobalModel, list[RoundRecord]]:
    """Train as many rounds, each with the recordings that the site's list names by then."""
    policy = build_policy(config.policy, seed=config.run.seed, device=torch.device("cpu"), cache=cache)
    weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
    optimizer = make_server_optimizer(config.aggregation, weights)
    model, entries = GlobalModel(weights, statistics, frozen_fingerprint(policy), optimizer), []
    record, scratch = RunRecord(folder, "run", config), folder / "scratch"
    scratch.mkdir()
    node = Node(10, "site-a", 30, 3, 120, ("top", "wrist"), {})
    for round_, sources in enumerate(rounds, start=1):
        (folder / "recordings.toml").write_bytes(write_list(sources))
        read = parse_sources({"dataset": str(folder / "recordings.toml")})
        site = Site("site-a", read, scratch, 1.0)
        grid = FakeGrid({10: lambda message, site=site: answer_train_request(message, config, site)})
        entries.append(run_round(grid, model, [node], round_, config, record))  # type: ignore[arg-type]
        assert list(entries[-1].clients) == ["site-a"], (entries[-1].rejected, entries[-1].missing)
    return model, entries


def test_a_recording_that_is_added_is_trained_on_from_the_next_round_and_the_seed_decides_all(
    sources: list[Source], tiny_config: RunConfig, statistics, cache: Path, tmp_path: Path
) -> None:
    models = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folder = tmp_path / name
        model, entries = _rounds(folder, tiny_config, statistics, cache, [sources[:1], sources])
        models.append(model.weights)
        told = [(entry.clients["site-a"]["episodes"], entry.clients["site-a"]["frames"]) for entry in entries]
        assert told == [(3, 120), (5, 160)]
        assert model.statistics is statistics
    assert all(torch.equal(models[0][name], tensor) for name, tensor in models[1].items())


def test_with_partial_work_a_site_trains_the_steps_that_it_is_asked_for(
    sources: list[Source], tiny_config: RunConfig, statistics, cache: Path, tmp_path: Path
) -> None:
    changes = {"federation.partial_work": True, "training.local_steps": 8}
    config = parse_run_config(flatten(tiny_config) | changes, "tests")
    _, entries = _rounds(tmp_path, config, statistics, cache, [sources[:1]] * 2)
    # Nobody's speed is known: a quarter of the steps.
    asked = 8 // 4 * config.training.batch_size
    assert [entry.clients["site-a"]["num_examples"] for entry in entries] == [asked, asked]
    assert (tmp_path / "scratch" / "feedback_by_step").is_dir()
    assert not (tmp_path / "scratch" / "feedback").exists()
