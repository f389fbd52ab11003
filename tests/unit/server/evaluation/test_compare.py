from pathlib import Path

import pytest

from federation.errors import PolicyError
from server.evaluation import compare
from server.evaluation.compare import compare_episodes, compare_policies


def _episodes(*returns: float) -> list[dict]:
    return [{"seed": seed, "success": value == 1, "return": value} for seed, value in enumerate(returns)]


def test_episodes_of_one_seed_are_paired() -> None:
    paired = compare_episodes(_episodes(0.1, 0.2, 1, 0.3, 0.5), _episodes(1, 1, 0.4, 1, 0.5))
    assert (paired["only_a"], paired["only_b"]) == (1, 3)
    assert (paired["higher_a"], paired["higher_b"]) == (1, 3)
    assert paired["p_success"] == pytest.approx(2 * 5 / 2**4)


def test_a_policy_is_no_better_than_itself() -> None:
    same = _episodes(0.2, 1, 0.4)
    assert compare_episodes(same, same) == {
        "only_a": 0,
        "only_b": 0,
        "p_success": 1.0,
        "higher_a": 0,
        "higher_b": 0,
        "p_return": 1.0,
    }


def test_other_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="different seeds"):
        compare_episodes(_episodes(0.1, 0.2), _episodes(0.1, 0.2)[::-1])


def test_the_command_says_who_came_further(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    results = {"a": _episodes(0.1, 0.2, 0.1, 0.3, 0.2), "b": _episodes(1, 1, 1, 1, 1)}

    def simulate(folder: Path, episodes: int, variants: list[str]) -> dict:
        assert variants == ["left", "right"]
        rate = float(folder.name == "b")
        figures = {"success_rate": rate, "interval": (rate, rate), "mean_return": rate}
        return {**figures, "per_episode": results[folder.name][:episodes]}

    monkeypatch.setattr(compare, "simulate", simulate)
    compare_policies(Path("a"), Path("b"), 5, "left,right")
    printed = capsys.readouterr().out
    assert "A: success 0%" in printed
    assert "in A only 0, in B only 5: p = 0.062" in printed


def test_a_folder_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no policy there"):
        compare_policies(tmp_path, tmp_path, 5, "left,right")
