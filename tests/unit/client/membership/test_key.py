"""so100-site key: made here, shown as one public line, replaced on request."""

import os
import stat
from pathlib import Path

import pytest

from client.cli import main
from client.membership.folder import SiteFolder, default_folder
from client.membership.key import print_key, read_own_key
from federation.site_key import read_key_line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "share" / "site"


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_the_line_is_public_and_the_key_is_its_owners_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0)
    try:
        assert main(["key", "lab-b", "--folder", str(folder)]) == 0
    finally:
        os.umask(before)
    line = _line(capsys)
    assert line.split()[2] == "lab-b"
    assert read_key_line(line) == read_own_key(SiteFolder(folder))
    private = folder / "node.key"
    assert [path.name for path in folder.iterdir()] == ["node.key"]
    assert (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(private.stat().st_mode)) == (0o700, 0o600)
    assert not any(part in line for part in private.read_text().splitlines())


def test_a_key_that_is_there_is_shown_again_and_never_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_key(folder)
    line, content = _line(capsys), (folder / "node.key").read_bytes()
    assert len(line.split()) == 3
    assert main(["key", "--folder", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == line
    assert "was made before and stays; --new makes another" in captured.err
    assert (folder / "node.key").read_bytes() == content


def test_a_new_key_leaves_nothing_of_the_old_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_key(folder)
    old = (folder / "node.key").read_bytes()
    for name in ("invitation.json", "ca.crt"):
        (folder / name).write_text("of the old key")
    assert main(["key", "--new", "--folder", str(folder)]) == 0
    assert [path.name for path in folder.iterdir()] == ["node.key"]
    assert (folder / "node.key").read_bytes() != old
    first, second = capsys.readouterr().out.splitlines()
    assert first != second


def test_bad_names_and_damaged_keys_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "Lab B", "--folder", str(folder)]) == 2
    assert capsys.readouterr().err.startswith("error: site name 'Lab B'")
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "node.key").write_text("no key")
    assert main(["key", "--folder", str(folder)]) == 2
    assert "cannot be read as an OpenSSH key; so100-site key --new" in capsys.readouterr().err


def test_the_folder_of_a_site_is_one_known_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_folder() == tmp_path / ".local" / "share" / "so100-federation"
    monkeypatch.setenv("XDG_DATA_HOME", "/data/mine")
    assert default_folder() == Path("/data/mine/so100-federation")
