import json
import logging
import math
import os
import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from certs.issue import issue_all
from client.cli import main as site_main
from client.state.progress import ProgressFile
from client.supernode.exporter import SiteExporter
from federation.config import RunConfig, parse_run_config
from federation.metrics import Samples
from federation.privacy_budget import epsilon
from federation.release_ledger import LEDGER_FILE, Release, append_release
from server.cli import main as server_main
from server.monitoring import superlink as superlink_state
from server.monitoring.catalogue import CATALOGUE
from server.monitoring.exporter import Exporter
from server.monitoring.metrics_table import markdown
from server.monitoring.superlink import SuperLinkState, SuperLinkWatch, ask_superlink
from server.monitoring.totals import RunFollower
from server.run.phases import PHASES, round_phases
from server.run.records import RunRecord
from server.run.round_record import RoundRecord
from server.superlink.control import SuperLink
from tests import REPOSITORY

CLIENT = {
    "policy_loss": 1.5,
    "proximal_loss": 0.1,
    "grad_norm": 2.0,
    "update_norm": 0.5,
    "num_examples": 12,
    "skipped_frames": 2,
    "download_seconds": 1.0,
    "setup_seconds": 2.0,
    "train_seconds": 4.0,
    "upload_seconds": 3.0,
    "data_seconds": 1.0,
    "reply_seconds": 10.0,
    "device_memory_bytes": 1e9,
    "download_bytes": 300,
    "update_bytes": 100,
}
FACTS = {
    **{"node_id": "17", "episodes": 3, "left_out": 1, "frames": 9, "fps": 30, "cameras": ["top", "wrist"]},
    **{"versions": {"python": "3.12.1", "torch": "2.11.0"}, "device": "NVIDIA H100"},
}
RUN_INFO = (
    'federation_run_info{{aggregation="mean",download="bf16",policy="pretrained",privacy="none",'
    'run="{}",upload="int8"}}'
)


def _evaluation(loss: float) -> dict:
    part = {"policy_loss": loss, "action_mse": 10 * loss, "frames": 4, "skipped_frames": 0}
    return {**part, "mode": "quick", "datasets": {"holdout-a": part}, "seconds": 0.1}


def _entry(number: int, **changes: object) -> RoundRecord:
    spread = {"mean": 1.5, "std": 0.25}
    entry = {
        "round": number,
        "aggregated": True,
        "clients": {"site-a": CLIENT, "site-b": CLIENT},
        "refused": {},
        "missing": [],
        **dict.fromkeys(("policy_loss", "proximal_loss", "grad_norm"), spread),
        "update_norm": 0.4,
        "num_examples": 24,
        "skipped_frames": 4,
        "bytes": {"down": 600, "up": 200},
        "seconds": {"sample": 0.5, "send": 0.5, "train": 12.0, "aggregate": 1.0, "evaluate": 2.0},
        **changes,
    }
    return RoundRecord.from_json(entry)


def _play_round(record: RunRecord, number: int, loss: float, **changes: object) -> None:
    entry = _entry(number, **changes)
    record.event("round_started", round=number, nodes=["site-a", "site-b"])
    for node in entry.clients:
        record.event("update_received", round=number, node=node, policy_loss=1.5)
    for node in entry.missing:
        record.event("reply_timed_out", round=number, node=node)
    for node, rejection in entry.rejected.items():
        record.event("update_rejected", round=number, node=node, code="non_finite", reason=rejection.reason)
    record.evaluated(number, _evaluation(loss))
    record.round_finished(entry)


def _scrape(outputs: Path, **settings: object) -> dict[str, float]:
    return _values(Exporter(outputs, **settings))


def _values(collector: object) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")
    }


