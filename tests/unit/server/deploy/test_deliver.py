"""so100-server deliver: what is submitted, what is refused before, and what is said of each site."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from federation.config import RunConfig, parse_run_config
from federation.errors import FederationError
from server.deploy import deliver
from server.deploy.deliver import deliver_policy, deliver_run
from server.run.deliveries import note_delivery
from server.run.records import RunRecord
from server.superlink.control import ControlError, SuperLink

LINK = SuperLink("s:1", Path("ca.crt"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of four sites."""
    record = RunRecord(tmp_path, "run-1", parse_run_config({"run.name": "run-1", "run.seed": 5}, "tests"))
    for site in ("site-a", "site-b", "site-c", "site-d"):
        record.node_joined(site, {})
    record.close("finished")
    return record.folder


@pytest.fixture
def submitted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """What is submitted; the sites b and c answer then."""
    runs: list[RunConfig] = []

    def submit(_: object, config: RunConfig) -> str:
        runs.append(config)
        note_delivery(folder, "site-b", {"round": 6, "error": ""})
        note_delivery(folder, "site-c", {"round": 6, "error": "no room"})
        return "17"

    statuses = ["running", "finished:completed"]
    monkeypatch.setattr(deliver, "_POLL_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(deliver, "find_active_run", lambda *_: None)
    monkeypatch.setattr(deliver, "submit_run", submit)
    monkeypatch.setattr(deliver, "run_status", lambda *_: statuses.pop(0) if statuses[1:] else statuses[0])
    return runs


def test_a_run_is_submitted_that_only_delivers_and_each_site_has_a_line(
    folder: Path, submitted: list[RunConfig]
) -> None:
    note_delivery(folder, "site-a", {"round": 6, "error": ""})
    lines: list[str] = []
    deliver_run(LINK, folder.parent, "run-1", lines.append)
    ((run),) = submitted
    assert (run.run.name, run.run.deliver, run.run.seed, run.run.resume) == ("run-1", "only", 5, False)
    assert lines == [
        "site-a: is not online; it got the policy before",
        "site-b: has the policy of round 6 now",
        "site-c: not delivered: no room",
        "site-d: is not online; it gets the policy when it joins the next run",
    ]


def test_what_cannot_be_delivered_is_refused_before_anything_is_submitted(
    folder: Path, submitted: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    RunRecord(folder.parent, "run-2", RunConfig())
    with pytest.raises(FederationError, match="run-2 has not finished"):
        deliver_run(LINK, folder.parent, "run-2", print)
    with pytest.raises(FederationError, match=r"run-3.*name a run's folder"):
        deliver_run(LINK, folder.parent, "run-3", print)
    monkeypatch.setattr(
        deliver, "find_active_run", lambda *_: ("16", parse_run_config({"run.name": "run-9"}, "t"))
    )
    with pytest.raises(FederationError, match="run run-9 is active"):
        deliver_run(LINK, folder.parent, "run-1", print)
    assert submitted == []


def test_a_delivery_that_fails_as_a_whole_names_where_the_reason_is(
    folder: Path, submitted: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "run_status", lambda *_: "finished:failed")
    with pytest.raises(FederationError, match=r"not delivered \(finished:failed\): .*server.log"):
        deliver_run(LINK, folder.parent, "run-1", print)


def test_without_an_address_the_run_container_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def start(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", start)
    assert deliver_policy("run-1", Path("outputs"), Path("certs"), None) == 3
    assert commands == [["docker", "compose", "run", "--rm", "--no-deps", "run", "--deliver", "run-1"]]

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(ControlError, match="--control host:port"):
        deliver_policy("run-1", Path("outputs"), Path("certs"), None)
