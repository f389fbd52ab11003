"""Delivery of the policy: from a run's folder to a site's, both in this process, and to nobody else."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from client import app
from client.state.contact import read_contact
from client.state.delivered_policy import note_delivered_policy, read_delivered_policy, read_training
from federation import logs
from federation.config import flatten, parse_run_config
from federation.errors import FederationError
from federation.messages import CONFIG, LAST_UPDATE, SETTINGS
from federation.policy.build import (
    build_policy,
    build_processors,
    frozen_fingerprint,
    trainable_parameters,
)
from federation.policy.folder import load_policy_folder, policy_digest, save_policy_folder
from federation.settings import TrainingConfig
from server import delivery
from server.delivery import FormerPolicy, deliver_only, deliver_quietly
from server.grid.late_replies import LateReplies
from server.model import GlobalModel
from server.output.export import export_last
from server.run.checkpoints import Checkpoints, checkpoint_path
from server.run.deliveries import DELIVERIES_FILE, read_deliveries
from server.run.recorded import read_metrics
from server.run.records import RunRecord
from server.run.round_record import Rejection, RoundRecord
from tests.conftest import TINY
from tests.fake_grid import FakeGrid

pytestmark = pytest.mark.slow

FACTS = {"episodes": 3, "frames": 90, "cameras": ["top"]}
REJECTED = RoundRecord(1, rejected={"site-a": Rejection("non_finite", "NaN in it")})


@pytest.fixture(autouse=True)
def _log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sites, which are in this process, leave its log as it is."""
    quiet = SimpleNamespace(configure=lambda: None, bind_context=logs.bind_context)
    monkeypatch.setattr(app, "logs", quiet)
    monkeypatch.setattr(logging.getLogger("so100"), "propagate", True)


def _finished_run(outputs: Path, cache: Path, statistics: Any, **settings: Any) -> Path:
    """The folder of a run of one round of site-a and site-b, whose weights are some that were trained."""
    asked = {"run.name": "run-1", "run.deliver": "end", "evaluation.ema_decay": 0.5}
    config = parse_run_config(TINY | asked | settings, "tests")
    policy = build_policy(config.policy, seed=config.run.seed, device=torch.device("cpu"), cache=cache)
    torch.manual_seed(7)
    weights = {name: torch.randn_like(p).mul_(0.1) for name, p in trainable_parameters(policy).items()}
    average = {name: tensor * 0.7 for name, tensor in weights.items()}
    model = GlobalModel(weights, statistics, frozen_fingerprint(policy), average=average)
    record = RunRecord(outputs, config.run.name, config)
    for site in ("site-a", "site-b"):
        record.node_joined(site, FACTS)
    checkpoints = Checkpoints(record.folder / "checkpoints", config.checkpoint, flatten(config), "m")
    checkpoints.save(1, model, None, REJECTED)
    record.round_finished(REJECTED)
    export_last(record.folder, policy, model, read_metrics(record.folder), 1)
    record.close("finished")
    record.write_final_event()
    record._lock.close()
    return record.folder


@pytest.fixture
def run(tmp_path: Path, cache: Path, statistics) -> Path:
    return _finished_run(tmp_path / "outputs", cache, statistics)


def _site(home: Path) -> Any:
    """What a SuperNode answers whose scratch is in `home`."""
    settings = {"name": "site", "dataset": str(home / "data"), "scratch": str(home / "scratch")}

    def answer(message: Message) -> RecordDict | Error:
        assert message.metadata.message_type == "query.deliver"
        context = SimpleNamespace(node_config=settings, run_config={})
        reply = app.deliver(message, context)  # type: ignore[arg-type]
        return reply.error if reply.has_error() else reply.content

    return answer


def _grid(tmp_path: Path, *names: str) -> FakeGrid:
    grid = FakeGrid({10 + i: _site(tmp_path / name) for i, name in enumerate(names)})
    grid.registered = {10 + i: name for i, name in enumerate(names)}
    return grid


def _asked(grid: FakeGrid) -> list[str]:
    return sorted(grid.registered[message.metadata.dst_node_id] for message in grid.sent.values())


