import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from federation.data.cameras import CameraChoice
from federation.data.description import DatasetDescription, describe_dataset
from federation.errors import DatasetError
from federation.judgement import kept_description as module
from federation.judgement.kept_description import kept_description
from tests.synthetic import record_dataset

pytestmark = pytest.mark.slow

CHOICE = CameraChoice(["top", "wrist"])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of which the last episode is excluded."""
    root = record_dataset(tmp_path_factory.mktemp("recorded") / "dataset", episodes=6, frames=20)
    (file,) = (root / "data").glob("*/*.parquet")
    table = pq.read_table(file)
    actions = np.stack(table["action"].to_numpy())
    actions[-1, 0] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), actions.shape[1])
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), file)
    return root


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The datasets whose tables were read."""
    reads: list[Path] = []

    def describe(root: Path, cameras: CameraChoice) -> DatasetDescription:
        reads.append(root)
        return describe_dataset(root, cameras)

    monkeypatch.setattr(module, "describe_dataset", describe)
    return reads


def test_what_is_kept_is_what_was_read(recorded: Path, reads: list[Path], tmp_path: Path) -> None:
    read, kept = (kept_description(recorded, CHOICE, tmp_path) for _ in range(2))
    assert len(reads) == 1
    assert read.left_out.keys() == {5}
    assert read.usable_frames == kept.usable_frames == 100
    for feature, named in read.statistics.items():
        for name, values in named.items():
            np.testing.assert_array_equal(kept.statistics[feature][name], values, strict=True)
    assert _without_statistics(kept) == _without_statistics(read)


@pytest.mark.parametrize(
    "choice", [CameraChoice(["top"]), CameraChoice(["top", "hand"], {"hand": "wrist"}), None]
)
def test_it_is_read_again_for_other_cameras_and_other_files(
    recorded: Path, reads: list[Path], tmp_path: Path, choice: CameraChoice | None
) -> None:
    kept_description(recorded, CHOICE, tmp_path)
    if choice is None:
        info = recorded / "meta/info.json"
        os.utime(info, ns=(info.stat().st_mtime_ns, info.stat().st_mtime_ns + 1))
    kept_description(recorded, choice or CHOICE, tmp_path)
    assert len(reads) == 2


def test_other_code_reads_again(
    recorded: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_description(recorded, CHOICE, tmp_path)
    monkeypatch.setattr(module, "versions", lambda: {"app": "newer"})
    kept_description(recorded, CHOICE, tmp_path)
    assert len(reads) == 2


@pytest.mark.parametrize("damage", [None, [], {"left_out": []}, {"statistics": {"action": 3}}, {"more": 1}])
def test_a_damaged_file_is_read_anew(recorded: Path, reads: list[Path], tmp_path: Path, damage: Any) -> None:
    kept_description(recorded, CHOICE, tmp_path)
    (file,) = (tmp_path / "described").iterdir()
    content = json.loads(file.read_text()) | damage if isinstance(damage, dict) else damage
    file.write_text(json.dumps(content))
    assert kept_description(recorded, CHOICE, tmp_path).left_out.keys() == {5}
    assert len(reads) == 2


def test_a_fault_is_raised_each_time_and_not_kept(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "dataset/meta").mkdir(parents=True)
    for root in (tmp_path / "dataset", tmp_path / "none"):
        for _ in range(2):
            with pytest.raises(DatasetError, match=str(root)):
                kept_description(root, CHOICE, tmp_path / "scratch")
    assert len(reads) == 4
    assert not (tmp_path / "scratch").exists()


def _without_statistics(description: DatasetDescription) -> dict[str, Any]:
    return {key: value for key, value in vars(description).items() if key != "statistics"}
