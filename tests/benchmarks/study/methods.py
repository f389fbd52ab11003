"""What was tried against the loss of many local steps: on a seed of its own, at 40 steps a round.

    python -m tests.benchmarks.study.methods [--seed 10] [--only NAME]

The study's sites, policy and 800 steps. Each method changes what the server makes of a round's updates, or
what a site adds to its steps; none sends more than a few values for each tensor beside the update, but those
that say so. What helps is measured on other seeds, as an arm of the study. Writes `methods.json`; about two
minutes of one core a method.
"""

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.training import TrainingComponents, TrainingResult
from tests.benchmarks.study.arms import Arm
from tests.benchmarks.study.train import run_job

_STEPS = 40
_FULL, _HALF = 1.6e-2, 8e-3


@dataclass
class Method:
    """One way to aggregate; what it keeps from round to round is its own."""

    name: str
    rate: float = _FULL  # the sites' learning rate
    fedexp: bool = False  # the server's step is FedExP's (Jhunjhunwala et al., ICLR 2023, eq. 8)
    momentum: float = 0.0  # Nesterov's, of the server
    curvature: bool = False  # values weigh by their mean squared gradient (Fisher); twice the bytes
    drift: float = 0.0  # each step goes this part of what the last mean had beyond the site's own update
    ahead: float = 0.0  # each step goes this part of the last global one's (FedCM, Xu et al., 2021)
    agreement: float = 0.0  # lengthens what sites disagree on: (rms / |mean|) to this power
    shared_moments: bool = False  # the mean of the sites' second moments starts a round; twice the bytes
    betas: tuple[float, float] | None = None  # of the sites' AdamW
    alike: bool = False  # every site draws its frames from the data of all
    _last: dict[str, Tensor] = field(default_factory=dict)  # step of the round before
    _own: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by site, without the correction
    _added: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by site, to its update
    _squares: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by site, of its gradients
    _optimizers: dict[str, tuple[torch.optim.Optimizer, list[Tensor]]] = field(default_factory=dict)
    _moments: list[Tensor] = field(default_factory=list)
    _velocity: dict[str, Tensor] = field(default_factory=dict)

    def prepare(self, site: str, components: TrainingComponents) -> None:
        """Hook into the coming round of `site`."""
        optimizer, parameters = components.optimizer, components.parameters
        self._optimizers[site] = optimizer, list(parameters.values())
        for group in optimizer.param_groups if self.betas else ():
            group["betas"] = self.betas
        for parameter, moment in zip(parameters.values(), self._moments, strict=False):
            optimizer.state[parameter]["exp_avg_sq"] = moment.clone()
        squares = self._squares[site] = {name: torch.zeros_like(p) for name, p in parameters.items()}
        added = self._added[site] = {name: self._addition(site, name) for name in parameters if self._last}

        def before_step(*_: Any) -> None:
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    squares[name].addcmul_(parameter.grad, parameter.grad)

        @torch.no_grad()
        def after_step(*_: Any) -> None:
            for name, addition in added.items():
                parameters[name].add_(addition, alpha=1 / components.steps)

        if self.curvature:
            optimizer.register_step_pre_hook(before_step)
        optimizer.register_step_post_hook(after_step)

    def _addition(self, site: str, name: str) -> Tensor:
        last = self._last[name]
        return self.ahead * last + self.drift * (last - self._own[site][name])

    def aggregate(self, weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> None:
        """Take the step of a round."""
        for site, result in results.items():
            added = self._added[site]
            self._own[site] = {name: u - added.get(name, 0) for name, u in result.update.items()}
        if self.shared_moments:
            states = [[o.state[p]["exp_avg_sq"] for p in ps] for o, ps in self._optimizers.values()]
            self._moments = [torch.stack(each).mean(0) for each in zip(*states, strict=True)]
        means = {name: self._mean(name, results) for name in weights}
        step = self._step(means, results) if self.fedexp else 1.0
        for name, mean in means.items():
            change = step * mean
            if self.momentum:
                velocity = self._velocity.setdefault(name, torch.zeros_like(change))
                velocity.mul_(self.momentum).add_(change)
                change = change + self.momentum * velocity
            weights[name].add_(change)
            self._last[name] = change

    def _mean(self, name: str, results: Mapping[str, TrainingResult]) -> Tensor:
        updates = torch.stack([result.update[name] for result in results.values()])
        factors = torch.tensor([float(result.num_examples) for result in results.values()])
        if self.curvature:
            factors = torch.stack([self._squares[site][name] for site in results]) + 1e-12
        factors = factors.view(len(updates), *factors.shape[1:], *[1] * (updates.ndim - factors.ndim))
        mean = (factors * updates).sum(0) / factors.sum(0)
        if self.agreement:
            rms = updates.square().mean(0).sqrt()
            mean *= (rms / mean.abs().clamp_min(1e-12)).clamp(1, len(updates)) ** self.agreement
        return mean

    @staticmethod
    def _step(means: Mapping[str, Tensor], results: Mapping[str, TrainingResult]) -> float:
        lengths = sum(float(u.square().sum()) for r in results.values() for u in r.update.values())
        mean = sum(float(mean.square().sum()) for mean in means.values())
        return max(1.0, lengths / (2 * len(results) * mean))


METHODS = (
    Method("plain"),
    Method("sites alike", alike=True),
    Method("FedExP", fedexp=True),
    Method("agreement 0.5", agreement=0.5),
    Method("drift 1", drift=1.0),
    Method("ahead 0.5", ahead=0.5),
    Method("shared second moments", shared_moments=True),
    Method("curvature", curvature=True),
    Method("half the rate, momentum 0.6", rate=_HALF, momentum=0.6),
    Method("half the rate, momentum 0.6, alike", rate=_HALF, momentum=0.6, alike=True),
    Method("half the rate, momentum 0.6, beta2 0.99", rate=_HALF, momentum=0.6, betas=(0.9, 0.99)),
    Method("half the rate, momentum 0.7, curvature", rate=_HALF, momentum=0.7, curvature=True),
)
REFERENCES = (
    Arm("centralised", pooled=True, batch_size=32, local_steps=_STEPS),
    Arm("centralised, batches of one site", pooled=True, local_steps=_STEPS),
)


def _try(tried: Method | Arm, seed: int, data: Path) -> tuple[str, float]:
    """Return the held-out policy loss that one way ends with."""
    if isinstance(tried, Arm):
        return tried.name, run_job((tried, seed, data))["policy_loss"][-1]
    arm = Arm(tried.name, local_steps=_STEPS, learning_rate=tried.rate, alike=tried.alike)
    return tried.name, run_job((arm, seed, data), tried)["policy_loss"][-1]


def main() -> None:
    """Try what is not in the JSON yet, two at a time; print and write the losses."""
    parser = argparse.ArgumentParser(description="Methods for many local steps.")
    parser.add_argument("--seed", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--only", default="", help="names that begin so")
    parser.add_argument("--data", type=Path, default=Path("data/study"), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    losses: dict[str, float] = json.loads(options.out.read_text()) if options.out.exists() else {}
    wanted = [each for each in (*REFERENCES, *METHODS) if each.name.startswith(options.only)]
    wanted = [each for each in wanted if each.name not in losses]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for tried in [pool.submit(_try, each, options.seed, options.data.resolve()) for each in wanted]:
            name, loss = tried.result()
            losses[name] = loss
            print(f"{name}: {loss:.4f}", flush=True)
            options.out.write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    main()
