from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file

from federation.data.description import describe_dataset
from federation.data.normalisation import choose_normalisation, merge_statistics
from federation.data.statistics import (
    FEATURES,
    Statistics,
    check_statistics,
    statistics_of_frames,
)
from federation.data.tables import read_frames
from federation.errors import PolicyError, WireError
from federation.policy.build import build_processors
from federation.settings import PolicyConfig
from server.output.export import save_policy_folder

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def _site(values: np.ndarray) -> Statistics:
    frames = {"episode_index": np.zeros(len(values)), **dict.fromkeys(FEATURES, values)}
    return statistics_of_frames(frames)


# Recordings as float32 holds them: joints of all sizes, resting for many frames, a few frames or many.
def _recordings() -> st.SearchStrategy[list[np.ndarray]]:
    angles = st.one_of(st.sampled_from([0.0, 90.0]), st.floats(-360, 360, width=32))
    sizes = st.tuples(st.integers(1, 60), st.just(6))
    return st.lists(arrays(np.float32, sizes, elements=angles), min_size=1, max_size=5)


@pytest.mark.slow
@settings(max_examples=150)
@given(_recordings())
def test_merged_statistics_are_those_of_the_pooled_data(parts: list[np.ndarray]) -> None:
    pooled = np.concatenate(parts).astype(np.float64)
    reported = [_site(part) for part in parts]
    for statistics, part in zip(reported, parts, strict=True):
        check_statistics(statistics, 6, len(part))
    merged = merge_statistics(reported)["action"]
    expected = {"mean": pooled.mean(0), "min": pooled.min(0), "max": pooled.max(0), "count": [len(pooled)]}
    for name, values in expected.items():
        np.testing.assert_allclose(merged[name], values, rtol=1e-6, atol=1e-6)
    std, is_still = pooled.std(0), np.ptp(pooled, 0) < 0.5
    expected_std = np.where((std < 1e-2) | is_still, 1.0, std)
    np.testing.assert_allclose(merged["std"], expected_std, rtol=1e-6, atol=1e-6)
    # A sketch has no values between two neighbouring frames of its site: one frame of each is its rank error.
    tolerance = 1 / 256 + len(parts) / len(pooled) + 1e-9
    for name, level in QUANTILES.items():
        below = (pooled < merged[name] - 1e-6).mean(0)
        up_to = (pooled <= merged[name] + 1e-6).mean(0)
        assert (below <= level + tolerance).all()
        assert (up_to >= level - tolerance).all()


def test_a_quantile_is_that_of_the_mixture_not_the_mean_of_quantiles() -> None:
    low, high = np.zeros((900, 6)), np.full((100, 6), 50.0)
    merged = merge_statistics([_site(low), _site(high)])["action"]
    assert merged["q50"].tolist() == [0.0] * 6
    assert merged["q99"].tolist() == [50.0] * 6


@pytest.mark.parametrize("others", [1, 2, 4])
def test_a_site_that_claims_any_number_of_frames_does_not_own_the_normalisation(others: int) -> None:
    honest, liar = [_site(np.zeros((100, 6)))] * others, _site(np.full((50, 6), 80.0))
    for named in liar.values():
        named["count"] = np.full(1, 1e9)
    merged = choose_normalisation(PolicyConfig(), [*honest, liar])["action"]
    np.testing.assert_allclose(merged["mean"], 80.0 / (1 + others))
    assert merged["count"].tolist() == [100.0 * (others + 1)]
    assert liar["action"]["count"].tolist() == [1e9]


