import dataclasses
import shutil

import pytest
import torch

from federation.data.description import describe_dataset
from federation.errors import DatasetError
from federation.settings import EvaluationConfig
from server.evaluation.held_out import DivergedError, Evaluator, measure
from tests.synthetic import blank_frames

pytestmark = pytest.mark.slow


def _evaluator(policy, statistics, data, **settings) -> Evaluator:
    config = EvaluationConfig(**{"frame_stride": 20, "batch_size": 4, **settings})
    return Evaluator(policy, statistics, {"holdout": data / "holdout"}, config)


def test_the_same_weights_always_give_the_same_figures(policy, weights, statistics, data) -> None:
    evaluator = _evaluator(policy, statistics, data)
    torch.manual_seed(1)
    first = evaluator.evaluate(weights)
    torch.manual_seed(2)
    evaluator.evaluate({name: w + 0.1 for name, w in weights.items()})
    second = evaluator.evaluate(weights)
    assert first | {"seconds": 0} == second | {"seconds": 0}


def test_other_weights_give_other_figures(policy, weights, statistics, data) -> None:
    evaluator = _evaluator(policy, statistics, data)
    other = evaluator.evaluate({name: w * 1.5 for name, w in weights.items()})
    first = evaluator.evaluate(weights)
    assert other["policy_loss"] != first["policy_loss"]
    assert other["action_mse"] != first["action_mse"]


def test_the_batch_size_does_not_change_the_figures(policy, weights, statistics, data) -> None:
    one = _evaluator(policy, statistics, data, batch_size=1).evaluate(weights)
    five = _evaluator(policy, statistics, data, batch_size=5).evaluate(weights)
    assert one["frames"] == five["frames"]
    assert one["policy_loss"] == pytest.approx(five["policy_loss"], rel=1e-4)
    assert one["action_mse"] == pytest.approx(five["action_mse"], rel=1e-4)


def test_quick_takes_the_first_episodes_and_full_all(policy, weights, statistics, data) -> None:
    quick = _evaluator(policy, statistics, data, eval_mode="quick", quick_episodes=1).evaluate(weights)
    full = _evaluator(policy, statistics, data, eval_mode="full", quick_episodes=1).evaluate(weights)
    assert (quick["frames"], full["frames"]) == (2, 6)


def test_a_data_set_that_was_described_is_not_read_for_it_again(
    policy, weights, statistics, data, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = {"holdout": data / "holdout"}
    description = describe_dataset(roots["holdout"])
    few = dataclasses.replace(description, left_out={0: "too short"})
    monkeypatch.setattr(
        "server.evaluation.held_out.describe_dataset", lambda _: pytest.fail("it is read again")
    )
    config = EvaluationConfig(frame_stride=20, batch_size=4, eval_mode="quick", quick_episodes=9)
    all_frames, left = (
        Evaluator(policy, statistics, roots, config, {"holdout": one}).evaluate(weights)["frames"]
        for one in (description, few)
    )
    assert (all_frames, left) == (6, 4)


def test_action_mse_is_in_the_units_of_the_data_set(policy, weights, statistics, data) -> None:
    """An untrained policy is off by about the spread of the actions: degrees, not normalised units."""
    mse = _evaluator(policy, statistics, data).evaluate(weights)["action_mse"]
    variance = float((statistics["action"]["std"] ** 2).mean())
    assert variance / 2 < mse < variance * 10


def test_weights_that_have_diverged_are_named_as_such(policy, weights, statistics, data) -> None:
    ruined = {name: torch.full_like(w, 1e30) for name, w in weights.items()}
    with pytest.raises(DivergedError, match=r"holdout: policy loss is nan.* the weights have diverged"):
        _evaluator(policy, statistics, data).evaluate(ruined)


def test_totals_are_weighted_by_frames(policy, weights, statistics, data) -> None:
    roots = {"holdout": data / "holdout", "site-b": data / "site-b"}
    config = EvaluationConfig(frame_stride=50, batch_size=4, eval_mode="full")
    result = Evaluator(policy, statistics, roots, config).evaluate(weights)
    parts = result["datasets"].values()
    expected = sum(p["policy_loss"] * p["frames"] for p in parts) / sum(p["frames"] for p in parts)
    assert result["policy_loss"] == pytest.approx(expected)


def test_a_data_set_without_a_readable_frame_is_named(policy, weights, statistics, data, tmp_path) -> None:
    shutil.copytree(data / "holdout", tmp_path / "holdout")
    for video in (tmp_path / "holdout").rglob("*.mp4"):
        blank_frames(video, range(10**6))
    with pytest.raises(DatasetError, match="evaluation dataset holdout: no frame can be decoded"):
        _evaluator(policy, statistics, tmp_path).evaluate(weights)


def test_what_losses_are_measured_on_is_told_apart(data, tmp_path) -> None:
    root = tmp_path / "holdout"
    shutil.copytree(data / "holdout", root)
    description = describe_dataset(root)

    def digest(name: str = "holdout", left_out: dict[int, str] | None = None, **settings) -> str:
        described = dataclasses.replace(description, left_out=left_out or {})
        return measure({name: root}, {name: described}, EvaluationConfig(**settings))

    first = digest()
    assert digest(batch_size=3, eval_frequency=2, rollback_ratio=0.0, sim_frequency=1) == first
    assert digest(eval_mode="full", quick_episodes=3) == digest(eval_mode="full", quick_episodes=4)
    others = [digest(eval_mode="full"), digest(quick_episodes=3), digest(frame_stride=14), digest("other")]
    others.append(digest(left_out={0: "wild"}))
    video = next((root / "videos").rglob("*.mp4"))
    video.write_bytes(video.read_bytes() + b"x")
    others.append(digest())
    (root / "README.md").write_text("anything")
    assert digest() == others[-1]
    assert len({first, *others}) == 1 + len(others)
