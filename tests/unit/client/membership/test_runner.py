"""The SuperNode is started again when it ends, and ends when its owner wants that."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from client.cli import main
from client.membership.folder import SiteFolder
from client.membership.join import accept
from client.membership.runner import is_running, wish_of
from federation.release_ledger import LEDGER_FILE
from tests import REPOSITORY

pytestmark = pytest.mark.slow

# Its SuperNode starts a child of its own, says so, and stays.
_PROGRAM = """
import sys
from pathlib import Path
from client.membership import runner
from client.membership.folder import SiteFolder

node = (
    "import os, subprocess, sys, time; from pathlib import Path;"
    "child = subprocess.Popen(['sleep', '600']);"
    "print(os.getpid(), child.pid, file=open(sys.argv[1], 'a'), flush=True); time.sleep(600)"
)
started = sys.argv[2]
runner.supernode_command = lambda *_: [sys.executable, "-c", node, started]
runner._FIRST_WAIT_SECONDS = 0.1
sys.exit(runner.keep_running(SiteFolder(Path(sys.argv[1])), "s:1"))
"""


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A line for each SuperNode that was started: its process and that of its child."""
    return tmp_path / "started"


@pytest.fixture
def runner(site: SiteFolder, file: Path, started: Path) -> Iterator["subprocess.Popen[bytes]"]:
    accept(site, file)
    command = [sys.executable, "-c", _PROGRAM, str(site.path), str(started)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        _wait_for(lambda: len(_lines(started)) == 1)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(240)
        for line in _lines(started):
            for pid in map(int, line.split()):
                assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def _state(site: SiteFolder) -> dict[str, object]:
    return json.loads(site.state.read_text())


def test_a_supernode_that_dies_is_started_again_and_leaves_no_child(
    runner: "subprocess.Popen[bytes]", site: SiteFolder, started: Path
) -> None:
    node, child = map(int, _lines(started)[0].split())
    site.refusal.write_text("SuperLink refuses this site's signature: its key was revoked")
    os.kill(node, signal.SIGKILL)
    _wait_for(lambda: len(_lines(started)) == 2)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert not site.refusal.exists()
    _wait_for(lambda: _state(site)["state"] == "running")
    assert _state(site)["restarts"] == 1


def test_a_pause_lasts_until_it_is_lifted(
    runner: "subprocess.Popen[bytes]", site: SiteFolder, started: Path
) -> None:
    folder = ["--folder", str(site.path)]
    assert main(["pause", *folder]) == 0
    assert _state(site)["state"] == "paused"
    assert is_running(site)
    assert main(["resume", *folder]) == 0
    _wait_for(lambda: len(_lines(started)) == 2)


def test_the_owners_rules_keep_it_off_and_let_it_back(
    runner: "subprocess.Popen[bytes]", site: SiteFolder, started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now()
    closed = f"{now + timedelta(hours=1):%H:%M}-{now + timedelta(hours=2):%H:%M}"
    node, _ = map(int, _lines(started)[0].split())
    site.rules.write_text(f'hours = "{closed}"')
    _wait_for(lambda: not psutil.pid_exists(node))
    _wait_for(lambda: _state(site)["state"] == "off by the owner's rules")
    assert _state(site)["why"] == f"rule hours = {closed}"
    site.rules.write_text("hours = 1")  # halfway through typing
    _wait_for(lambda: "must be hours" in str(_state(site)["why"]))
    assert len(_lines(started)) == 1
    site.rules.unlink()
    _wait_for(lambda: len(_lines(started)) == 2)


def test_leaving_ends_it_and_keeps_nothing_but_the_count_of_privacy(
    runner: "subprocess.Popen[bytes]", site: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    larger_disk = site.path.with_name("larger disk")
    larger_disk.mkdir()
    (site.scratch / "samples").symlink_to(larger_disk)
    (site.scratch / LEDGER_FILE).touch()
    assert main(["leave", "--folder", str(site.path)]) == 0
    assert runner.wait(240) == 0
    assert "so100-server revoke lab-b" in capsys.readouterr().out
    left = {str(path.relative_to(site.path)) for path in site.path.rglob("*") if path.is_file()}
    assert left == {"lock", f"scratch/{LEDGER_FILE}"}


def test_leaving_that_fails_can_be_gone_on_with_or_taken_back(
    site: SiteFolder, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accept(site, file)
    (site.scratch / "samples").mkdir()

    def fail(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    folder = ["--folder", str(site.path)]
    with monkeypatch.context() as patch:
        patch.setattr("client.membership.leave.shutil.rmtree", fail)
        assert main(["leave", *folder]) == 2
        assert "samples cannot be removed (Permission denied)" in capsys.readouterr().err
        assert site.key.exists()
    joined: list[str] = []
    monkeypatch.setattr("client.membership.join.keep_running", lambda *_: joined.append(wish_of(site)) or 0)
    (site.path.parent / "set" / "meta").mkdir(parents=True)
    data = ["--data", str(site.path.parent / "set")]
    assert main(["join", *folder, *data, "--unchecked"]) == 0
    assert joined == [""]
    assert main(["leave", *folder]) == 0
    assert not site.key.exists()


def test_a_folder_has_one_runner(
    runner: "subprocess.Popen[bytes]", site: SiteFolder, started: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(site.path), str(started)]
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "runs already" in second.stderr
    assert len(_lines(started)) == 1


@pytest.mark.parametrize("command", ["pause", "resume", "leave"])
def test_where_there_is_no_site_it_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} holds no site; so100-site key begins one\n"