def _of_the_run(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if "disk" not in name}


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """Two rounds; in the second site-b did not answer."""
    config = parse_run_config({"training.local_epochs": 1.0, "training.batch_size": 2}, "tests")
    record = RunRecord(tmp_path, "run-1", config)
    record.event("run_started", run="run-1", num_rounds=20)
    record.node_joined("site-a", FACTS)
    record.node_joined("site-b", FACTS)
    record.evaluated(0, _evaluation(2.0))
    _play_round(record, 1, 0.5)
    _play_round(record, 2, 0.75, clients={"site-a": CLIENT}, missing=["site-b"])
    return record


def test_it_shows_where_the_run_is_and_how_good_it_is(record: RunRecord, tmp_path: Path) -> None:
    values = _scrape(tmp_path)
    assert values["federation_record_readable"] == 1
    assert values[RUN_INFO.format("run-1")] == 1
    assert values["federation_round"] == 2
    assert values["federation_rounds_total"] == 2
    assert values["federation_rounds_planned"] == 20
    assert values['federation_run_state{state="running"}'] == 1
    assert values['federation_policy_loss{dataset="all"}'] == 0.75
    assert values['federation_policy_loss{dataset="holdout-a"}'] == 0.75
    assert values["federation_policy_loss_best"] == 0.5
    assert values["federation_policy_loss_baseline"] == 2.0
    assert values["federation_client_grad_norm_std"] == 0.25
    assert values["federation_participants"] == 1
    assert values["federation_round_duration_seconds"] == 16
    assert values['federation_transferred_bytes_total{direction="up"}'] == 300


def test_it_shows_a_round_under_way(record: RunRecord, tmp_path: Path) -> None:
    exporter = Exporter(tmp_path)
    assert _values(exporter)["federation_round_in_progress"] == 0
    record.event("round_started", round=3, nodes=["site-a"])
    values = _values(exporter)
    assert (values["federation_round_in_progress"], values["federation_round_waits_for_replies"]) == (3, 1)
    record.event("replies_collected", round=3)
    assert _values(exporter)["federation_round_waits_for_replies"] == 0
    assert values["federation_sampled_nodes"] == 1
    assert values["federation_round_start_timestamp_seconds"] > 1.7e9
    record.close("failed", "no nodes")
    record.write_final_event()
    values = _values(exporter)
    assert values["federation_round_in_progress"] == 0
    assert values['federation_run_state{state="failed"}'] == 1


def test_it_counts_by_node(record: RunRecord, tmp_path: Path) -> None:
    values = _scrape(tmp_path)
    assert values['federation_node_examples_total{node="site-a"}'] == 24
    assert values['federation_node_examples_total{node="site-b"}'] == 12
    assert values['federation_node_updates_total{node="site-b"}'] == 1
    assert values['federation_node_timed_out_replies_total{node="site-b"}'] == 1
    assert values['federation_node_absent_rounds{node="site-b"}'] == 1
    assert values['federation_node_absent_rounds{node="site-a"}'] == 0
    assert values['federation_node_round{node="site-b"}'] == 1
    assert values['federation_node_transferred_bytes_total{direction="down",node="site-a"}'] == 600
    assert values['federation_node_steps_per_second{node="site-a"}'] == 12 / 2 / 4
    assert values['federation_node_device_busy_ratio{node="site-a"}'] == 0.75
    assert values['federation_node_phase_seconds{node="site-a",phase="upload"}'] == 3


def test_a_node_that_is_gone_and_not_even_asked_is_absent_unless_nodes_are_sampled(tmp_path: Path) -> None:
    for name, fraction in (("all", 1.0), ("half", 0.5)):
        config = parse_run_config({"federation.fraction_fit": fraction}, "tests")
        record = RunRecord(tmp_path / name, "run", config)
        record.node_joined("site-a", FACTS)
        record.node_joined("site-b", FACTS)
        for number in (1, 2):
            _play_round(record, number, 1.0, clients={"site-a": CLIENT})
        values = _scrape(tmp_path / name)
        assert values['federation_node_absent_rounds{node="site-b"}'] == (2 if name == "all" else 0)


