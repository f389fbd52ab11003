"""What of a folder of sample data may be replaced or removed: what was recorded here, and nothing else."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.data.simulated import SIMULATED_ROBOT, UNMARKED_ROBOT
from server.simulation import recording
from server.simulation.recording import SampleDataError, SampleParameters, ensure_sample_data
from server.simulation.sample_folder import remove
from tests import REPOSITORY

COUNTS = {"episodes": 2, "frames": 9, "attempts": 2}


def _dataset(root: Path, robot: str = UNMARKED_ROBOT, frames: int = 9) -> Path:
    (root / "meta").mkdir(parents=True)
    info = {"robot_type": robot, "total_episodes": 2, "total_frames": frames, "splits": {"train": "0:2"}}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sample data of a release before there was a mark."""

    def record(root: Path, parameters: object, datasets: dict, workers: int) -> dict:
        for name in datasets:
            _dataset(root / name)
        return dict.fromkeys(datasets, COUNTS)

    monkeypatch.setattr(recording, "_record_all", record)
    ensure_sample_data(tmp_path / "data" / "sample", SampleParameters())
    return tmp_path / "data" / "sample"


def _robots(sample: Path) -> set[str]:
    return {json.loads(file.read_text())["robot_type"] for file in sample.glob("*/meta/info.json")}


def test_sample_data_of_before_the_mark_gets_it_and_nothing_else_changes(sample: Path) -> None:
    before = json.loads((sample / "site-a" / "meta" / "info.json").read_text())
    assert ensure_sample_data(sample, SampleParameters()) is None
    assert _robots(sample) == {SIMULATED_ROBOT}
    after = json.loads((sample / "site-a" / "meta" / "info.json").read_text())
    assert after == before | {"robot_type": SIMULATED_ROBOT}
    assert [file.name for file in (sample / "site-a" / "meta").iterdir()] == ["info.json"]


def test_a_recording_under_the_name_of_ours_is_neither_marked_nor_replaced_nor_removed(sample: Path) -> None:
    shutil.rmtree(sample / "site-a")
    own = _dataset(sample / "site-a", frames=500) / "meta" / "info.json"
    before = own.read_text()
    assert ensure_sample_data(sample, SampleParameters()) is None
    with pytest.raises(SampleDataError, match="'site-a', which is not our sample data"):
        ensure_sample_data(sample, SampleParameters(seed=1))
    remove(sample)
    assert own.read_text() == before
    assert [entry.name for entry in sample.iterdir()] == ["site-a"]


def test_what_was_recorded_here_is_removed(sample: Path) -> None:
    for folder in (sample, sample.parent / "arm"):
        remove(folder)
    assert not sample.exists()


def test_a_link_and_a_folder_without_our_manifest_stay(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(sample)
    own = _dataset(tmp_path / "data" / "arm" / "site-a")
    for folder in (link, own.parent):
        remove(folder)
    assert own.is_dir()
    assert (sample / "site-a").is_dir()
    assert capsys.readouterr().out.count("stays: it was not recorded here") == 2


def test_make_clean_leaves_the_owners_recordings(sample: Path, tmp_path: Path) -> None:
    own = [_dataset(sample.parent / "my-arm" / "site-a"), _dataset(sample / "site-c", frames=77)]
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for package in ("federation", "server"):
        shutil.copytree(REPOSITORY / package, tmp_path / package)
    for build in (".venv/bin", ".pytest_cache", "outputs/run-1", "certs/generated"):
        (tmp_path / build).mkdir(parents=True)
    for _ in range(2):  # the second time without an environment
        subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert all((dataset / "meta" / "info.json").is_file() for dataset in own)
    assert not (sample / "site-a").exists()
    assert not (tmp_path / ".venv").exists()
    assert not (tmp_path / ".pytest_cache").exists()
    assert (tmp_path / "outputs" / "run-1").is_dir()
    assert (tmp_path / "certs" / "generated").is_dir()
