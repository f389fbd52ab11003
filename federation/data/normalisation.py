"""The one normalisation of a run: from the statistics that nodes report, or from the pretrained policy.

`policy.normalisation` says which. "federated" merges what the nodes of the first round report into the
statistics of their pooled data, without pooling it; of a site with more frames than the median one as if it
had as many as that (`claims.py`). "pretrained" keeps that of the policy that is fine-tuned,
right where its data was recorded in the same units and few frames are added. What it costs if every site
takes its own, as systems without a handshake do, is in tests/benchmarks/study.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.claims import max_weight
from federation.data.description import ARM_DIM
from federation.data.joint_values import STILL
from federation.data.statistics import FEATURES, SKETCH, Statistics, mixture_quantiles
from federation.errors import PolicyError
from federation.files import expand_home
from federation.settings import PolicyConfig

__all__ = ["choose_normalisation", "merge_statistics"]

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}  # LeRobot's names
_FROZEN_STD = 1e-2  # degrees or percent; an STS3215 servo resolves 0.09 degrees


def choose_normalisation(config: PolicyConfig, reported: Sequence[Statistics]) -> Statistics:
    """Return the statistics for all training, the server's evaluation and export.

    Raises:
        PolicyError: "pretrained", and the policy brings no usable statistics.
    """
    if config.normalisation == "pretrained":
        return _pretrained_statistics(config.pretrained)
    return merge_statistics(_bound_counts(reported))


def _bound_counts(reported: Sequence[Statistics]) -> Sequence[Statistics]:
    """Return `reported`, no site with more frames than `claims.py` allows: it could claim any number."""
    counts = [float(site[FEATURES[0]]["count"][0]) for site in reported]
    most = max_weight(counts)
    return [
        {f: named | {"count": np.minimum(named["count"], most)} for f, named in site.items()}
        for site in reported
    ]


def merge_statistics(reported: Sequence[Statistics]) -> Statistics:
    """Return the statistics of the pooled data, in float64, from those of its parts.

    Counts, minima, maxima, means and deviations are LeRobot's own aggregation (variances by the parallel
    formula of Chan et al., 1983). Quantiles are those of the mixture of the sketches. A joint that no site
    moves, but for the flicker of a servo at rest, gets a deviation of 1, as in scikit-learn's StandardScaler:
    divided by next to nothing, the slightest offset at a site that joins later would become huge.
    """
    from lerobot.datasets.compute_stats import aggregate_stats

    merged: Statistics = aggregate_stats(
        [{f: {n: v for n, v in site[f].items() if n != SKETCH} for f in FEATURES} for site in reported]
    )
    for feature, named in merged.items():
        is_still = named["max"] - named["min"] < STILL
        named["std"] = _guard_std(np.where(is_still, 0.0, named["std"]))
        sketches = [site[feature][SKETCH] for site in reported]
        counts = [float(site[feature]["count"][0]) for site in reported]
        quantiles = mixture_quantiles(sketches, counts, list(_QUANTILES.values()))
        named.update(zip(_QUANTILES, quantiles, strict=True))
    return merged


def _guard_std(std: NDArray[Any]) -> NDArray[Any]:
    """Deviations (joints,), 1 in place of one too small to divide by."""
    return np.where(std < _FROZEN_STD, 1.0, std)


def _pretrained_statistics(source: str) -> Statistics:
    """Return the statistics that the policy in `source`, a folder or Hub id, was trained with."""
    from safetensors.numpy import load_file

    source = expand_home(source)
    where = f"policy.pretrained = {source!r}"
    fix = "choose policy.normalisation = 'federated'"
    try:
        pipeline = json.loads(_policy_file(source, "policy_preprocessor.json").read_text(encoding="utf-8"))
        (state,) = (
            step["state_file"]
            for step in pipeline["steps"]
            if step.get("registry_name") == "normalizer_processor"
        )
        tensors = load_file(_policy_file(source, state))
    except Exception as error:  # the Hub client raises a dozen types; all mean: not to be had
        reason = type(error).__name__
        raise PolicyError(f"{where}: its statistics cannot be read ({reason}); {fix}") from error
    statistics: Statistics = {feature: {} for feature in FEATURES}
    for key, values in tensors.items():
        feature, _, name = key.rpartition(".")
        if feature in statistics:
            statistics[feature][name] = values.astype(np.float64).reshape(-1)
    for feature, named in statistics.items():
        if any(named.get(name, np.empty(0)).shape != (ARM_DIM,) for name in ("mean", "std")):
            raise PolicyError(f"{where}: brings no mean and std of {feature} with {ARM_DIM} values; {fix}")
        if not all(np.isfinite(named[name]).all() for name in ("mean", "std")):
            raise PolicyError(f"{where}: its mean or std of {feature} is NaN or infinite; {fix}")
        named["std"] = _guard_std(named["std"])
    return statistics


def _policy_file(source: str, name: str) -> Path:
    if Path(source).is_dir():
        return Path(source) / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, name))
