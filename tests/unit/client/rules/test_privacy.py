from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app
from client.round import answer_train_request
from client.rules.owner import NO_RULES, RULES_VARIABLE, OwnerRules
from client.rules.privacy import check_budget, check_privacy, count_release
from federation import logs
from federation.config import RunConfig, flatten, parse_run_config
from federation.errors import FederationError, RejectionCode
from federation.messages import CONFIG, HEADER, METRICS
from federation.policy.build import frozen_fingerprint
from federation.privacy_budget import NOT_COVERED, epsilon
from federation.release_ledger import LEDGER_FILE, Ledger, Release, read_ledger
from federation.settings import PrivacyConfig
from server import nodes
from server.model import GlobalModel
from server.nodes import NodeTable
from server.rounds import train_request
from server.run.records import RunRecord
from tests.fake_grid import FakeGrid

LOCAL = PrivacyConfig(mode="local", noise_multiplier=1.0)


@pytest.fixture(autouse=True)
def _task() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower stamps a message with them


@pytest.fixture
def rules_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the owner of the site that is asked writes rules."""
    monkeypatch.setenv(RULES_VARIABLE, str(tmp_path / "rules.toml"))
    return tmp_path / "rules.toml"


def _context(folder: Path, config: dict, dataset: Path | None = None) -> Context:
    own = {"name": "site-a", "dataset": str(dataset or folder / "data"), "scratch": str(folder / "scratch")}
    return SimpleNamespace(node_config=own, run_config=config)  # type: ignore[return-value]


@pytest.mark.parametrize("rules", [OwnerRules(min_noise=0.1), OwnerRules(max_epsilon=1000.0)])
@pytest.mark.parametrize("mode", ["none", "central"])
def test_a_site_cannot_verify_noise_that_is_not_its_own(rules: OwnerRules, mode: str) -> None:
    with pytest.raises(
        FederationError, match=rf"the run has privacy.mode = '{mode}'.*set privacy.mode = 'local'"
    ):
        check_budget(rules, PrivacyConfig(mode=mode), Ledger())
    check_budget(rules, LOCAL, Ledger())
    check_budget(NO_RULES, PrivacyConfig(mode=mode), Ledger())


def test_less_noise_than_the_owner_wants_is_refused() -> None:
    check_budget(OwnerRules(min_noise=1.0), LOCAL, Ledger())
    with pytest.raises(FederationError, match=r"min-noise = 1.5: .*privacy.noise_multiplier = 1; raise that"):
        check_budget(OwnerRules(min_noise=1.5), LOCAL, Ledger())


def test_the_budget_is_of_all_runs_together_and_includes_the_next_release() -> None:
    rules = OwnerRules(max_epsilon=epsilon({1.0: 1, 0.5: 1}, 1e-5) * 1.0001)
    before = Ledger((Release("another run", 7, ("site-a",), 0.5),))
    check_budget(rules, LOCAL, before)
    spent = Ledger((*before.releases, Release("run", 1, ("site-a",), 1.0)))
    with pytest.raises(FederationError, match=r"max-epsilon = .*: one more release .* over 3 releases"):
        check_budget(rules, LOCAL, spent)
    with pytest.raises(FederationError, match="max-epsilon"):
        check_budget(rules, LOCAL, Ledger(before.releases, unreadable=1))


def test_a_large_delta_does_not_make_the_budget_larger() -> None:
    rules = OwnerRules(max_epsilon=epsilon({1.0: 1}, 1e-5) - 0.01)
    with pytest.raises(FederationError, match="at delta 1e-05"):
        check_budget(rules, PrivacyConfig(mode="local", noise_multiplier=1.0, delta=0.1), Ledger())
    stricter = OwnerRules(max_epsilon=epsilon({1.0: 1}, 1e-5) + 0.01)
    with pytest.raises(FederationError, match="at delta 1e-09"):
        check_budget(stricter, PrivacyConfig(mode="local", noise_multiplier=1.0, delta=1e-9), Ledger())


def test_a_release_is_counted_before_it_leaves_until_the_budget_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    rules = OwnerRules(max_epsilon=epsilon({1.0: 2}, 1e-5) + 0.01)
    for round_ in (1, 2):
        check_privacy(rules, LOCAL, tmp_path)
        count_release(rules, LOCAL, tmp_path, "site-a", f"run-{round_}", round_)
    assert read_ledger(tmp_path / LEDGER_FILE).releases == tuple(
        Release(f"run-{round_}", round_, ("site-a",), 1.0) for round_ in (1, 2)
    )
    one, two = (epsilon({1.0: releases}, 1e-5) for releases in (1, 2))
    logged = capsys.readouterr().err
    assert f"1 in this run, epsilon {one:.2f}; 2 in all runs, epsilon {two:.2f}; at delta 1e-05" in logged
    assert NOT_COVERED in logged
    with pytest.raises(FederationError, match="max-epsilon"):
        check_privacy(rules, LOCAL, tmp_path)
    with pytest.raises(FederationError, match="max-epsilon"):
        count_release(rules, LOCAL, tmp_path, "site-a", "run-3", 3)
    assert len(read_ledger(tmp_path / LEDGER_FILE).releases) == 2


@pytest.mark.parametrize("work", [app._join, answer_train_request])
@pytest.mark.parametrize(
    ("config", "rule", "why"),
    [
        ({}, "min-noise = 1", "rule min-noise = 1: the run has privacy.mode = 'none'"),
        (
            flatten(RunConfig(privacy=PrivacyConfig("central"))),
            "max-epsilon = 8.0",
            "rule max-epsilon = 8: the run",
        ),
        (
            flatten(RunConfig(privacy=PrivacyConfig("local", noise_multiplier=0.5))),
            "min-noise = 1.0",
            "rule min-noise = 1: the run has privacy.noise_multiplier = 0.5",
        ),
        (
            flatten(RunConfig(privacy=LOCAL)),
            "max-epsilon = 1.0",
            "rule max-epsilon = 1: one more release",
        ),
    ],
)
def test_a_weaker_run_is_denied_before_anything_is_read_or_trained(
    tmp_path: Path,
    rules_file: Path,
    work: Callable,
    config: dict,
    rule: str,
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules_file.write_text(rule)
    order = ConfigRecord({"run": "run", "round": 1, "undone": [], "proximal_mu": 0.0, "fingerprint": ""})
    message = Message(RecordDict({CONFIG: order, HEADER: ConfigRecord({"sha256": ""})}), 1, "train")
    reply = app._answer(message, _context(tmp_path, config), work)
    # There is no dataset at all: what came first is the rule.
    assert why in reply.error.reason
    assert reply.error.code == RejectionCode.OWNER_RULE
    assert why in capsys.readouterr().err
    assert not (tmp_path / "scratch" / LEDGER_FILE).exists()


def test_the_server_names_the_site_that_denied_the_join(
    tmp_path: Path, rules_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules_file.write_text("min-noise = 1.0")
    reply = app._answer(Message(RecordDict(), 1, "query"), _context(tmp_path, {}), app._join)
    grid = FakeGrid({10: Error(code=reply.error.code, reason=reply.error.reason)})
    grid.registered = {10: "site-a"}
    settings = {"federation.join_timeout_seconds": 0.1, "federation.min_nodes": 1}
    record = RunRecord(tmp_path, "run", RunConfig())
    table = NodeTable(grid, parse_run_config(settings, "tests"), record, {})  # type: ignore[arg-type]
    monkeypatch.setattr(nodes.time, "sleep", Mock(side_effect=TimeoutError))  # it would wait for others
    with pytest.raises(TimeoutError):
        table.wait_for_nodes()
    assert "join of node site-a denied: rule min-noise = 1" in capsys.readouterr().err


@pytest.mark.slow
def test_every_round_that_is_trained_is_one_release_in_the_sites_ledger(
    tmp_path: Path, rules_file: Path, data: Path, policy, weights, statistics, tiny_config: RunConfig
) -> None:
    changes = {"privacy.mode": "local", "privacy.noise_multiplier": 2.0, "training.local_steps": 1}
    flat = flatten(tiny_config) | changes
    config = parse_run_config(flat, "tests")
    model = GlobalModel(weights, statistics, frozen_fingerprint(policy))
    record = RunRecord(tmp_path / "outputs", "run", config)
    spent = epsilon({2.0: 2}, 1e-5)
    rules_file.write_text(f"max-epsilon = {spent + 0.01}")
    context = _context(tmp_path, flat, data / "site-a")

    def ask(mu: float) -> Message:
        return app._answer(
            Message(train_request(model, 1, config, record, mu), 1, "train"), context, answer_train_request
        )

    ledger = tmp_path / "scratch" / LEDGER_FILE
    assert METRICS in ask(0.001).content
    assert METRICS in ask(0.001).content  # asked again, the site sends what it kept: that is no release
    assert read_ledger(ledger).releases == (Release("run", 1, ("site-a",), 2.0),)
    assert METRICS in ask(0.002).content  # the round done again, from the same weights
    assert read_ledger(ledger).count(2.0) == {2.0: 2}
    assert "max-epsilon" in ask(0.003).error.reason
    assert read_ledger(ledger).count(2.0) == {2.0: 2}