def test_a_restarted_exporter_shows_the_same_and_reads_on(record: RunRecord, tmp_path: Path) -> None:
    old = Exporter(tmp_path)
    before = _of_the_run(_values(old))
    assert _of_the_run(_scrape(tmp_path)) == before
    _play_round(record, 3, 0.25)
    after = _of_the_run(_values(old))
    assert after["federation_rounds_total"] == 3
    assert _of_the_run(_scrape(tmp_path)) == after
    assert all(after[name] >= value for name, value in before.items() if "_total" in name)


def test_only_what_was_appended_is_read_again(record: RunRecord) -> None:
    follower = RunFollower(record.folder)
    follower.catch_up()
    assert follower.totals.rounds == 2
    events = record.folder / "events.jsonl"
    size = events.stat().st_size
    # What was read once is not looked at again: even garbage in its place changes nothing.
    record.event("round_started", round=3, nodes=[])
    content = events.read_bytes()
    events.write_bytes(b"x" * (size - 1) + b"\n" + content[size:])
    assert follower.catch_up().round_in_progress == 3
    assert follower.totals.rounds == 2


def test_half_a_line_is_waited_for_and_a_torn_one_left_out(record: RunRecord) -> None:
    follower = RunFollower(record.folder)
    follower.catch_up()
    with (record.folder / "events.jsonl").open("a") as file:
        file.write('{"time": 9.0, "event": "round_start')
        file.flush()
        assert follower.catch_up().rounds == 2
        file.write('ed", "round": 3, "nodes": ["site-a"]}\n{"time": 10.0, "ev\n')
        file.write('{"time": 11.0, "event": "run_failed", "reason": ""}\n')
    totals = follower.catch_up()
    assert (totals.round_started, totals.status, totals.last_event) == (9.0, "failed", 11.0)


def test_a_resumed_run_goes_on_counting_with_its_new_settings(record: RunRecord, tmp_path: Path) -> None:
    exporter = Exporter(tmp_path)
    record.event("run_failed", reason="killed")
    assert _values(exporter)['federation_run_state{state="failed"}'] == 1
    record._continued = record._metrics["config"] | {"run.num_rounds": 30}
    record.resume_after(1, None)
    values = _values(exporter)
    assert values['federation_run_state{state="running"}'] == 1
    assert values["federation_round"] == 1
    assert values["federation_rounds_planned"] == 30
    _play_round(record, 2, 0.7)  # done again: its time and bytes were spent twice
    values = _values(exporter)
    assert values["federation_round"] == 2
    assert values["federation_rounds_total"] == 3
    assert values['federation_node_examples_total{node="site-a"}'] == 36
    assert _of_the_run(_scrape(tmp_path)) == _of_the_run(values)
    record.roll_back(1)
    values = _values(exporter)
    assert values["federation_round"] == 1
    assert values['federation_run_state{state="failed"}'] == 1


def test_without_a_run_it_says_there_is_none(tmp_path: Path) -> None:
    assert _of_the_run(_scrape(tmp_path))["federation_record_readable"] == 0


@pytest.mark.parametrize("damage", ["{", "[1]"])
def test_an_unreadable_record_is_not_the_end_of_it(
    damage: str,
    record: RunRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("so100"), "propagate", True)
    config = (record.folder / "config.json").read_text()
    (record.folder / "config.json").write_text(damage)
    exporter = Exporter(tmp_path)
    for _ in range(3):
        assert _values(exporter)["federation_record_readable"] == 0
    assert len(set(caplog.records)) == 1  # not at every scrape; pytest may see a record twice
    (record.folder / "config.json").write_text(config)
    assert _values(exporter)["federation_round"] == 2


def test_a_record_of_an_older_release_is_shown_as_far_as_it_goes(record: RunRecord, tmp_path: Path) -> None:
    file = record.folder / "config.json"
    newer = ("privacy.", "wire.")
    config = {k: v for k, v in json.loads(file.read_text()).items() if not k.startswith(newer)}
    file.write_text(json.dumps(config))
    record.event("node_joined", node="site-c", episodes=1, frames=2)
    record.event("node_joined", node="site-d")
    values = _scrape(tmp_path)
    assert values["federation_round"] == 2
    assert values['federation_node_frames{node="site-c"}'] == 2
    assert 'federation_node_frames{node="site-d"}' not in values