@pytest.mark.parametrize("adapter", [False, True])
def test_each_site_comes_to_the_very_file_that_the_server_exported(
    adapter: bool, policy, statistics, cache: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {}
    if adapter:
        save_policy_folder(tmp_path / "base", policy, build_processors(policy, statistics), "card")
        settings = {"policy.size": "pretrained", "policy.pretrained": str(tmp_path / "base")}
        settings |= {"policy.adapter": "lora", "policy.lora_rank": 4}
    folder = _finished_run(tmp_path / "outputs", cache, statistics, **settings)
    grid = _grid(tmp_path, "site-a", "site-b")
    deliver_quietly(grid, folder)  # type: ignore[arg-type]
    assert _asked(grid) == ["site-a", "site-b"]
    digest = policy_digest(folder / "pretrained_model")
    for name in ("site-a", "site-b"):
        home = tmp_path / name / "scratch" / "policy"
        assert policy_digest(home) == digest
        noted = read_delivered_policy(home)
        assert [noted[key] for key in ("run", "round", "sha256")] == ["run-1", 1, digest]
        # An adapter's learning rate would be too high for the whole policy.
        rate = TrainingConfig().learning_rate if adapter else TINY["training.learning_rate"]
        assert read_training(noted).learning_rate == rate
        assert (home / "README.md").read_text() == (folder / "pretrained_model" / "README.md").read_text()
        load_policy_folder(home, torch.device("cpu"))
        told = read_deliveries(folder)[name]
        assert (told["round"], told["sha256"], told["error"]) == (1, digest, "")
        assert told["bytes"] > 0
    assert read_metrics(folder)["delivered"].keys() == {"site-a", "site-b"}
    contact = read_contact(tmp_path / "site-a" / "scratch")
    assert contact["update"] == "rejected in round 1: NaN in it"
    deliver_quietly(grid, folder)  # type: ignore[arg-type]
    assert len(grid.sent) == 2


def test_who_is_off_denied_suspended_or_a_stranger_gets_nothing(run: Path, tmp_path: Path) -> None:
    events = run / "events.jsonl"
    later = [
        {"event": "node_joined", "node": "site-c"},
        {"event": "node_joined", "node": "site-d"},
        {"event": "join_denied", "node": "site-c", "reason": "other data"},
        {"event": "node_suspended", "node": "site-d", "until_round": 5, "reason": "NaN"},
        {"event": "join_denied", "node": "site-e", "reason": "other data"},
    ]
    events.write_text(events.read_text() + "".join(f"{json.dumps(event)}\n" for event in later))
    grid = _grid(tmp_path, "site-a", "site-b", "site-c", "site-d", "site-e", "stranger", "")
    grid.online_since = {id_: "t0" for id_, name in grid.registered.items() if name != "site-b"}
    deliver_quietly(grid, run)  # type: ignore[arg-type]
    assert _asked(grid) == ["site-a"]


@pytest.mark.parametrize("fault", ["digest", "weights", "settings"])
def test_another_policy_than_the_exported_leaves_the_one_before_whole(
    fault: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "site-a" / "scratch" / "policy"
    home.mkdir(parents=True)
    (home / "mine").write_text("the policy before")
    whole = delivery.delivery_request

    def spoil(folder: Path, digest: str) -> RecordDict:
        content = whole(folder, digest)
        if fault == "digest":
            content.config_records[CONFIG]["sha256"] = "0" * 64
        elif fault == "weights":
            content.config_records["header"]["sha256"] = "0" * 64
        else:
            content[SETTINGS] = ConfigRecord({"policy.sise": "tiny"})
        return content

    monkeypatch.setattr(delivery, "delivery_request", spoil)
    deliver_quietly(_grid(tmp_path, "site-a"), run)  # type: ignore[arg-type]
    assert [path.name for path in home.parent.glob("*policy*")] == ["policy"]
    assert [path.name for path in home.iterdir()] == ["mine"]
    told = read_deliveries(run)["site-a"]
    assert told["sha256"] == ""
    reason = {
        "digest": "comes out with SHA-256",
        "weights": "SHA-256 of the arrays",
        "settings": "unknown key",
    }
    assert reason[fault] in told["error"]
    assert str(tmp_path) not in told["error"]
    assert f"run-1 is not delivered to site-a: {told['error']}" in caplog.text


def test_a_full_disk_at_the_site_is_one_line_without_a_path(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("federation.policy.folder.write_folder", full)
    deliver_quietly(_grid(tmp_path, "site-a"), run)  # type: ignore[arg-type]
    error = read_deliveries(run)["site-a"]["error"]
    assert "cannot be written ([Errno 28] No space left on device" in error
    assert str(tmp_path) not in error


@pytest.mark.parametrize("answer", [RecordDict(), RecordDict({"answer": ConfigRecord({"sha256": "x"})})])
def test_a_site_that_claims_another_digest_is_no_success(
    run: Path, tmp_path: Path, answer: RecordDict
) -> None:
    grid = _grid(tmp_path, "site-a", "site-b")
    grid.answers[10] = answer
    deliver_quietly(grid, run)  # type: ignore[arg-type]
    told = read_deliveries(run)
    assert told["site-a"]["error"].startswith("it answers with")
    assert told["site-b"]["error"] == ""


def test_what_fails_at_the_server_is_logged_and_spoils_nothing(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint_path(run / "checkpoints", 1).write_bytes(b"torn")
    grid = _grid(tmp_path, "site-a")
    deliver_quietly(grid, run)  # type: ignore[arg-type]
    assert "the policy of run-1 is not delivered: " in caplog.text
    assert not grid.sent
    with pytest.raises(FederationError, match="cannot be read"):
        deliver_only(grid, run)  # type: ignore[arg-type]


def test_a_site_that_was_off_gets_it_as_it_joins_the_next_run_once(run: Path, tmp_path: Path) -> None:
    grid = _grid(tmp_path, "site-a", "site-b", "site-c")
    grid.online_since = {10: "t0"}
    deliver_quietly(grid, run)  # type: ignore[arg-type]
    grid.online_since = None
    RunRecord(run.parent, "run-2", parse_run_config(TINY, "tests"))
    former = FormerPolicy(grid, run.parent / "run-2", LateReplies(grid))  # type: ignore[arg-type]
    former.deliver({"site-a", "site-c"})
    assert _asked(grid) == ["site-a"]
    name = grid.registered.pop(11)
    former.deliver({"site-a", "site-b"})  # which joined, and is not online at the moment
    assert _asked(grid) == ["site-a"]
    grid.registered[11] = name
    former.deliver({"site-a", "site-b", "site-c"})
    assert _asked(grid) == ["site-a", "site-b"]
    assert [message.metadata.ttl for message in grid.sent.values()][-1] == 120.0  # a run waits meanwhile
    (run / DELIVERIES_FILE).unlink()
    former.deliver({"site-a", "site-b", "site-c"})
    assert _asked(grid) == ["site-a", "site-b"]  # one that failed is not tried again in each round


@pytest.mark.parametrize("change", ["never", "failed", "damaged"])
def test_a_run_that_delivers_nothing_is_no_former_one(change: str, run: Path, tmp_path: Path) -> None:
    file = run / "federated_metrics.json"
    metrics = json.loads(file.read_text())
    if change == "never":
        metrics["config"]["run.deliver"] = "never"
    elif change == "failed":
        metrics["status"] = "failed"
    file.write_text("{" if change == "damaged" else json.dumps(metrics))
    grid = _grid(tmp_path, "site-a")
    FormerPolicy(grid, run.parent / "run-2", LateReplies(grid)).deliver({"site-a"})  # type: ignore[arg-type]
    assert not grid.sent


def test_a_site_that_has_another_policy_since_gets_it_again(run: Path, tmp_path: Path) -> None:
    grid, home = _grid(tmp_path, "site-a"), tmp_path / "site-a" / "scratch" / "policy"
    digest = policy_digest(run / "pretrained_model")
    deliver_quietly(grid, run)  # type: ignore[arg-type]
    note_delivered_policy(home, "run-2", 3, digest)
    deliver_only(grid, run)  # type: ignore[arg-type]
    assert read_delivered_policy(home)["run"] == "run-1"
    (home / "model.safetensors").write_bytes(b"torn")
    deliver_only(grid, run)  # type: ignore[arg-type]
    assert policy_digest(home) == digest
    (home / "mine").touch()
    deliver_only(grid, run)  # type: ignore[arg-type]
    assert (home / "mine").exists()  # what is there already is not written again
    assert read_deliveries(run)["site-a"]["error"] == ""
    assert len(grid.sent) == 4


@pytest.mark.parametrize("is_the_same", [True, False])
def test_of_a_run_that_started_from_another_any_policy_with_its_frozen_weights_will_do(
    is_the_same: bool, policy, statistics, cache: Path, tmp_path: Path
) -> None:
    base, home = tmp_path / "base", tmp_path / "site-a" / "scratch" / "policy"
    save_policy_folder(base, policy, build_processors(policy, statistics), "card")
    settings = {"policy.size": "pretrained", "policy.pretrained": str(base)}
    run = _finished_run(tmp_path / "outputs", cache, statistics, **settings)
    file = run / "federated_metrics.json"
    file.write_text(file.read_text().replace(json.dumps(str(base)), '"run:run-0"'))
    home.parent.mkdir(parents=True)
    held = policy
    if not is_the_same:
        held = build_policy(
            parse_run_config(TINY, "t").policy, seed=9, device=torch.device("cpu"), cache=cache
        )
    save_policy_folder(home, held, build_processors(held, statistics), "card")
    note_delivered_policy(home, "run-7", 1, policy_digest(home))
    deliver_only(_grid(tmp_path, "site-a"), run)  # type: ignore[arg-type]
    if is_the_same:
        assert policy_digest(home) == policy_digest(run / "pretrained_model")
    else:
        assert "frozen weights differ" in read_deliveries(run)["site-a"]["error"]
        assert read_delivered_policy(home)["run"] == "run-7"


def test_a_run_that_only_delivers_needs_one_that_has_finished(run: Path, tmp_path: Path) -> None:
    grid = _grid(tmp_path, "site-a")
    deliver_only(grid, run)  # type: ignore[arg-type]
    assert _asked(grid) == ["site-a"]
    assert "site-a has the policy of run-1" in (run / "server.log").read_text()
    (message,) = grid.sent.values()
    assert message.content.config_records[LAST_UPDATE]["text"] == "rejected in round 1: NaN in it"
    unfinished = RunRecord(run.parent, "run-2", parse_run_config(TINY, "tests"))
    with pytest.raises(FederationError, match="run-2 holds no finished run"):
        deliver_only(grid, unfinished.folder)  # type: ignore[arg-type]
