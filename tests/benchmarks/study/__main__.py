"""Federated against centralised training, on four simulated sites that differ in task, colours and cameras.

    python -m tests.benchmarks.study [--seeds 3] [--processes 2]

Records the sites (once, in `data/study`), trains every arm of `arms.py` with every seed, and writes
`results.json`, `table.md` and `policy_loss.png` beside this file. A run that was interrupted goes on where it
stopped. About an hour on two cores.
"""

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

from federation.sample_data import SampleParameters, ensure_sample_data
from tests.benchmarks.study.arms import ARMS, SITES, TOTAL_STEPS
from tests.benchmarks.study.train import run_job

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


def main() -> None:
    """Record, train, write."""
    parser = argparse.ArgumentParser(description="Federated against centralised training.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data/study"))
    arguments = parser.parse_args()
    datasets = {**{site: (site,) for site in SITES}, "holdout": SITES}
    ensure_sample_data(arguments.data, SampleParameters(episodes=8, eval_episodes=8), datasets=datasets)

    runs: list[dict[str, Any]] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    done = {(run["arm"], run["seed"]) for run in runs}
    jobs = [
        (arm, seed, arguments.data.resolve())
        for seed in range(arguments.seeds)
        for arm in ARMS
        if (arm.name, seed) not in done
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for run in pool.imap_unordered(run_job, jobs):
            runs.append(run)
            RESULTS.write_text(json.dumps({"total_steps": TOTAL_STEPS, "runs": runs}, indent=1) + "\n")
    table = _table(runs)
    print(table)
    (HERE / "table.md").write_text(table)
    _plot(runs)


def _table(runs: list[dict[str, Any]]) -> str:
    """Final figures by arm: mean over the seeds, and the policy loss against centralised training's."""
    finals = {arm.name: [run for run in runs if run["arm"] == arm.name] for arm in ARMS}
    central = np.mean([run["policy_loss"][-1] for run in finals["centralised"]])
    lines = [
        f"Held-out figures after {TOTAL_STEPS} optimizer steps in all; mean and range over "
        f"{len(finals['centralised'])} seeds.\n",
        "| arm | rounds | policy loss | against centralised | action MSE |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        losses = [run["policy_loss"][-1] for run in finals[arm.name]]
        if losses:
            mse = np.mean([run["action_mse"][-1] for run in finals[arm.name]])
            figure = f"{np.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"
            against = f"{np.mean(losses) / central - 1:+.1%}"
            rounds = "" if arm.pooled else arm.num_rounds
            lines.append(f"| {arm.name} | {rounds} | {figure} | {against} | {mse:.1f} |")
    return "\n".join(lines) + "\n"


def _plot(runs: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
    alone = [arm.name for arm in ARMS if arm.name.endswith("alone")]
    left = ["centralised", "centralised, 400 steps", "FedAvg", "FedProx mu=0.001", "FedProx mu=0.1", *alone]
    right = ["centralised", *(arm.name for arm in ARMS if arm.name not in {*left, "FedProx mu=0.01"})]
    for axis, names in zip(axes, (left, right), strict=True):
        for name in names:
            curves = [run for run in runs if run["arm"] == name]
            if curves:
                mean = np.mean([run["policy_loss"] for run in curves], axis=0)
                style = {"color": "black", "linewidth": 2} if name == "centralised" else {"linewidth": 1.2}
                axis.plot(curves[0]["steps"], mean, label=name, **style)
        axis.set(xlabel="optimizer steps in all", yscale="log")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out policy loss")
    figure.tight_layout()
    figure.savefig(HERE / "policy_loss.png", dpi=130)


if __name__ == "__main__":
    main()