def test_a_run_of_the_same_name_in_place_of_one_moved_away_is_read_from_its_start(
    record: RunRecord, tmp_path: Path
) -> None:
    exporter = Exporter(tmp_path / "outputs")
    for loss in (1.0, 3.0):
        new = RunRecord(tmp_path / "outputs", "run", RunConfig())
        new.event("run_started", run="run", num_rounds=20)
        new.node_joined("site-a", FACTS)
        new.evaluated(0, _evaluation(loss))
        values = _values(exporter)
        assert values["federation_policy_loss_baseline"] == loss
        assert values["federation_evaluations_total"] == 1
        new.folder.rename(tmp_path / f"away-{loss}")


def test_a_rollback_is_counted_and_mu_is_shown(record: RunRecord, tmp_path: Path) -> None:
    exporter = Exporter(tmp_path)
    assert "federation_proximal_mu" not in _values(exporter)  # an older record has none
    _play_round(record, 3, 9.0, rolled_back_to=1, proximal_mu=0.02)
    values = _values(exporter)
    assert values["federation_rounds_reverted_total"] == 1
    assert values["federation_proximal_mu"] == 0.02


def test_a_data_set_named_all_does_not_hide_the_figure_over_all(record: RunRecord, tmp_path: Path) -> None:
    part = {"policy_loss": 9.0, "action_mse": 9.0, "frames": 1, "skipped_frames": 0}
    record.evaluated(3, {**_evaluation(1.0), "datasets": {"all": part, "other": part}})
    assert _scrape(tmp_path)['federation_policy_loss{dataset="all"}'] == 1.0


def test_a_node_shows_what_it_runs_on_and_what_it_left_out(record: RunRecord, tmp_path: Path) -> None:
    values = _scrape(tmp_path)
    assert (
        'federation_node_info{cameras="top, wrist",device="NVIDIA H100",flwr="",lerobot="",node="site-a",'
        'python="3.12.1",torch="2.11.0"}'
    ) in values
    assert values['federation_node_excluded_episodes{node="site-a"}'] == 1
    assert values['federation_node_fps{node="site-a"}'] == 30


def test_nodes_that_are_shut_out_count_until_they_join_again(record: RunRecord, tmp_path: Path) -> None:
    def shut_out() -> tuple[float, float]:
        values = _scrape(tmp_path)
        return values["federation_denied_nodes"], values['federation_node_suspended{node="site-a"}']

    def until() -> float:
        return _scrape(tmp_path)['federation_node_suspended_until_round{node="site-a"}']

    assert (*shut_out(), until()) == (0, 0, 0)
    for _ in range(2):  # asked again after its restart, refused again
        record.event("join_denied", node_id="5", reason="other versions")
    record.event("node_suspended", node="site-a", until_round=9, reason="3 updates in a row refused")
    assert (*shut_out(), until()) == (2, 1, 9)
    record.node_joined("site-a", FACTS)
    assert (*shut_out(), until()) == (1, 0, 0)
    record.node_joined("site-c", FACTS | {"node_id": "5"})
    assert shut_out() == (0, 0)
    record.event("join_denied", node_id="6", reason="other versions")
    record.event("node_suspended", node="site-a", reason="3 updates in a row refused")
    record.event("run_reopened")
    assert shut_out() == (0, 0)  # the new ServerApp asks all of them anew
    record.event("join_denied", node="site-d", node_id="7", reason="other versions")
    record.event("run_resumed", after_round=2, rounds_done_again=[], changed={})
    assert shut_out() == (1, 0)
    record.node_joined("site-d", FACTS | {"node_id": "8"})  # under a new key
    assert shut_out() == (0, 0)


