import base64
from pathlib import Path

import pytest

from federation.config import parse_run_config
from server.output.report.report import write_report
from server.output.report.simulation import read_simulation
from server.run.records import RunRecord

ROUNDS = [
    {
        "round": round_,
        "success_rate": rate,
        "interval": [rate / 2, rate],
        "mean_return": rate,
        "episodes": 20,
        "expert_success_rate": 0.95,
    }
    for round_, rate in ((0, 0.0), (5, 0.4))
]


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(tmp_path, "run-1", parse_run_config({}, "tests"))


def test_a_run_without_closed_loop_has_no_such_section(record: RunRecord) -> None:
    assert read_simulation({"simulated": []}, record.folder) is None
    assert "Does it do the task?" not in write_report(record.folder).read_text()


def test_floor_policy_and_ceiling_stand_in_one_table(record: RunRecord) -> None:
    for entry in ROUNDS:
        record.simulated(entry["round"], entry)
    text = write_report(record.folder).read_text()
    for expected in ("before training", "<td>40%<td>20% to 40%", "scripted expert<td>95%"):
        assert expected in text
    assert "<video" not in text


def test_the_newest_videos_are_inside_the_page(record: RunRecord) -> None:
    for entry in ROUNDS:
        record.simulated(entry["round"], entry)
        folder = record.folder / "simulation" / f"round_{entry['round']}"
        folder.mkdir(parents=True)
        (folder / "eval_episode_0.mp4").write_bytes(b"video of round %d" % entry["round"])
    text = write_report(record.folder).read_text()
    assert f'src="data:video/mp4;base64,{base64.b64encode(b"video of round 5").decode()}"' in text
    assert base64.b64encode(b"video of round 0").decode() not in text
    assert "The policy after round 5" in text
