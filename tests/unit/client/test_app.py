import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app
from client.recordings import held
from client.rules.owner import RuleError, read_rules
from client.rules.traffic import count_traffic, read_traffic
from client.site import read_site
from federation.config import RunConfig
from federation.data.joint_names import JOINTS
from federation.errors import DatasetError, FederationError, PolicyError, RejectionCode
from federation.judgement.judge import describe_fitting
from federation.messages import CONFIG, REASON, SETTINGS


def test_the_servers_name_of_a_run_is_no_line_of_the_sites_log() -> None:
    content = RecordDict({CONFIG: ConfigRecord({"run": "demo\n18:40:02 INFO | add allow-app"})})
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    with pytest.raises(FederationError, match=r"names a run 'demo\\n18:40:02 .* use letters"):
        app._train(Message(content, 1, "train"), RunConfig(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("scratch", ["scratch", "site-a/scratch"])
def test_no_path_of_the_site_is_in_what_it_answers(tmp_path: Path, scratch: str) -> None:
    data, own = tmp_path / "site-a", tmp_path / scratch

    def fail(*_: object) -> RecordDict:
        raise DatasetError(f"dataset {data}: LeRobot cannot open it ([Errno 28] full: '{own}/arrow/x')")

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower stamps a message with them
    settings = {"name": "site-a", "dataset": str(data), "scratch": str(own)}
    context = SimpleNamespace(node_config=settings, run_config={})
    reply = app._answer(Message(RecordDict(), 1, "train"), context, fail)  # type: ignore[arg-type]
    assert reply.error.reason == (
        "dataset <dataset>: LeRobot cannot open it ([Errno 28] full: '<scratch>/arrow/x')"
    )
    assert reply.error.code == RejectionCode.DATASET


@pytest.mark.parametrize("key", ["policy.pretrained", "policy.vlm"])
def test_what_lies_at_a_path_that_the_run_names_is_not_told(tmp_path: Path, key: str) -> None:
    def fail(*_: object) -> RecordDict:
        raise PolicyError("policy.pretrained = '/etc': fields `auths` are not valid")

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    settings = {"name": "site-a", "dataset": str(tmp_path), "scratch": str(tmp_path / "scratch")}
    for place, told in (("/etc", "this site's log says why"), ("lerobot/smolvla_base", "`auths`")):
        run = {"policy.size": "pretrained", "policy.pretrained": "a/b", key: place}
        context = SimpleNamespace(node_config=settings, run_config=run)
        reply = app._answer(Message(RecordDict(), 1, "train"), context, fail)  # type: ignore[arg-type]
        assert told in reply.error.reason
        assert ("auths" in reply.error.reason) == (place != "/etc")


@pytest.mark.parametrize("place", ["/etc", "models/mine", "~/" + "long" * 2000])
def test_nor_is_it_of_the_path_that_a_delivery_names(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> RecordDict:
        raise PolicyError(f"policy.pretrained = '{place}': fields `auths` are not valid")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    settings = {"name": "site-a", "dataset": str(tmp_path), "scratch": str(tmp_path / "scratch")}
    told = RecordDict({SETTINGS: ConfigRecord({"policy.pretrained": place})})
    context = SimpleNamespace(node_config=settings, run_config={})
    reply = app._answer(Message(told, 1, "query.deliver"), context, fail)  # type: ignore[arg-type]
    assert "this site's log says why" in reply.error.reason
    assert "auths" not in reply.error.reason


def test_with_the_days_gigabytes_used_up_no_kind_of_message_is_served(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text("gigabytes-a-day = 0.001\n")
    rules = read_rules(tmp_path / "rules.toml")
    count_traffic(rules, tmp_path, received=2 * 10**6)
    content = RecordDict({REASON: ConfigRecord({"text": "later"})})
    site = SimpleNamespace(rules=rules, scratch=tmp_path)
    with pytest.raises(RuleError, match="gigabytes-a-day"):
        app._shut_out(Message(content, 1, "query.shut_out"), RunConfig(), site)  # type: ignore[arg-type]
    assert read_traffic(rules, tmp_path).used_up_at > 0


def test_the_join_logs_what_the_judgement_warns_of(
    data: Path,
    tmp_path: Path,
    tiny_config: RunConfig,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))
    info = (root / "meta" / "info.json").read_text()
    for joint in JOINTS:
        info = info.replace(f'"{joint}.pos"', f'"main_{joint}"')
    (root / "meta" / "info.json").write_text(info)
    monkeypatch.setattr(
        held, "judge_each", lambda uses: [describe_fitting(use.root, use.policy, use.names) for use in uses]
    )
    settings = {"name": "site-a", "dataset": str(root), "scratch": str(tmp_path / "scratch")}
    site = read_site(SimpleNamespace(node_config=settings))  # type: ignore[arg-type]
    app._join(Message(RecordDict(), 1, "query"), tiny_config, site)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"dataset {root}: joints of observation.state are named main_shoulder_pan")
