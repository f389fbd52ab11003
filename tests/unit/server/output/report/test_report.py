import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from federation.config import parse_run_config
from federation.privacy_budget import NOT_COVERED, epsilon
from federation.release_ledger import LEDGER_FILE, Release, append_release
from server.cli import main
from server.output.report.plots import draw
from server.output.report.report import write_report
from server.run.deliveries import note_delivery
from server.run.recorded import read_metrics
from server.run.records import RunRecord
from server.run.round_record import recorded_rounds
from tests.unit.server.monitoring.test_exporter import CLIENT, FACTS, _entry, _evaluation

pytestmark = pytest.mark.slow


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """Three rounds: a good one, one without site-b, one with a refused update and no evaluation."""
    config = parse_run_config({"training.batch_size": 2}, "tests")
    record = RunRecord(tmp_path, "run-1", config)
    record.event("join_denied", node_id="7", reason="dataset lab: lacks the camera <wrist>")
    record.node_joined("site-a", {**FACTS, "cameras": ["top", "wrist"]})
    record.node_joined("site-b", {**FACTS, "cameras": ["top", "wrist"]})
    record.evaluated(0, _evaluation(2.0))
    record.round_finished(_entry(1, evaluation=_evaluation(1.0)))
    record.round_finished(
        _entry(2, clients={"site-a": CLIENT}, missing=["site-b"], evaluation=_evaluation(0.5))
    )
    failed = {"clients": {}, "policy_loss": None, "aggregated": False, "update_norm": 0.0, "num_examples": 0}
    why = {"site-a": "policy_loss = nan must be a finite number"}
    record.round_finished(_entry(3, refused=why, missing=["site-b"], bytes={"down": 0, "up": 0}, **failed))
    return record


