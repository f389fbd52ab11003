"""Sites with a registered key that answer as none should: each costs its own part in a round, no more."""

from pathlib import Path

import pytest

from federation.config import RunConfig, parse_run_config
from server.run.recorded import read_metrics
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.faults.cluster import Fault, FaultyCluster, Outcome, events
from tests.integration.faults.rogue import UNREADABLE
from tests.integration.faults.table import write_table

pytestmark = pytest.mark.integration
# Each of these sites answers two rounds with what cannot be read; the last one's line is slow in round 2.
_UNREADABLE_SITES = ("site-d", "site-e", "site-f", "site-g")
_WAYS = list(UNREADABLE)
_PLANS = {
    "site-c": {"join": "not json"},
    **{
        site: {"1": _WAYS[number], "2": _WAYS[number + len(_UNREADABLE_SITES)]}
        for number, site in enumerate(_UNREADABLE_SITES)
    },
    "site-h": {"2": "slow"},
}


def _config() -> RunConfig:
    changes = {
        "run.name": "hostile",
        "federation.min_nodes": 6,  # all but the one that spoils its answer to the join
        "federation.quorum": 0.15,  # of six: one good update
        # Of what the honest site takes: so long may the one with the slow line take for its first round.
        "federation.straggler_factor": 5,
    }
    return parse_run_config(TINY | changes, "tests")


@pytest.fixture(scope="module")
def happened(certs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
    """The record and the events of a run of one honest site among six that are not."""
    outputs = tmp_path_factory.mktemp("hostile")
    sites = {"site-a": data / "site-a"}
    scratch = outputs / "scratch"
    with FaultyCluster(sites, data / "holdout", outputs, certs, free_port(), scratch) as cluster:
        cluster.start_rogues(data / "site-b", _PLANS, _config().policy)
        status = cluster.finish(_config())
        log = (cluster.logs / "superexec.log").read_text(errors="replace")
    assert status == "finished:completed", (events(outputs / "hostile"), log[-3000:])
    return read_metrics(outputs / "hostile"), events(outputs / "hostile")


def test_a_site_whose_answer_to_the_join_cannot_be_read_is_the_only_one_denied(
    happened: tuple[dict, list[dict]],
) -> None:
    _, seen = happened
    joined = sorted(event["node"] for event in seen if event["event"] == "node_joined")
    assert joined == ["site-a", *_UNREADABLE_SITES, "site-h"]
    (denied,) = [event for event in seen if event["event"] == "join_denied"]
    assert denied["reason"].startswith("its reply cannot be read")
    _write_row("reply: cannot be read", "at join", seen, denied, f"the site is refused: {denied['reason']}")


def test_an_update_that_cannot_be_read_is_refused_by_name_and_the_others_count(
    happened: tuple[dict, list[dict]],
) -> None:
    metrics, seen = happened
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]
    for entry in metrics["rounds"]:
        assert entry["aggregated"]
        assert "site-a" in entry["clients"]
        assert sorted(entry["refused"]) == list(_UNREADABLE_SITES)
    refusals = [event for event in seen if event["event"] == "update_rejected"]
    assert len(refusals) == len(UNREADABLE)
    assert all(event["reason"].startswith("its reply ") for event in refusals), refusals
    last = refusals[-1]
    _write_row(
        "reply: cannot be read", "in upload", seen, last, f"{last['node']} is refused: {last['reason']}"
    )


def test_a_slow_upload_holds_up_nobody(happened: tuple[dict, list[dict]]) -> None:
    metrics, seen = happened
    assert "site-h" in metrics["rounds"][0]["clients"]
    assert metrics["rounds"][1]["missing"] == ["site-h"]
    (missing,) = [event for event in seen if event["event"] == "reply_timed_out"]
    assert "its upload was under way" in missing["reason"]
    sees = f"no reply from site-h: {missing['reason']}"
    _write_row("line: upload of 200 bytes per second", "in upload", seen, missing, sees)


def _write_row(name: str, moment: str, seen: list[dict], struck: dict, sees: str) -> None:
    """A row of the matrix: how long after the reply was dropped the others' next step comes."""
    progress = {"node_joined", "update_received", "round_finished"}
    next_step = next(e["time"] for e in seen if e["event"] in progress and e["time"] > struck["time"])
    fault = Fault(name, moment, lambda _: True, lambda *_: None)
    write_table([Outcome(fault, 0, next_step - struck["time"], sees)])
