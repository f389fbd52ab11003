import re
from pathlib import Path

import pytest

from federation.data.advice import check_finalised, check_totals, conversion, is_torn, repair
from federation.errors import DatasetError

ROOT = Path("recordings/pick cube")


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEDERATION_REPAIR", "FEDERATION_MOUNTED", "FEDERATION_INSTALLATION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("numbers", "episodes", "what"),
    [
        ([0, 1, 4], 3, "meta/episodes goes to 4 and lacks 2 to 3"),
        ([0, 2, 5], 3, "meta/episodes goes to 5 and lacks 1, 3 to 4"),
        ([0, 1, 1], 3, "meta/episodes has an episode twice, or not in order"),
        ([1, 0, 2], 3, "meta/episodes has an episode twice, or not in order"),
        ([0, 1], 3, "meta/info.json has 3 episodes, 20 frames, meta/episodes 2, 20"),
        ([0, 1], 2, ""),
    ],
)
def test_what_is_missing_is_named_not_counted_twice(numbers: list[int], episodes: int, what: str) -> None:
    rows = [{"episode_index": number, "length": 10} for number in numbers]
    frames = 10 * len(rows)
    if not what:
        check_totals(ROOT, rows, episodes, frames)
        return
    with pytest.raises(DatasetError, match=f"^dataset {ROOT}: {re.escape(what)}; make repair DATA='{ROOT}'"):
        check_totals(ROOT, rows, episodes, frames)


def test_the_command_is_the_one_of_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repair(ROOT, [1, 3]) == f"make repair DATA='{ROOT}' WITHOUT=1,3"
    monkeypatch.setenv("FEDERATION_INSTALLATION", "/nowhere")
    assert repair(ROOT, [1]) == f"so100-site repair '{ROOT}' --without 1"
    monkeypatch.setenv("FEDERATION_MOUNTED", "/data=my-data/site-a")
    assert repair(Path("/data")) == "make repair DATA=my-data/site-a"
    monkeypatch.setenv("FEDERATION_REPAIR", "docker compose run --rm supernode repair")
    assert repair(Path("/data"), [1]) == "docker compose run --rm supernode repair --without 1"


def test_only_the_second_format_is_converted() -> None:
    assert conversion(ROOT, "v2.1").startswith("make repair")
    assert "record again" in conversion(ROOT, "v1.6")


@pytest.mark.parametrize(
    ("content", "torn"),
    [(b"PAR1 begun, not ended", True), (b"", True), (b"PAR1", True), (b"PAR1 a table PAR1", False)],
)
def test_a_table_without_its_end_is_torn(tmp_path: Path, content: bytes, torn: bool) -> None:
    (tmp_path / "file").write_bytes(content)
    assert is_torn(tmp_path / "file") is torn


def test_a_recording_without_a_table_of_episodes_was_not_ended(tmp_path: Path) -> None:
    check_finalised(tmp_path, {"total_episodes": 0})
    with pytest.raises(
        DatasetError, match=r"meta/episodes is missing, as after a crash .* no episode is whole"
    ):
        check_finalised(tmp_path, {"total_episodes": 3})
