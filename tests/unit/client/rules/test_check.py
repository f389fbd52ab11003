"""What a message may ask of the site by the owner's rules; who is connected at all."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app
from client.rules.check import check_day, check_rules, why_off
from client.rules.hours import Span
from client.rules.owner import RULES_VARIABLE, OwnerRules, RuleError
from client.rules.traffic import TRAFFIC_FILE, count_traffic, read_traffic
from federation import logs
from federation.errors import RejectionCode
from federation.messages import CONFIG, HEADER, UPDATE, WEIGHTS
from federation.settings import PrivacyConfig


def _hours(begin: int, end: int) -> str:
    now = datetime.now()
    return "-".join(f"{now + timedelta(hours=hours):%H:%M}" for hours in (begin, end))


@pytest.fixture
def rules_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower stamps a message with them
    monkeypatch.setenv(RULES_VARIABLE, str(tmp_path / "rules.toml"))
    (tmp_path / "scratch").mkdir()
    return tmp_path / "rules.toml"


def _message(kind: str = "train") -> Message:
    order = ConfigRecord({"run": "run", "round": 1, "undone": [], "proximal_mu": 0.0, "fingerprint": ""})
    weights = ArrayRecord({"000000": Array(np.zeros(1000, dtype=np.uint8))})
    content = {CONFIG: order, HEADER: ConfigRecord({"sha256": ""}), WEIGHTS: weights}
    return Message(RecordDict(content), 1, kind)


def _ask(folder: Path, work: Any, message: Message) -> Message:
    settings = {"name": "site-a", "dataset": str(folder / "data"), "scratch": str(folder / "scratch")}
    context: Any = SimpleNamespace(node_config=settings, run_config={})
    return app._answer(message, context, work)


@pytest.mark.parametrize("work", [app._join, app._train, app._deliver])
@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (f"hours = '{_hours(2, 3)}'", rf"rule hours = {_hours(2, 3)}: it is \d\d:\d\d here"),
        ("gigabytes-a-day = 1e-6", r"rule gigabytes-a-day = 1e-06: today 0.000 GB came and went"),
    ],
)
def test_what_breaks_a_rule_of_the_day_is_denied_by_name_in_both_logs(
    rule: str, why: str, work: Any, tmp_path: Path, rules_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    rules_file.write_text(rule)
    count_traffic(OwnerRules(), tmp_path / "scratch", received=1000)
    reply = _ask(tmp_path, work, _message())
    assert reply.error.code == RejectionCode.OWNER_RULE
    assert re.search(why, reply.error.reason)
    assert re.search(why, capsys.readouterr().err)


def test_an_update_that_does_not_fit_into_the_day_stays(
    tmp_path: Path, rules_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = ArrayRecord({"000000": Array(np.zeros(60_000, dtype=np.uint8))})
    monkeypatch.setattr(app, "answer_train_request", lambda *_: RecordDict({UPDATE: update}))
    rules_file.write_text("gigabytes-a-day = 2e-4")
    count_traffic(OwnerRules(), tmp_path / "scratch", received=100_000)
    assert not _ask(tmp_path, app._train, _message()).has_error()  # 160 of 200 kB
    reply = _ask(tmp_path, app._train, _message())
    assert "do not fit; this site is back tomorrow" in reply.error.reason
    assert json.loads((tmp_path / "scratch" / TRAFFIC_FILE).read_text())["used_up_at"] > 0
    rules_file.write_text("gigabytes-a-day = 1")
    assert not _ask(tmp_path, app._train, _message()).has_error()


def test_rules_that_cannot_be_read_deny_everything_and_show_no_path(tmp_path: Path, rules_file: Path) -> None:
    rules_file.write_text("hours = 'always'")
    reply = _ask(tmp_path, app._join, _message("query"))
    assert "hours = 'always': must be hours and minutes" in reply.error.reason
    assert str(tmp_path) not in reply.error.reason


def test_a_rule_that_stood_in_the_node_configuration_is_not_dropped_unseen(tmp_path: Path) -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    settings = {"name": "a", "dataset": "d", "scratch": str(tmp_path), "min-noise": "1.5"}
    context: Any = SimpleNamespace(node_config=settings, run_config={})
    reply = app._answer(_message("query"), context, app._join)
    assert "min-noise is a rule of rules.toml now: so100-site rules" in reply.error.reason


def test_inside_its_rules_a_site_takes_part_and_its_log_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    rules = OwnerRules(min_noise=1.0, hours=(Span(0, 24 * 60),), gigabytes_a_day=1.0)
    check_rules(rules, PrivacyConfig("local", noise_multiplier=1.0), tmp_path)
    assert "the run keeps this site's rules: min-noise = 1; hours = 00:00-24:00;" in capsys.readouterr().err
    check_day(rules, tmp_path)
    with pytest.raises(RuleError, match="min-noise"):
        check_rules(rules, PrivacyConfig("none"), tmp_path)


def test_who_is_not_connected(tmp_path: Path) -> None:
    file, scratch = tmp_path / "rules.toml", tmp_path
    assert why_off(file, scratch) == ""
    file.write_text(f"hours = '{_hours(-1, 1)}'")
    assert why_off(file, scratch) == ""
    file.write_text(f"hours = '{_hours(1, 2)}'")
    assert why_off(file, scratch) == f"rule hours = {_hours(1, 2)}"
    file.write_text("hours = 1")
    assert "must be hours such as" in why_off(file, scratch)
    file.write_text("gigabytes-a-day = 1")
    assert why_off(file, scratch) == ""
    day = read_traffic(OwnerRules(), scratch).day
    used_up = {"day": day, "received": 10**9, "sent": 0, "used_up_at": 1.0, "limit": 1.0}
    (scratch / TRAFFIC_FILE).write_text(json.dumps(used_up))
    assert why_off(file, scratch) == "rule gigabytes-a-day = 1 is used up for today"
    (scratch / TRAFFIC_FILE).write_text("")
    assert "cannot be read" in why_off(file, scratch)


def test_an_update_that_is_done_after_the_owners_hours_stays(
    tmp_path: Path, rules_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules_file.write_text(f"hours = '{_hours(-1, 1)}'")

    def train(*_: object) -> RecordDict:
        monkeypatch.setattr(OwnerRules, "now", lambda _: datetime.now() + timedelta(hours=2))
        return RecordDict({UPDATE: ArrayRecord()})

    monkeypatch.setattr(app, "answer_train_request", train)
    reply = _ask(tmp_path, app._train, _message())
    assert reply.error.code == RejectionCode.OWNER_RULE
    assert "rule hours" in reply.error.reason