def test_what_privacy_has_cost_is_shown_by_node_and_none_is_without_bound(tmp_path: Path) -> None:
    settings = {"privacy.mode": "local", "privacy.noise_multiplier": 2.0}
    record = RunRecord(tmp_path / "private", "run", parse_run_config(settings, "tests"))
    for name in ("site-a", "site-b", "site-c"):
        record.node_joined(name, FACTS)

    def spent(name: str) -> float:
        return _scrape(tmp_path / "private")[f'federation_node_privacy_epsilon{{node="{name}"}}']

    assert spent("site-a") == 0
    ledger = record.folder / LEDGER_FILE
    append_release(ledger, Release("run", 1, ("site-a", "site-b"), 2.0))
    append_release(ledger, Release("run", 1, ("site-b",), 1e-9))
    # Also in a round that is not complete, or never will be.
    assert spent("site-a") == pytest.approx(epsilon({2.0: 1}, 1e-5))
    assert (spent("site-b"), spent("site-c")) == (math.inf, 0)
    ledger.unlink()
    ledger.mkdir()
    assert spent("site-a") == math.inf
    RunRecord(tmp_path / "open", "run", RunConfig()).node_joined("site-a", FACTS)
    assert _scrape(tmp_path / "open")['federation_node_privacy_epsilon{node="site-a"}'] == math.inf


def test_the_run_written_to_last_is_shown(record: RunRecord, tmp_path: Path) -> None:
    exporter = Exporter(tmp_path)
    assert _values(exporter)["federation_round"] == 2
    RunRecord(tmp_path, "run-2", RunConfig()).event("run_started", run="run-2", num_rounds=20)
    os.utime(record.folder / "events.jsonl", (1, 1))
    values = _values(exporter)
    assert RUN_INFO.format("run-2") in values
    assert values["federation_round"] == 0


def test_the_phases_of_a_round_are_its_critical_path_and_add_up_to_its_duration() -> None:
    slow = CLIENT | {"reply_seconds": 11.0, "train_seconds": 5.0}
    entry = _entry(1, clients={"site-a": CLIENT, "site-b": slow})
    phases = round_phases(entry)
    assert list(phases) == list(PHASES)
    assert phases["train"] == 5.0
    assert phases["wait"] == pytest.approx(1.0)
    assert sum(phases.values()) == pytest.approx(sum(entry.seconds.values()))
    nobody = round_phases(_entry(1, clients={}, missing=["site-a", "site-b"]))
    assert nobody["wait"] == 12.0
    assert sum(nobody.values()) == pytest.approx(16.0)


def test_a_resumed_run_is_running_again(record: RunRecord, tmp_path: Path) -> None:
    record.event("run_failed", reason="killed")
    assert _scrape(tmp_path)['federation_run_state{state="failed"}'] == 1
    record.event("run_reopened")  # and waits for nodes
    record.event("waiting_for_nodes", joined=0, min_nodes=2, denied={})
    values = _scrape(tmp_path)
    assert values['federation_run_state{state="running"}'] == 1
    assert values["federation_waiting_for_nodes"] == 2
    record.event("run_resumed", after_round=2, rounds_done_again=[], changed={})
    assert _scrape(tmp_path)['federation_run_state{state="running"}'] == 1


def test_refused_updates_are_counted_by_reason(record: RunRecord, tmp_path: Path) -> None:
    _play_round(record, 3, 1.0, clients={}, refused={"site-a": "policy_loss = nan must be a finite number"})
    values = _scrape(tmp_path)
    assert values['federation_node_rejected_updates_total{node="site-a",reason="non_finite"}'] == 1
    assert values['federation_node_rejected_updates_total{node="site-a",reason="malformed"}'] == 0
    assert values["federation_rejected_updates"] == 1


class _Watch:
    def __init__(self, state: SuperLinkState) -> None:
        self.state = state