def test_the_statistics_of_recordings_are_those_of_their_frames(data: Path) -> None:
    roots = [data / "site-a", data / "site-b"]
    merged = merge_statistics([describe_dataset(root).statistics for root in roots])
    for feature in FEATURES:
        pooled = np.concatenate([read_frames(root)[feature] for root in roots])
        np.testing.assert_allclose(merged[feature]["mean"], pooled.mean(0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(merged[feature]["std"], pooled.std(0), rtol=1e-6)
        assert merged[feature]["count"].tolist() == [240]


def test_a_joint_at_rest_that_flickers_by_a_servos_tick_is_not_divided_by_that() -> None:
    values = np.random.default_rng(0).normal(size=(50, 6))
    values[:, 4] = 30.0 + 0.088 * (np.arange(50) % 2)
    assert merge_statistics([_site(values), _site(values)])["action"]["std"][4] == 1.0


def test_a_joint_that_never_moves_is_not_divided_by_zero() -> None:
    values = np.random.default_rng(0).normal(size=(50, 6))
    values[:, 3] = 94.0
    merged = merge_statistics([_site(values)])["action"]
    assert merged["std"][3] == 1.0
    assert merged["mean"][3] == pytest.approx(94.0)


def test_only_the_episodes_that_are_named_count() -> None:
    values = np.arange(24.0).reshape(4, 6)
    values[2, 1], values[3, 0] = np.nan, 1e9
    frames = {"episode_index": np.array([0, 0, 7, np.nan]), **dict.fromkeys(FEATURES, values)}
    statistics = statistics_of_frames(frames, episodes=(0,))["action"]
    assert statistics["count"].tolist() == [2.0]
    assert statistics["max"].tolist() == values[1].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("action"), "expected"),
        (lambda s: s["action"].pop("sketch"), "other names or shapes"),
        (lambda s: s["action"].update(mean=np.zeros(4)), "other names or shapes"),
        (lambda s: s["action"].update(std=-s["action"]["std"]), "contradict themselves"),
        (lambda s: s["action"].update(std=s["action"]["std"] * 1e6), "contradict themselves"),
        (lambda s: s["action"].update(mean=s["action"]["max"] + 1), "contradict themselves"),
        (lambda s: s["action"].update(count=np.zeros(1)), "of 0 frames"),
        (lambda s: s["action"].update(sketch=s["action"]["sketch"][::-1]), "contradict themselves"),
        (lambda s: s["action"].update(min=s["action"]["min"] * np.nan), "NaN or infinity"),
        (
            lambda s: s["action"].update(count=np.full(1, 51.0)),
            "of 51 frames: must be as many as the node reports",
        ),
        (
            lambda s: s["action"].update(
                {n: s["action"][n] * 500 for n in ("mean", "std", "min", "max", "sketch")}
            ),
            "values beyond 360",
        ),
    ],
)
def test_statistics_that_no_data_has_are_refused(change, message: str) -> None:
    statistics = _site(np.random.default_rng(0).normal(size=(50, 6)))
    check_statistics(statistics, 6, 50)
    change(statistics)
    with pytest.raises(WireError, match=message):
        check_statistics(statistics, 6, 50)


@pytest.mark.parametrize("frames", [0, 10**18, int(1e300)])
def test_a_number_of_frames_that_nobody_records_is_refused(frames: int) -> None:
    statistics = _site(np.zeros((50, 6)))
    for named in statistics.values():
        named["count"] = np.full(1, float(frames))
    with pytest.raises(WireError, match="1 to 1000000000"):
        check_statistics(statistics, 6, frames)


def test_the_pretrained_normalisation_is_that_of_its_folder(policy, statistics, tmp_path: Path) -> None:
    save_policy_folder(tmp_path / "base", policy, build_processors(policy, statistics), "card")
    config = PolicyConfig(pretrained=str(tmp_path / "base"), normalisation="pretrained")
    chosen = choose_normalisation(config, [_site(np.zeros((9, 6)))])
    for feature in FEATURES:
        np.testing.assert_allclose(chosen[feature]["mean"], statistics[feature]["mean"], rtol=1e-6)
        np.testing.assert_allclose(chosen[feature]["std"], statistics[feature]["std"], rtol=1e-6)


def test_a_pretrained_policy_without_statistics_says_so(tmp_path: Path) -> None:
    config = PolicyConfig(pretrained=str(tmp_path), normalisation="pretrained")
    with pytest.raises(PolicyError, match=r"cannot be read .* choose policy.normalisation = 'federated'"):
        choose_normalisation(config, [])


def _change_saved_statistics(folder: Path, **changes: np.ndarray | None) -> None:
    """Change what the normaliser in `folder` holds of the action; None takes it out."""
    (file,) = folder.glob("policy_preprocessor*normalizer*.safetensors")
    tensors = load_file(file)
    for name, values in changes.items():
        del tensors[f"action.{name}"]
        if values is not None:
            tensors[f"action.{name}"] = values.astype(np.float32)
    save_file(tensors, file)


def test_a_joint_that_never_moved_in_the_pretrained_statistics_does_not_blow_up(
    policy, statistics, tmp_path: Path
) -> None:
    save_policy_folder(tmp_path / "base", policy, build_processors(policy, statistics), "card")
    std = statistics["action"]["std"].copy()
    std[[2, 4]] = 0, 1e-6
    _change_saved_statistics(tmp_path / "base", std=std)
    chosen = choose_normalisation(
        PolicyConfig(pretrained=str(tmp_path / "base"), normalisation="pretrained"), []
    )
    assert chosen["action"]["std"][[2, 4]].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(chosen["action"]["std"][[0, 1]], std[[0, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("std", "text"), [(None, "brings no mean and std of action"), (np.full(6, np.nan), "is NaN or infinite")]
)
def test_pretrained_statistics_that_cannot_serve_are_refused(
    policy, statistics, tmp_path: Path, std: np.ndarray | None, text: str
) -> None:
    save_policy_folder(tmp_path / "base", policy, build_processors(policy, statistics), "card")
    _change_saved_statistics(tmp_path / "base", std=std)
    with pytest.raises(PolicyError, match=rf"{text}.* choose policy.normalisation = 'federated'"):
        choose_normalisation(PolicyConfig(pretrained=str(tmp_path / "base"), normalisation="pretrained"), [])
