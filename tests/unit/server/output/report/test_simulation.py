import base64
from pathlib import Path

from server.output.report.simulation import simulation_section

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


def test_a_run_without_closed_loop_has_no_such_section(tmp_path: Path) -> None:
    assert simulation_section({"simulated": []}, tmp_path) == ""


def test_floor_policy_and_ceiling_stand_in_one_table(tmp_path: Path) -> None:
    text = simulation_section({"simulated": ROUNDS}, tmp_path)
    for expected in ("before training", "<td>40%</td><td>20% to 40%</td>", "scripted expert</td><td>95%"):
        assert expected in text
    assert "<video" not in text


def test_the_newest_videos_are_inside_the_page(tmp_path: Path) -> None:
    for round_ in (0, 5):
        folder = tmp_path / "simulation" / f"round_{round_}"
        folder.mkdir(parents=True)
        (folder / "eval_episode_0.mp4").write_bytes(b"video of round %d" % round_)
    text = simulation_section({"simulated": ROUNDS}, tmp_path)
    assert base64.b64encode(b"video of round 5").decode() in text
    assert base64.b64encode(b"video of round 0").decode() not in text
