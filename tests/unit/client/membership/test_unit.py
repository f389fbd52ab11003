"""The unit of systemd --user: everything written out, and systemd's own word on it where there is one."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from client.cli import main
from client.membership import join
from client.membership.folder import SiteFolder
from client.membership.unit import unit_file, unit_text, write_unit
from federation.errors import FederationError


def test_join_with_systemd_writes_the_unit_and_says_how_it_starts(
    site: SiteFolder,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(join, "keep_running", None)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:8080/a b")
    monkeypatch.setenv("HF_TOKEN", "a token")
    (tmp_path / "d" / "meta").mkdir(parents=True)
    arguments = ["--data", str(tmp_path / "d"), "--unchecked", "--systemd", "--folder", str(site.path)]
    assert main(["join", str(file), *arguments]) == 0
    unit = tmp_path / "config" / "systemd" / "user" / "so100-lab-b.service"
    text = unit.read_text()
    assert f'ExecStart="{sys.executable}" "' in text
    assert f'so100-site" "join" "--unchecked" "--folder" "{site.path}"' in text
    assert f'Environment="PATH={Path(sys.executable).parent}{os.pathsep}' in text
    assert 'Environment="HTTPS_PROXY=http://proxy:8080/a b"' in text
    assert "a token" not in text
    assert stat.S_IMODE(unit.stat().st_mode) == 0o600
    printed = capsys.readouterr().out
    for words in (str(unit), "systemctl --user enable --now so100-lab-b", "loginctl enable-linger"):
        assert words in printed


def test_where_there_is_no_systemd_it_says_so(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(FederationError, match="there is none on darwin; so100-site join alone stays running"):
        write_unit(site, "lab-b")


def test_what_means_something_to_systemd_is_quoted(tmp_path: Path) -> None:
    text = unit_text(SiteFolder(tmp_path / 'a b"%h$x\\'), "lab-b")
    assert '/a b\\"%%h$$x\\\\"' in text


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_finds_no_fault_with_it(
    site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # without one it looks at nothing
    write_unit(site, "lab-b")
    command = ["systemd-analyze", "verify", "--user", str(unit_file("lab-b"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