def test_superlinks_answer_is_shown_and_the_later_sign_of_life_counts(
    record: RunRecord, tmp_path: Path
) -> None:
    state = SuperLinkState(
        up=True,
        response_seconds=0.1,
        nodes={"online": 1, "offline": 1},
        runs={"running": 1},
        online={"site-a": True, "site-b": False},
        last_seen={"site-a": 4e9, "site-b": 1.0},
    )
    values = _scrape(tmp_path, superlink=_Watch(state))
    assert values["federation_superlink_up"] == 1
    assert values['federation_superlink_nodes{status="offline"}'] == 1
    assert values['federation_node_online{node="site-b"}'] == 0
    assert values['federation_node_last_seen_timestamp_seconds{node="site-a"}'] == 4e9
    assert values['federation_node_last_seen_timestamp_seconds{node="site-b"}'] > 1.7e9  # its reply
    down = _scrape(tmp_path, superlink=_Watch(SuperLinkState(up=False)))
    assert down["federation_superlink_up"] == 0
    assert not any("node_online" in name for name in down)


def test_a_superlink_that_is_not_there_is_down_and_no_error(tmp_path: Path) -> None:
    issue_all(tmp_path / "certs", hosts=[], sites=["site-a"])
    ca = tmp_path / "certs" / "superlink" / "ca.crt"
    state = ask_superlink(SuperLink("127.0.0.1:1", ca))
    assert not state.up
    assert "refused" in state.error


