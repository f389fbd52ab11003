"""How does an update's norm grow with the number of local steps? `aggregation/verification.py` rests on it.

    python -m tests.benchmarks.update_norms [--out tests/benchmarks/update_norms.json]

The tiny policy trains on one sample dataset, and the norm of its difference to the weights that it started
from is taken after 10, 30, 100, 300 and, in the first case, 1000 steps at one learning rate. `exponent` is
the slope of log(norm) over log(steps): 1 where a site goes straight on, 1/2 where its steps are a random
walk. Three cases: fresh weights at the demo's learning rate and at the default one, and weights that have
been trained before, as in any round but the first. A few minutes on two idle cores.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.training import run_training_loop, setup_training_components
from federation.config import parse_run_config
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.data.sample_cache import open_samples
from federation.policy.build import build_policy, trainable_parameters

_STEPS = (10, 30, 100, 300, 1000)
# Case -> learning rate, and the most steps.
_CASES = {
    "fresh weights": (2e-3, 1000),
    "trained weights": (2e-3, 300),
    "fresh weights, low rate": (1e-4, 300),
}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="Norm of an update over its number of steps.")
    parser.add_argument("--data", type=Path, default=Path("data/sample/site-a"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/update_norms.json"))
    options = parser.parse_args()
    results: dict[str, object] = {"batch_size": options.batch_size}
    trained: dict[str, Tensor] = {}
    for case, (rate, most) in _CASES.items():
        counts = [steps for steps in _STEPS if steps <= most]
        with tempfile.TemporaryDirectory() as folder:
            start = trained if case == "trained weights" else None
            norms, trained = _norms(options, rate, counts, start, Path(folder))
        exponent = np.polyfit(np.log(counts), np.log(norms), 1)[0]
        print(f"{case}: " + ", ".join(f"{n:.3g}" for n in norms) + f"; exponent {exponent:.2f}", flush=True)
        results[case] = {
            "learning_rate": rate,
            "steps": counts,
            "norms": [round(norm, 5) for norm in norms],
            "exponent": round(float(exponent), 3),
            "norms_by_step": [round(n / s, 6) for n, s in zip(norms, counts, strict=True)],
            "norms_by_root": [round(n / math.sqrt(s), 6) for n, s in zip(norms, counts, strict=True)],
        }
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _norms(
    options: argparse.Namespace,
    rate: float,
    counts: list[int],
    start: Mapping[str, Tensor] | None,
    folder: Path,
) -> tuple[list[float], dict[str, Tensor]]:
    """The norm after each of `counts` steps from `start` (None: fresh weights), and the last weights."""
    config = parse_run_config(
        {
            "policy.size": "tiny",
            "training.local_steps": counts[-1],
            "training.batch_size": options.batch_size,
            "training.learning_rate": rate,
            "training.schedule": "constant",
            "training.warmup_steps": 0,
            "training.num_workers": 0,
        },
        "benchmark",
    )
    policy = build_policy(config.policy, seed=0, device=torch.device("cpu"), cache=folder)
    weights = {n: p.detach().clone() for n, p in trainable_parameters(policy).items()} | dict(start or {})
    statistics = merge_statistics([describe_dataset(options.data).statistics])
    samples = open_samples(options.data, policy.config, folder / "samples", 2 * 10**9)
    components = setup_training_components(config, policy, weights, statistics, samples, seed=0)
    norms: list[float] = []

    def note(step: int, _: object) -> None:
        if step in counts:
            moved = (p.detach() - weights[name] for name, p in components.parameters.items())
            norms.append(math.hypot(*(float(tensor.norm()) for tensor in moved)))

    run_training_loop(components, 1, 1, note)
    return norms, {name: p.detach().clone() for name, p in components.parameters.items()}


if __name__ == "__main__":
    main()
