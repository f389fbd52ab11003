"""By what a slow site's update is to be divided: by its steps, by a root of these, or not at all.

    python -m tests.benchmarks.uneven.exponents [--slow-steps 50] [--rounds 12] [--exponents 0,0.33,0.5,1]

The demo's two sites in process, site-a with 500 steps a round, site-b with fewer. Each update is divided by
its share of the 500 to the power of the exponent, both weigh the same, and the mean is multiplied by the mean
of what was divided by. Exponent 1 is FedNova's mean, 0 the plain one. Printed is the held-out policy loss at
the end, and of the first round how much longer site-a's update is.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from client.training import TrainingComponents, TrainingResult
from federation.config import load_run_config
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.policy.build import build_policy
from server.evaluation.held_out import Evaluator
from tests.benchmarks.closed_loop.train import train

_STEPS = 500
_SITES, _DATA = ("site-a", "site-b"), Path("data/sample")


def run_once(exponent: float, slow_steps: int, rounds: int, folder: Path) -> tuple[float, float]:
    """Return the held-out policy loss at the end, and the ratio of the norms of the first updates."""
    changes = {"run.num_rounds": rounds, "training.local_steps": _STEPS}
    config = load_run_config(Path("configs/demo.toml"), changes)
    policy = build_policy(config.policy, seed=0, device=torch.device("cpu"), cache=folder)
    statistics = merge_statistics([describe_dataset(_DATA / site).statistics for site in _SITES])
    evaluator = Evaluator(policy, statistics, {"holdout": _DATA / "holdout"}, config.evaluation)
    divisors = [1.0, (slow_steps / _STEPS) ** exponent]
    losses, ratios = [], []

    def prepare(name: str, components: TrainingComponents) -> None:
        components.steps = _STEPS if name == _SITES[0] else slow_steps

    def aggregate(weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> None:
        for name, weight in weights.items():
            divided = sum(r.update[name] / by for r, by in zip(results.values(), divisors, strict=True))
            weight.add_(divided / 2 * (sum(divisors) / 2))
        fast, slow = (results[site].update_norm for site in _SITES)
        ratios.append(fast / slow)
        losses.append(evaluator.evaluate(weights)["policy_loss"])

    learners = [(site,) for site in _SITES]
    train(config, learners, _DATA, folder / "scratch", folder / "policy", aggregate, prepare)
    return losses[-1], ratios[0]


def main() -> None:
    """Run each exponent, one line each."""
    parser = argparse.ArgumentParser(description="Exponents of a slow site's steps.")
    parser.add_argument("--slow-steps", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="(%(default)s)")
    parser.add_argument("--exponents", default="0,0.33,0.5,1", help="(%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for exponent in map(float, arguments.exponents.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            loss, ratio = run_once(exponent, arguments.slow_steps, arguments.rounds, Path(folder))
        print(f"exponent {exponent:g}: loss {loss:.3f}, site-a's first update is {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
