import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from federation import files
from federation.files import (
    fingerprint,
    folder_of_this_process,
    read_json_object,
    remove_unfinished,
    write_atomically,
    write_folder,
    write_json,
)
from tests import REPOSITORY

_KILLED_AFTER = """
import os, signal, sys
from pathlib import Path
from federation.files import write_atomically, write_folder

def link(staging):
    os.link(sys.argv[2], staging)
    os.kill(os.getpid(), signal.SIGKILL)

def fill(staging):
    (staging / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)

kind, _, target = sys.argv[1:]
write_atomically(Path(target), link) if kind == "file" else write_folder(Path(target), fill)
"""


def _kill_inside(kind: str, source: Path, target: Path) -> None:
    """Write `target` in a process of its own that is killed before the file or folder is moved into place."""
    command = [sys.executable, "-c", _KILLED_AFTER, kind, str(source), str(target)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, {"a": float("nan")})

    def torn(staging: Path) -> None:
        staging.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, torn)
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_write_linked_is_never_written_through(tmp_path: Path) -> None:
    source, target = tmp_path / "round_2", tmp_path / "best"
    source.write_text("of round 2")
    _kill_inside("file", source, target)
    assert not target.exists()
    assert source.stat().st_nlink == 2  # the litter is there
    write_atomically(target, lambda staging: staging.write_text("of round 3"))
    assert (source.read_text(), target.read_text()) == ("of round 2", "of round 3")
    assert sorted(tmp_path.iterdir()) == [target, source]


def test_a_file_takes_its_mode_from_the_umask(tmp_path: Path) -> None:
    write_json(tmp_path / "ours", {}, durable=False)
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    _kill_inside("folder", folder, folder)
    assert not folder.exists()
    write_folder(folder, lambda staging: (staging / "first").touch())
    write_folder(folder, lambda staging: (staging / "second").touch())
    assert [path.name for path in folder.iterdir()] == ["second"]

    def torn(staging: Path) -> None:
        (staging / "third").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(folder, torn)
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_moved_into_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "policy"
    write_folder(folder, lambda staging: (staging / "first").touch())
    rename = Path.rename

    def fail_once(source: Path, target: Path) -> Path:
        if target == folder:
            monkeypatch.undo()
            raise OSError("no")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="no"):
        write_folder(folder, lambda staging: (staging / "second").touch())
    assert [path.name for path in folder.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [folder]


def test_the_folder_of_a_process_that_was_first_stays(tmp_path: Path) -> None:
    folder = tmp_path / "vlm"

    def fill(staging: Path) -> None:
        (staging / "of-the-second").touch()
        folder.mkdir()
        (folder / "of-the-first").touch()

    write_folder(folder, fill, replace=False)
    assert [path.name for path in folder.iterdir()] == ["of-the-first"]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_another_process_still_writes_is_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "x"

    def write(staging: Path) -> None:
        write_json(file, "of the other")
        remove_unfinished(tmp_path)
        staging.write_text("mine")

    write_atomically(file, write)
    assert file.read_text() == "mine"


def test_a_staging_folder_that_was_taken_for_litter_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = files.tempfile.mkdtemp, []

    def taken(**options: object) -> str:
        made.append(make(**options))
        if len(made) == 1:
            remove_unfinished(tmp_path)
        return made[-1]

    monkeypatch.setattr(files.tempfile, "mkdtemp", taken)
    write_json(tmp_path / "x", 1)
    assert len(made) == 2
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[1]", b"null"])
def test_what_is_no_json_object_is_read_as_an_empty_one(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "facts.json"
    if content is not None:
        file.write_bytes(content)
    assert read_json_object(file) == {}
    write_json(file, {"a": 1})
    assert read_json_object(file) == {"a": 1}


def test_the_folder_of_a_process_that_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from federation.files import folder_of_this_process\n"
        "print(folder_of_this_process(Path(sys.argv[1]) / 'app'), flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        mine = folder_of_this_process(tmp_path / "app")
        assert theirs.is_dir()
        process.kill()
    next_one = folder_of_this_process(tmp_path / "app")
    assert set(tmp_path.iterdir()) == {mine, next_one}


def test_what_lies_behind_a_link_is_in_the_fingerprint_and_what_is_hidden_is_not(tmp_path: Path) -> None:
    data, disk = tmp_path / "dataset", tmp_path / "disk" / "data"
    disk.mkdir(parents=True)
    data.mkdir()
    (disk / "file-000.parquet").write_text("before")
    (data / "data").symlink_to(disk)
    (disk / "up").symlink_to(tmp_path)  # no way round without an end
    before = fingerprint(data)
    (data / ".DS_Store").write_text("a look at it")
    (data / ".git").mkdir()
    (data / ".git" / "index").write_text("status")
    assert fingerprint(data) == before
    (disk / "file-000.parquet").write_text("other, and longer")
    assert fingerprint(data) != before
