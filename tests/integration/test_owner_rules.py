"""One run after another, each from the last, at sites whose owners have rules that a run may break."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_files

from client.rules.owner import RULES_VARIABLE
from client.rules.traffic import TRAFFIC_FILE
from federation.config import parse_run_config
from federation.policy.folder import policy_digest
from server.deploy.deliver import deliver_run
from server.deploy.local_cluster import LocalCluster
from server.deploy.supervise import supervise_run
from server.run.recorded import EVENTS_FILE, read_metrics
from server.run.round_record import recorded_rounds
from server.superlink import control
from server.superlink.control import app_files, only_delivers
from tests.conftest import TINY
from tests.integration.conftest import free_port

pytestmark = pytest.mark.integration


class _Cluster(LocalCluster):
    """Each site has `rules-NAME.toml` beside the outputs."""

    def _start(self, name: str, command: list[str], *more: Any, **others: Any) -> None:
        extra = dict(more[0]) if more else {}
        extra[RULES_VARIABLE] = str(self._outputs / f"rules-{name}.toml")
        super()._start(name, command, extra, *more[1:], **others)


@pytest.fixture(scope="module")
def cluster(certs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Cluster]:
    folder = tmp_path_factory.mktemp("rules")
    sites = {name: data / name for name in ("site-a", "site-b")}
    with _Cluster(sites, data / "holdout", folder, certs, free_port(), folder / "scratch") as cluster:
        yield cluster


def _run(cluster: _Cluster, name: str, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    settings = {"run.name": name, "run.deliver": "end", "federation.min_nodes": 1}
    config = parse_run_config(TINY | settings | changes, "tests")
    said: list[str] = []
    supervise_run(cluster.superlink, cluster._outputs, config, said.append)
    metrics = read_metrics(cluster._outputs / name)
    assert metrics["status"] == "finished", said
    lines = (cluster._outputs / name / EVENTS_FILE).read_text().splitlines()
    return metrics, list(map(json.loads, lines))


def test_runs_begin_where_the_last_one_ended_and_keep_to_the_owners_rules(cluster: _Cluster) -> None:
    outputs, scratch, rules = cluster._outputs, cluster._scratch, cluster._outputs / "rules-site-b.toml"
    first, _ = _run(cluster, "one", **{"federation.min_nodes": 2, "run.num_rounds": 1})
    exported = policy_digest(outputs / "one" / "pretrained_model")
    assert _policy_of(scratch / "site-b") == exported

    # site-b wants noise of its own, which this run has none of: it is denied by name.
    rules.write_text("min-noise = 1.0")
    after = {"policy.size": "pretrained", "policy.normalisation": "pretrained", "run.num_rounds": 1}
    second, events = _run(cluster, "two", **after | {"policy.pretrained": "run:one"})
    assert _denied(events) == ("site-b", "rule min-noise = 1: the run has privacy.mode = 'none'")
    assert "rule min-noise = 1" in (cluster.logs / "site-b.log").read_text()
    assert [sorted(entry["clients"]) for entry in second["rounds"]] == [["site-a"]]
    losses = [first["baseline"]["policy_loss"], first["rounds"][0]["evaluation"]["policy_loss"]]
    assert second["baseline"]["policy_loss"] == pytest.approx(min(losses), rel=1e-4)
    assert second["config"]["policy.pretrained"] == "run:one"

    # Nor has it the policy that the next run starts from.
    rules.unlink()
    _, events = _run(cluster, "three", **after | {"policy.pretrained": "run:two"})
    assert _denied(events) == ("site-b", "policy.pretrained = 'run:two': this site has the policy of one")

    # The fix that it names works, also where a site had that policy before.
    assert _policy_of(scratch / "site-a") == policy_digest(outputs / "three" / "pretrained_model")
    said: list[str] = []
    deliver_run(cluster.superlink, outputs, "two", said.append)
    assert said == ["site-a: has the policy of round 1 now"]
    assert _policy_of(scratch / "site-a") == policy_digest(outputs / "two" / "pretrained_model")
    delivery, third, *_ = control._runs(cluster.superlink)
    assert only_delivers(cluster.superlink, delivery)
    assert not only_delivers(cluster.superlink, third)

    # The gigabytes of its day are used up by the second round, and the run goes on without it. What the app
    # takes, which comes once a run, counts too.
    bundle, _ = build_fab_from_files(app_files())
    a_round = sum(entry["bytes"]["down"] + entry["bytes"]["up"] for entry in first["rounds"]) / 2
    used = json.loads((scratch / "site-b" / TRAFFIC_FILE).read_text())
    allowed = used["received"] + used["sent"] + len(bundle) + 1.5 * a_round
    rules.write_text(f"gigabytes-a-day = {allowed / 1e9}")
    fourth, events = _run(cluster, "four", **{"run.num_rounds": 2})
    took_part = [sorted(entry["clients"]) for entry in fourth["rounds"]]
    assert took_part == [["site-a", "site-b"], ["site-a"]]
    rejected = recorded_rounds(fourth)[1].rejected["site-b"]
    assert rejected.code == "owner_rule"
    assert "rule gigabytes-a-day" in rejected.reason
    (suspended,) = (event for event in events if event["event"] == "node_suspended")
    assert (suspended["node"], suspended["until_round"]) == ("site-b", 6)
    assert "rule gigabytes-a-day" in (cluster.logs / "site-b.log").read_text()


def _policy_of(scratch: Path) -> str:
    return policy_digest(scratch / "policy")


def _denied(events: list[dict[str, Any]]) -> tuple[str, str]:
    """The node that was denied, and the beginning of the reason."""
    (event,) = (event for event in events if event["event"] == "join_denied")
    return event["node"], event["reason"].partition("; ")[0].partition(", and")[0]
