"""A site elsewhere, over TLS: its key is made there, and seen nowhere else; its owner sees what it does."""

import re
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from certs.issue import issue_all
from client.doctor.connection import check_superlink
from client.membership.folder import SiteFolder
from client.membership.key import read_own_key
from federation.config import parse_run_config
from federation.invitation import read_invitation, spell_authority
from federation.policy.folder import policy_digest
from server.cli import main
from server.deploy.local_cluster import LocalCluster
from server.run.deliveries import DELIVERIES_FILE
from server.run.recorded import read_metrics
from server.superlink.control import RefusedError, online_sites, register_supernode, run_status, submit_run
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.membership import Owner, find_secret, wait_for
from tests.synthetic import as_format_2, record_dataset

pytestmark = pytest.mark.integration

RUN = TINY | {"run.num_rounds": 1, "run.name": "one", "run.deliver": "end", "federation.min_nodes": 2}


def _invite(certs: Path, line: str, port: int, capsys: pytest.CaptureFixture[str]) -> str:
    arguments = ["--key", line, "--superlink", f"localhost:{port}"]
    operator = ["--certs", str(certs), "--control", f"127.0.0.1:{port}"]
    assert main(["invite", "lab-b", *arguments, *operator]) == 0
    return capsys.readouterr().out


def test_a_site_joins_with_its_own_key_trains_and_never_comes_again_once_that_is_revoked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certs, port, log = tmp_path / "certs", free_port(), tmp_path / "lab-b.log"
    issue_all(certs, hosts=[], sites=["site-a"])
    owner = Owner(tmp_path / "home" / "lab-b", data / "site-b")
    kitchen = record_dataset(
        tmp_path / "kitchen", episodes=2, frames=20, cameras=("phone", "hand"), seed=7, size=(48, 48)
    )
    before = {file: file.stat().st_mtime_ns for file in as_format_2(kitchen).rglob("*")}
    site = SiteFolder(owner.folder)
    sites = {"site-a": data / "site-a"}
    arguments = (data / "holdout", tmp_path / "outputs", certs, port, tmp_path / "s")
    with LocalCluster(sites, *arguments) as cluster, ExitStack() as stack:
        stack.callback(owner.stop)
        mail = owner.run("key", "lab-b")
        mangled = "> " + mail.replace(" ", "\n> ") + "-- \nAnn"
        said = _invite(certs, mangled, port, capsys)
        assert "SuperLink: lab-b may join" in said
        sent = certs / "invited" / "lab-b" / "lab-b.invitation.json"
        digits = spell_authority(read_invitation(sent).authority)
        assert digits in said
        invitation = Path(shutil.copy(sent, tmp_path))

        cameras = ["--camera-names", "", "--camera-names", "top=phone,wrist=hand"]
        both = ["--data", str(owner.dataset), "--data", str(kitchen), *cameras]
        node = owner.start(log, "join", str(invitation), *both)
        wait_for(lambda: len(online_sites(cluster.superlink)) == 2, log)
        assert digits in log.read_text()
        assert "this site is ready" in log.read_text()
        checks = check_superlink("localhost", port, site.authority)
        assert [(check.level, check.what) for check in checks] == [
            *(("ok", what) for what in ("connection", "TLS", "health", "clock"))
        ]

        assert "paused" in owner.run("pause")
        wait_for(lambda: len(online_sites(cluster.superlink)) == 1, log)
        owner.run("resume")
        wait_for(lambda: len(online_sites(cluster.superlink)) == 2, log)

        places = [certs, cluster.logs.parent, tmp_path / "outputs", log, invitation, owner.said, said]
        assert find_secret(site.key, [owner.folder]) == [str(site.key)]
        assert find_secret(site.key, places) == []

        assert main(["revoke", "lab-b", "--certs", str(certs), "--control", f"127.0.0.1:{port}"]) == 0
        assert "SuperLink: lab-b is revoked" in capsys.readouterr().out
        wait_for(lambda: "was revoked" in site.state.read_text(), log)
        (revoked,) = (certs / "revoked").iterdir()
        assert sorted(file.name for file in revoked.iterdir()) == ["lab-b.invitation.json", "node.key.pub"]
        with pytest.raises(RefusedError, match="was revoked, and is taken no second time"):
            register_supernode(cluster.superlink, read_own_key(site).line, "lab-b")
        node.send_signal(signal.SIGTERM)
        assert node.wait(240) == 0

        said = _invite(certs, owner.run("key", "lab-b", "--new"), port, capsys)
        assert "SuperLink: lab-b may join" in said
        again = owner.start(log, "join", str(shutil.copy(sent, tmp_path)), "--unchecked")
        wait_for(lambda: len(online_sites(cluster.superlink)) == 2, log)
        run = submit_run(cluster.superlink, parse_run_config(RUN, "test"))
        wait_for(lambda: run_status(cluster.superlink, run).startswith("finished"), log, 600)
        assert run_status(cluster.superlink, run) == "finished:completed"
        status = owner.run("status")
        assert "SuperNode  running since" in status
        assert "accepted: it sent the policy; last heard" in status
        assert "round      1, step 3 of 3" in status
        (received,) = re.findall(r"([\d.]+) MB received, 0.1 MB sent", status)
        assert 1.4 < float(received) < 1.8  # 0.9 of them the app
        assert "update     accepted in round 1" in status
        assert f"policy     round 1 of one, in {site.policy}" in status
        shutil.rmtree(site.policy)
        (tmp_path / "outputs" / "one" / DELIVERIES_FILE).unlink()  # as of one that was off
        operator = ["--outputs", str(tmp_path / "outputs"), "--certs", str(certs)]
        assert main(["deliver", "one", "--control", f"127.0.0.1:{port}", *operator]) == 0
        assert "lab-b: has the policy of round 1 now" in capsys.readouterr().out
        exported = policy_digest(tmp_path / "outputs" / "one" / "pretrained_model")
        assert policy_digest(site.policy) == exported
        assert f"both are in {site.personal}; let the arm run" in owner.run("personalise", "--steps", "3")
        metrics = read_metrics(tmp_path / "outputs" / "one")
        assert metrics["nodes"]["lab-b"]["episodes"] == 5
        assert metrics["nodes"]["lab-b"]["cameras"] == ["top=top/phone", "wrist=wrist/hand"]
        assert metrics["rounds"][0]["clients"]["lab-b"]["frames"] == 160
        assert before == {file: file.stat().st_mtime_ns for file in kitchen.rglob("*")}
        told = [file.read_bytes() for file in (tmp_path / "outputs").rglob("*") if file.is_file()]
        assert not [content for content in told if b"kitchen" in content]
        assert str(data / "site-a") in owner.run("data", "--add", str(data / "site-a"))
        assert str(data / "site-a") not in owner.run("data", "--remove", str(data / "site-a"))
        processes = [psutil.Process(again.pid), *psutil.Process(again.pid).children(recursive=True)]
        owner.run("leave")
        assert again.wait(240) == 0
        _, left = psutil.wait_procs(processes, timeout=240)
        assert left == []
        assert policy_digest(site.policy) == exported  # the owner's, also without the federation
