"""so100-site data: the list that every round reads."""

from pathlib import Path
from typing import Any

import pytest

from client.cli import main
from client.membership import recordings
from client.membership.folder import SiteFolder
from client.membership.join import write_settings
from client.recordings.sources import Source, read_list
from federation.errors import DatasetError
from federation.invitation import Invitation
from federation.key_files import replace


@pytest.fixture
def folders(
    site: SiteFolder, invitation: Invitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    """Two recordings; the site has the first."""
    made = [tmp_path / name for name in ("one", "two")]
    for folder in made:
        (folder / "meta").mkdir(parents=True)
    replace(site.invitation, invitation.write())
    write_settings(site, invitation, [Source(str(made[0]))], {})
    return made


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(recordings, "judge_recordings", lambda *arguments: calls.append(arguments))
    return calls


def _data(site: SiteFolder, *arguments: object) -> int:
    return main(["data", *map(str, arguments), "--folder", str(site.path)])


def test_one_is_added_once_it_is_judged_and_another_removed(
    site: SiteFolder,
    invitation: Invitation,
    folders: list[Path],
    judged: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = folders
    assert _data(site) == 0
    assert capsys.readouterr().out == f"{one}\n"
    assert _data(site, "--add", two, "--camera-names", "top=phone") == 0
    added = Source(str(two), {"top": "phone"})
    assert judged == [([added], invitation.expects.as_policy(), site.scratch)]
    assert capsys.readouterr().out == f"{one}\n{two}  top=phone\n"
    assert read_list(site.recordings) == (Source(str(one)), added)
    (one / "meta").rmdir()  # a disk that is gone can be taken off the list
    assert _data(site, "--remove", one) == 0
    assert read_list(site.recordings) == (added,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--add", "ONE"], "is named twice"),
        (["--add", "TWO", "--weight", "2"], "weight: 1 given for 2 recordings"),
        (["--add", "nowhere"], "no dataset there"),
        (["--remove", "TWO"], "--remove TWO: is none of"),
        (["--remove", "ONE"], "no recording would be left"),
    ],
)
def test_what_cannot_be_changes_nothing(
    arguments: list[str],
    message: str,
    site: SiteFolder,
    folders: list[Path],
    judged: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = site.recordings.read_bytes()
    paths = {"ONE": str(folders[0]), "TWO": str(folders[1])}
    assert _data(site, *(paths.get(word, word) for word in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.replace("TWO", paths["TWO"]) in line
    assert site.recordings.read_bytes() == before


def test_one_that_cannot_be_trained_on_is_not_added(
    site: SiteFolder, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DatasetError("dataset two: no")

    monkeypatch.setattr(recordings, "judge_recordings", refuse)
    before = site.recordings.read_bytes()
    assert _data(site, "--add", folders[1]) == 2
    assert site.recordings.read_bytes() == before