def test_a_superlink_that_accepts_and_says_nothing_is_down_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(superlink_state, "_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(SuperLinkWatch, "_watch", lambda _: None)
    caplog.set_level(logging.INFO, "so100")
    monkeypatch.setattr(logging.getLogger("so100"), "propagate", True)
    issue_all(tmp_path / "certs", hosts=[], sites=["site-a"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        watch = SuperLinkWatch(SuperLink(address, tmp_path / "certs" / "superlink" / "ca.crt"))
        watch.poll()
    assert not watch.state.up
    assert len({r for r in caplog.records if "does not answer" in r.getMessage()}) == 1  # said once
    monkeypatch.setattr(superlink_state, "ask_superlink", lambda *_: SuperLinkState(up=True))
    watch.poll()
    assert "answers again" in caplog.text


def test_certificates_show_when_they_expire(tmp_path: Path) -> None:
    issue_all(tmp_path / "certs", hosts=[], sites=["site-a"])
    folder = tmp_path / "certs" / "superlink"
    files = [folder / "ca.crt", folder / "server.crt", folder / "missing.crt"]
    values = _scrape(tmp_path, certificates=files)
    name = 'federation_certificate_expiry_timestamp_seconds{{certificate="{}"}}'
    assert values[name.format("ca")] > values[name.format("server")] > 1.7e9
    assert name.format("missing") not in values


def test_the_number_of_series_grows_with_nodes_and_not_with_rounds(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run", RunConfig())
    sizes = {}
    for nodes in (1, 11):
        for number in range(nodes):
            record.node_joined(f"site-{number}", FACTS)
        for number in (1, 2, 3):
            clients = {f"site-{index}": CLIENT for index in range(nodes)}
            _play_round(record, number, 1.0, clients=clients)
            count = len(_scrape(tmp_path))
            assert sizes.setdefault(nodes, count) == count
    assert (sizes[11] - sizes[1]) / 10 <= 40


def test_a_metric_that_the_catalogue_lacks_cannot_be_served() -> None:
    with pytest.raises(KeyError, match="federation_surprise"):
        Samples(CATALOGUE).add("surprise", 1.0)
    with pytest.raises(KeyError, match="node"):
        Samples(CATALOGUE).add("node_updates", 1.0)


def test_names_follow_prometheus_conventions() -> None:
    for spec in CATALOGUE:
        assert (spec.kind == "counter") == spec.name.endswith("_total"), spec.name
        assert not any(word in spec.name for word in ("_mb", "milli", "percent", "_minutes")), spec.name
        assert set(spec.labels) <= {
            *("run", "policy", "aggregation", "state", "phase", "direction", "dataset", "node", "reason"),
            *("status", "certificate", "python", "flwr", "lerobot", "torch"),
            *("download", "upload", "privacy", "device", "cameras"),
        }


def test_the_table_of_metrics_is_current() -> None:
    document = (REPOSITORY / "docker" / "prometheus" / "METRICS.md").read_text()
    assert document == markdown(), (
        "run: python -m server.monitoring.metrics_table > docker/prometheus/METRICS.md"
    )


def test_a_site_shows_its_progress_inside_a_round(tmp_path: Path) -> None:
    exporter = SiteExporter("site-a", tmp_path)
    assert list(_values(exporter)) == ['federation_site_scratch_free_bytes{node="site-a"}']
    progress = ProgressFile(tmp_path, round_=4, local_steps=30)
    progress.update(30, 0.5)
    values = _values(exporter)
    assert values['federation_site_round{node="site-a"}'] == 4
    assert values['federation_site_local_step{node="site-a"}'] == 30
    assert values['federation_site_policy_loss{node="site-a"}'] == 0.5
    assert values['federation_site_progress_timestamp_seconds{node="site-a"}'] > 1.7e9
    assert 'federation_site_gpu_utilisation_ratio{node="site-a"}' not in values
    progress.update(30, 0.5, {"gpu_utilisation": 0.9, "gpu_celsius": 61.0})
    values = _values(exporter)
    assert values['federation_site_gpu_utilisation_ratio{node="site-a"}'] == 0.9
    assert values['federation_site_gpu_temperature_celsius{node="site-a"}'] == 61
    (tmp_path / "progress.json").write_text("{")
    assert 'federation_site_round{node="site-a"}' not in _values(exporter)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outputs", "/nowhere"], "no such folder; name the one runs are kept in"),
        (["--outputs", ".", "--superlink", "x:1"], "SuperLink is verified with it"),
        (["--outputs", ".", "--port", "9"], "port 9 cannot be listened on"),
    ],
)
def test_bad_arguments_of_the_exporter_are_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("federation.metrics.start_http_server", refuse)
    assert server_main(["exporter", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_a_node_says_in_a_round_that_it_holds_now_is_shown(record: RunRecord, tmp_path: Path) -> None:
    record.node_changed("site-a", {"episodes": 77, "frames": 7700})
    values = _scrape(tmp_path)
    assert [value for name, value in values.items() if "node_episodes" in name and "site-a" in name] == [77]


def test_a_site_exporter_without_its_folder_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert site_main(["exporter", "--node", "site-a", "--scratch", "/nowhere"]) == 2
    assert "no such folder; name the SuperNode's" in capsys.readouterr().err


def test_the_record_holds_what_the_exporter_reads(record: RunRecord) -> None:
    events = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    assert next(e for e in events if e["event"] == "evaluated")["datasets"]


def test_after_a_change_of_the_hold_out_the_old_best_is_no_longer_shown(
    record: RunRecord, tmp_path: Path
) -> None:
    figures = {"action_mse": 1.0, "datasets": {}, "seconds": 0.1}
    record.event("evaluations_dropped", rounds=[0, 1, 2], reason="another hold-out")
    for round_, loss in ((0, 90.0), (1, 70.0)):
        record.event("evaluated", round=round_, policy_loss=loss, **figures)
    values = _scrape(tmp_path)
    assert values["federation_policy_loss_baseline"] == 90.0
    assert values["federation_policy_loss_best"] == 70.0


def test_a_run_that_waits_for_nodes_shows_how_many(record: RunRecord, tmp_path: Path) -> None:
    def waiting() -> float:
        return _scrape(tmp_path)["federation_waiting_for_nodes"]

    assert waiting() == 0
    record.event("waiting_for_nodes", joined=1, min_nodes=3, denied={})
    record.node_joined("site-c", FACTS)
    assert waiting() == 2
    record.event("waiting_ended")
    assert waiting() == 0
