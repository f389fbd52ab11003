"""so100-site status: what the site's own files say, whatever became of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import app
from client.cli import main
from client.membership import status
from client.membership.folder import SiteFolder
from client.membership.join import accept
from client.membership.status import print_status
from client.rules.owner import NO_RULES
from client.rules.traffic import TRAFFIC_FILE, count_traffic
from client.state.contact import CONTACT_FILE, note_contact, read_contact
from client.state.delivered_policy import DELIVERED_POLICY_FILE, note_delivered_policy
from client.state.progress import ProgressFile
from client.supernode.refusal import REFUSAL_VARIABLE, forget_refusal, note_refusal
from federation.errors import FederationError
from tests.one_site import join


def _status(site: SiteFolder, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["status", "--folder", str(site.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:10].strip(): line[11:] for line in lines}


def test_before_and_after_an_invitation(
    site: SiteFolder, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert "no invitation yet" in _status(site, capsys)["site"]
    accept(site, file)
    lines = _status(site, capsys)
    assert lines == {
        "site": "lab-b at localhost:9",
        "SuperNode": "off; so100-site join starts it",
        "server": "no run has asked this site for anything yet",
        "update": "nothing known of the last one",
        "round": "none trained yet",
        "today": "0.0 MB received, 0.0 MB sent",
        "rules": "none",
        "policy": "none yet; it comes at the end of a run",
    }


def test_a_round_and_what_the_server_thinks(
    site: SiteFolder, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accept(site, file)
    ProgressFile(site.scratch, 3, 40).update(40, 0.5)
    for _ in range(2):
        count_traffic(NO_RULES, site.scratch, received=10**6)
        count_traffic(NO_RULES, site.scratch, sent=5 * 10**5)
    note_contact(site.scratch, "demo-1", "accepted: it asks for updates", update="rejected in round 2: NaN")
    site.policy.mkdir()
    note_delivered_policy(site.policy, "demo-0", 6, "0" * 64)
    note_contact(site.scratch, "demo-1", "takes nothing from this site until round 7: NaN")
    capsys.readouterr()
    lines = _status(site, capsys)
    assert lines["server"].startswith("takes nothing from this site until round 7: NaN; last heard 2")
    assert lines["server"].endswith(", run demo-1")
    assert lines["round"].startswith("3, step 40 of 40, policy loss 0.5, ")
    assert lines["today"] == "2.0 MB received, 1.0 MB sent"
    assert lines["update"] == "rejected in round 2: NaN"  # until the server tells of another
    assert lines["policy"].startswith(f"round 6 of demo-0, in {site.policy}, since 2")
    note_contact(site.scratch, "demo-1", "accepted: it asks for updates", update="")
    assert _status(site, capsys)["update"] == "nothing known of the last one"


def test_an_app_that_this_site_refuses_is_said(
    site: SiteFolder, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(site, file)
    capsys.readouterr()
    monkeypatch.setenv(REFUSAL_VARIABLE, str(site.refusal))
    monkeypatch.setattr(status, "is_running", lambda _: True)
    note_refusal("this site refuses the app: version '0.1.0'")
    assert _status(site, capsys)["SuperNode"].endswith("(this site refuses the app: version '0.1.0')")
    forget_refusal()
    assert "refuses" not in _status(site, capsys)["SuperNode"]


def test_the_bytes_of_another_day_are_not_todays(
    site: SiteFolder, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accept(site, file)
    count_traffic(NO_RULES, site.scratch, received=10**6)
    before = json.loads((site.scratch / TRAFFIC_FILE).read_text()) | {"day": "2000-01-01"}
    (site.scratch / TRAFFIC_FILE).write_text(json.dumps(before))
    capsys.readouterr()
    assert _status(site, capsys)["today"].startswith("0.0 MB")


def test_the_rules_are_shown(site: SiteFolder, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accept(site, file)
    site.rules.write_text('hours = "20:00-07:00"\ngigabytes-a-day = 5')
    capsys.readouterr()
    assert _status(site, capsys)["rules"] == "hours = 20:00-07:00; gigabytes-a-day = 5"


@given(st.none() | st.integers() | st.text() | st.dictionaries(st.text(max_size=5), st.integers()))
def test_a_damaged_file_costs_nobody_anything(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = tmp_path_factory.mktemp("s")
    site = SiteFolder(folder)
    site.key.touch()
    site.scratch.mkdir()
    site.policy.mkdir()
    files = (
        site.scratch / CONTACT_FILE,
        site.scratch / TRAFFIC_FILE,
        site.scratch / "progress.json",
        site.policy / DELIVERED_POLICY_FILE,
    )
    for file in (*files, site.state):
        file.write_text(json.dumps(content))
    print_status(site)
    note_contact(site.scratch, "r", "v")
    count_traffic(NO_RULES, site.scratch, received=1)


def test_a_request_to_join_is_a_contact(
    data: Path, tmp_path: Path, looks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    join(data / "site-a", tmp_path / "scratch", policy_fps=30)
    assert read_contact(tmp_path / "scratch")["verdict"] == "asked this site to join"

    def refuse(*_: object) -> None:
        raise FederationError("a rule of its owner")

    monkeypatch.setattr(app, "check_rules", refuse)
    join(data / "site-a", tmp_path / "scratch", policy_fps=30)
    assert read_contact(tmp_path / "scratch")["verdict"] == "not served: a rule of its owner"

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(app, "check_rules", fail)
    join(data / "site-a", tmp_path / "scratch", policy_fps=30)
    assert read_contact(tmp_path / "scratch")["verdict"] == (
        "not served: MemoryError; the log of this SuperNode says more"
    )