class _Page(HTMLParser):
    """The text of a page, and what it would load from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for key, value in attributes if key in ("src", "href")]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_first_screen_says_how_good_it_is(record: RunRecord) -> None:
    record.close("finished")
    text = _Page(write_report(record.folder).read_text()).text
    assert "0.5000 -75.0 % policy loss, 2.0000 before training" in text
    assert "0.5000 best policy loss, round 2" in text
    assert "3 of 20 rounds done" in text
    assert "finished" in text


def test_it_shows_nodes_time_and_bytes(record: RunRecord) -> None:
    text = _Page(write_report(record.folder).read_text()).text
    assert "site-a 2 24 4 1.5000 1.50 75 % 1.0 GB" in text
    assert "site-a NVIDIA H100 torch 2.11.0, python 3.12.1 top, wrist 3 1 9 30 site-b" in text
    assert "epsilon" not in text
    assert "wait" in text
    assert "all 1.2 kB 400 B" in text


def test_a_site_without_the_policy_is_told_from_those_that_have_it(record: RunRecord) -> None:
    sent = {"round": 3, "bytes": 400_000_000, "sha256": "ab", "seconds": 9.0, "time": "", "error": ""}
    note_delivery(record.folder, "site-a", sent)
    note_delivery(record.folder, "site-b", sent | {"sha256": "", "error": "no room on scratch"})
    text = _Page(write_report(record.folder).read_text()).text
    assert text.count("400.0 MB") == 2  # site-a, all
    assert "site-b no policy no room on scratch" in text
    assert "site-a no policy" not in text


def test_faults_stand_with_their_reason_and_all_their_rounds(record: RunRecord) -> None:
    page = write_report(record.folder).read_text()
    text = _Page(page).text
    assert "site-b missing no reply in time 2, 3" in text
    assert "site-a rejected policy_loss = nan must be a finite number 3" in text
    assert "join denied dataset lab: lacks the camera <wrist>" in text
    assert "<wrist>" not in page  # escaped


def test_what_a_site_says_of_itself_is_text_in_the_page(record: RunRecord) -> None:
    record.node_joined("site-c", {**FACTS, "cameras": ["top"], "device": "<script>alert(1)</script>"})
    record.close("finished")
    page = write_report(record.folder).read_text()
    assert "<script" not in page
    assert "<script>alert(1)</script>" in _Page(page).text


def test_a_node_that_was_left_out_stands_among_the_faults_also_if_the_last_line_is_torn(
    record: RunRecord,
) -> None:
    record.event("node_suspended", node="site-b", until_round=9, reason="3 updates in a row refused")
    with (record.folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1.0, "event": "node_joi')
    text = _Page(write_report(record.folder).read_text()).text
    assert "site-b suspended until round 9 3 updates in a row refused" in text


def test_a_site_whose_weight_was_capped_stands_among_the_faults(record: RunRecord) -> None:
    record.round_finished(_entry(4, evaluation=_evaluation(0.4), capped={"site-b": 400.0}))
    text = _Page(write_report(record.folder).read_text()).text
    assert "site-b capped it counted as 400 frames, the median of the sites 4" in text


def test_what_each_node_has_spent_of_its_privacy_is_shown_with_what_it_does_not_cover(tmp_path: Path) -> None:
    config = parse_run_config({"privacy.mode": "local"}, "tests")
    record = RunRecord(tmp_path, "run-1", config)
    for name in ("site-a", "site-b", "site-c"):
        record.node_joined(name, {**FACTS, "cameras": ["top", "wrist"]})
    record.evaluated(0, _evaluation(2.0))
    ledger = record.folder / LEDGER_FILE
    append_release(ledger, Release("run-1", 1, ("site-a", "site-b"), 2.0))
    append_release(ledger, Release("run-1", 1, ("site-b",), 1e-9))
    record.round_finished(_entry(1, evaluation=_evaluation(1.0)))
    text = _Page(write_report(record.folder).read_text()).text
    assert "epsilon beyond a million of the updates alone, at delta 1e-05, local noise" in text
    spent = epsilon({2.0: 1}, 1e-5)
    assert re.search(rf"site-a [^/]* 1.0 GB {spent:.2f} site-b", text)
    assert re.search(r"site-b [^/]* 1.0 GB beyond a million site-c [^/]* 0.00", text)
    assert NOT_COVERED in text


def test_a_failed_run_says_why(record: RunRecord) -> None:
    record._metrics["resumed"].append({"time": "2026-11-23T20:00:00+00:00", "after_round": 2})
    record.close("failed", "1 of 2 nodes joined within 300 s")
    text = _Page(write_report(record.folder).read_text()).text
    assert "1 of 2 nodes joined within 300 s" in text
    assert "server resumed at 2026-11-23T20:00:00+00:00 after 2" in text


def test_a_spike_and_the_way_back_are_named(record: RunRecord) -> None:
    record.round_finished(_entry(4, evaluation=_evaluation(9.0), rolled_back_to=2))
    record.close("finished")
    text = _Page(write_report(record.folder).read_text()).text
    assert "0.5000 -75.0 % policy loss, 2.0000 before training" in text
    assert "9.0000 reverted" in text
    assert "server reverted the policy loss spiked; weights of round 2 taken again 4" in text


def test_settings_other_than_the_default_stand_out(record: RunRecord) -> None:
    page = write_report(record.folder).read_text()
    bold = re.findall(r"<tr class=changed><td>([^<]+)<td>([^<]+)", page)
    assert bold == [("training.batch_size", "2")]
    assert "lerobot" in _Page(page).text  # the environment


def test_it_is_one_file_that_loads_nothing(record: RunRecord) -> None:
    page = write_report(record.folder).read_text()
    sources = _Page(page).sources
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "url(" not in page
    assert "@media print" in page
    plots = {file.name for file in (record.folder / "plots").iterdir()}
    assert plots == {"policy_loss.png", "client_losses.png", "update_norm.png", "time_by_phase.png"}


def test_the_report_of_a_run_without_rounds_says_so(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run-1", parse_run_config({}, "tests"))
    text = _Page(write_report(record.folder).read_text()).text
    assert "No round has been evaluated yet" in text
    assert "No node was missing, no update was rejected, nothing had to be resumed." in text


def test_many_nodes_are_drawn_without_a_legend_of_all(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run-1", parse_run_config({}, "tests"))
    names = [f"site-{number}" for number in range(30)]
    for name in names:
        record.node_joined(name, FACTS)
    record.evaluated(0, _evaluation(2.0))
    record.round_finished(_entry(1, clients=dict.fromkeys(names, CLIENT), evaluation=_evaluation(1.0)))
    assert "site-29" in write_report(record.folder).read_text()


def test_a_record_of_an_older_version_is_shown(record: RunRecord) -> None:
    file = record.folder / "federated_metrics.json"
    metrics = json.loads(file.read_text())
    del metrics["environment"]
    for entry in metrics["rounds"]:
        for client in entry["clients"].values():
            for key in [key for key in client if key.endswith("_seconds") or "memory" in key]:
                del client[key]
    file.write_text(json.dumps(metrics))
    assert "It was not recorded." in write_report(record.folder).read_text()


def test_a_folder_that_is_no_run_is_one_clear_line(tmp_path: Path, capsys) -> None:
    assert main(["report", tmp_path.name, "--outputs", str(tmp_path.parent)]) == 2
    assert "name a run's folder" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "lines"), [(2, 2), (8, 8), (50, 3)])
def test_plots_of_many_nodes_have_their_mean_and_range(tmp_path: Path, count: int, lines: int) -> None:
    record = RunRecord(tmp_path, "run-1", parse_run_config({}, "tests"))
    names = [f"site-{number:02}" for number in range(count)]
    for name in names:
        record.node_joined(name, {**FACTS, "cameras": ["top"]})
    record.evaluated(0, _evaluation(2.0))
    for round_ in (1, 2):
        clients = {name: {**CLIENT, "policy_loss": 1.0 + n} for n, name in enumerate(names)}
        record.round_finished(_entry(round_, clients=clients))
    metrics = read_metrics(record.folder)
    figure = draw("client_losses", metrics, recorded_rounds(metrics))
    (axes,) = figure.axes
    assert len(axes.lines) == lines
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == (names if count <= 8 else ["from least to most", "mean of 50 nodes"])
    page = _Page(write_report(record.folder).read_text()).text
    assert ("least" in page.partition("weights down")[2]) == (count > 12)
