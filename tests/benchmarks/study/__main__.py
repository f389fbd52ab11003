"""Federated against centralised training, on four simulated sites that differ in task, colours and cameras.

    python -m tests.benchmarks.study [--seeds 5] [--processes 2]

Records the sites (once, in `data/study`), trains every arm of `arms.py` with as many seeds as it says, and
writes `results.json`, `table.md`, `curves.png` and `local_steps.png` beside this file. A run that was
interrupted goes on where it stopped.
"""

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from server.simulation.recording import SampleParameters, ensure_sample_data
from tests.benchmarks.intervals import mean_interval
from tests.benchmarks.study.arms import ARMS, CURVES, LOCAL_STEPS, LONG, SITES, STEPS
from tests.benchmarks.study.train import base_of, run_job

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
_REFERENCE = "FedProx, 10 local steps"
_CENTRALISED = {  # steps, fine-tuned -> what is compared against
    (STEPS, False): "centralised",
    (LONG, False): "centralised, long",
    (STEPS, True): "centralised, fine-tuned",
}


def main() -> None:
    """Record, train, write."""
    parser = argparse.ArgumentParser(description="Federated against centralised training.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data/study"))
    arguments = parser.parse_args()
    datasets = {**{site: (site,) for site in SITES}, "holdout": SITES}
    ensure_sample_data(arguments.data, SampleParameters(episodes=8, eval_episodes=8), datasets=datasets)
    base_of(arguments.data)
    runs: list[dict[str, Any]] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    done = {(run["arm"], run["seed"]) for run in runs}
    jobs = [
        (arm, seed, arguments.data.resolve())
        for seed in range(arguments.seeds)
        for arm in ARMS
        if seed < arm.seeds and (arm.name, seed) not in done
    ]
    jobs.sort(key=lambda job: job[0].seeds == 1)  # what most depends on comes first
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for run in pool.imap_unordered(run_job, jobs):
            runs.append(run)
            RESULTS.write_text(json.dumps({"steps": STEPS, "runs": runs}, indent=1) + "\n")
    table = _table(runs)
    print(table)
    (HERE / "table.md").write_text(table)
    _plot(runs)
    _plot_local_steps(runs).savefig(HERE / "local_steps.png", dpi=110)


def _table(runs: list[dict[str, Any]]) -> str:
    """Final figures by arm: mean over its seeds, and the loss against that of centralised training."""
    central = {
        (*training, run["seed"]): run["policy_loss"][-1]
        for training, name in _CENTRALISED.items()
        for run in runs
        if run["arm"] == name
    }
    lines = [
        f"Held-out figures after {STEPS} optimizer steps in a row, or {LONG}; mean over the seeds, in "
        "brackets their range. Against centralised training of as many steps, fine-tuned if the arm is: the "
        "mean of the ratios seed by seed, with Student's 95 % interval.\n",
        "| arm | steps | seeds | policy loss | against centralised | action MSE |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        finals = [run for run in runs if run["arm"] == arm.name]
        if not finals:
            continue
        losses = [run["policy_loss"][-1] for run in finals]
        references = [central.get((arm.steps, arm.fine_tuned, run["seed"]), np.nan) for run in finals]
        ratios = np.divide(losses, references)
        figure = f"{np.mean(losses):.4f}"
        if len(losses) > 1:
            figure += f" ({min(losses):.4f} to {max(losses):.4f})"
        mse = np.mean([run["action_mse"][-1] for run in finals])
        against = f"{np.mean(ratios) - 1:+.1%}"
        if arm.name not in _CENTRALISED.values() and (interval := mean_interval(ratios - 1)):
            against += " ({:+.1%} to {:+.1%})".format(*interval)
        lines.append(f"| {arm.name} | {arm.steps} | {len(losses)} | {figure} | {against} | {mse:.1f} |")
    return "\n".join(lines) + "\n"


def _plot(runs: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    short = [arm for arm in ARMS if arm.steps == STEPS and not arm.fine_tuned]
    # Other numbers of local steps have a figure of their own.
    short = [arm for arm in short if arm.local_steps == 10]
    panels = {
        f"{STEPS} steps (mean of the seeds)": [arm.name for arm in short if arm.seeds > 1],
        "what single choices do (seed 0)": [
            ARMS[0].name,
            _REFERENCE,
            *(a.name for a in short if a.seeds == 1),
        ],
        f"{LONG} steps (mean of the seeds)": [arm.name for arm in ARMS if arm.steps == LONG],
    }
    figure, axes = plt.subplots(2, len(panels), figsize=(20, 10), sharex=True, sharey="row")
    for column, (title, names) in enumerate(panels.items()):
        for row, quantity in enumerate(("policy_loss", "action_mse")):
            axis = axes[row, column]
            for name in names:
                curves = [run for run in runs if run["arm"] == name and (column != 1 or run["seed"] == 0)]
                if not curves:
                    continue
                progress = np.asarray(curves[0]["steps"]) / curves[0]["steps"][-1]
                mean = np.mean([run[quantity] for run in curves], axis=0)
                central = name in _CENTRALISED.values()
                style = {"color": "black", "linewidth": 2} if central else {"linewidth": 1.2}
                style["linestyle"] = ":" if name.endswith("alone") else "-"
                axis.plot(progress, mean, label=name, **style)
            axis.set(yscale="log")
            axis.grid(alpha=0.3)
        axes[0, column].set_title(title)
        axes[0, column].legend(fontsize=7, ncol=2, loc="upper right")
        axes[1, column].set_xlabel("share of the training")
    axes[0, 0].set_ylim(top=12)  # room for the legends
    axes[0, 0].set_ylabel("held-out policy loss")
    axes[1, 0].set_ylabel("held-out action MSE (degrees², percent²)")
    figure.tight_layout()
    figure.savefig(HERE / "curves.png", dpi=110)


def _plot_local_steps(runs: list[dict[str, Any]]) -> Figure:
    """Draw the loss after `STEPS` against the local steps of a round: each seed, a line through the means."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    losses: dict[str, list[float]] = {}
    for run in runs:
        losses.setdefault(run["arm"], []).append(run["policy_loss"][-1])
    for curve, colour in zip(CURVES, ("#0072B2", "#E69F00", "#D55E00"), strict=True):
        points = {k: losses.get(f"{curve}, {k} local steps", []) for k in LOCAL_STEPS}
        points = {k: found for k, found in points.items() if found}
        axes.plot(list(points), [np.mean(found) for found in points.values()], color=colour, label=curve)
        for k, found in points.items():
            axes.plot([k] * len(found), found, "o", ms=4, color=colour)
    central = losses[_CENTRALISED[STEPS, False]]
    axes.axhline(np.mean(central), color="black", label="centralised, equal frames")
    alike = losses.get("FedProx, tuned momentum, 40 local steps, sites alike", [])
    axes.plot([40] * len(alike), alike, "x", color="0.4", label="tuned momentum, were the sites alike")
    axes.set(
        xscale="log", xlabel="local steps of a round", ylabel=f"held-out policy loss after {STEPS} steps"
    )
    axes.set_xticks(LOCAL_STEPS, [str(k) for k in LOCAL_STEPS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
