"""Success in closed loop: experts, the base, each site alone, federated and centralised, with seeds.

    python -m tests.benchmarks.closed_loop [--seeds 0,1,2] [--arms 'NAME;NAME'] [--run outputs/NAME]

Four sites that differ in where the cube lies, its colour, wording, table, light and cameras; site-d has half
the demonstrations. Every arm of `arms.py` fine-tunes one base, the small SmolVLA of `configs/arm.toml` that
was pretrained on eight scenes of nobody's, and every learner takes the same number of optimizer steps in a
row: a site alone, or the pooled data, as many as each site does in the federation; the pooled data with four
times the batch, so with as many frames as all sites.
Every policy drives the same episodes, a quarter at each site. Policies and drives lie in `--work`, so the
command goes on where it stopped; two run at a time. With `--run` the policy of a real run with Flower is
driven too. Writes `results.json`, `table.md` and `success.png` beside this file.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.benchmarks.closed_loop.arms import (
    ARMS,
    CANDIDATES,
    EXPERTS,
    Arm,
    drive_arm,
    record,
    train_once,
)
from tests.benchmarks.closed_loop.report import draw, make_table, summarise
from tests.benchmarks.pretraining import pretrain

HERE = Path(__file__).parent
BASE = "base, as it is"
PRETRAINING = (80, 160)  # rounds
WITH_FLOWER = "with Flower"


def main() -> None:
    """Record, then train and drive what is not there yet; print the table, write table, JSON and plot."""
    parser = argparse.ArgumentParser(description="Success in closed loop.")
    parser.add_argument("--seeds", default="0,1,2", help="(%(default)s)")
    parser.add_argument(
        "--arms", default="", help="only these, separated by semicolons (all but the candidates)"
    )
    parser.add_argument("--rounds", type=int, default=48, help="(%(default)s)")
    parser.add_argument("--episodes", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data/four"), help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("outputs/closed_loop"), help="(%(default)s)")
    parser.add_argument("--run", type=Path, help="folder of a run with Flower, of the first seed")
    parser.add_argument("--out", type=Path, default=HERE, help="(%(default)s)")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    wanted = options.arms.split(";")
    arms = [arm for arm in (*ARMS, *CANDIDATES) if arm.name in wanted] if options.arms else list(ARMS)
    record(options.data)
    found = _train_and_drive(arms, seeds, options)
    result = summarise(found, seeds) | {
        "date": time.strftime("%Y-%m-%d"),
        "episodes": options.episodes,
        "rounds": options.rounds,
    }
    (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(make_table(result), encoding="utf-8")
    draw(result).savefig(options.out / "success.png", dpi=110)
    print(make_table(result))


def _train_and_drive(
    arms: Sequence[Arm], seeds: Sequence[int], options: argparse.Namespace
) -> dict[str, dict[int, dict[str, Any]]]:
    """Return arm -> seed -> what its policy reaches, with the minutes of its training."""
    base = pretrain(options.data.with_name("foreign"), options.work, PRETRAINING, {})
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        places = (base, options.data, options.work)
        training = {
            (arm.name, seed): pool.submit(train_once, arm, seed, options.rounds, *places)
            for seed in seeds
            for arm in arms
        }
        folders = {(name, seeds[0]): options.work / name.replace(" ", "-") for name in EXPERTS}
        folders[BASE, seeds[0]] = base
        for each, future in training.items():
            folders[each] = future.result()
            print(f"{each[0]}, seed {each[1]}, is trained", flush=True)
        if options.run:
            folders[WITH_FLOWER, seeds[0]] = options.run / "pretrained_model"
        driving = {
            each: pool.submit(drive_arm, each[0], folder, options.episodes)
            for each, folder in folders.items()
        }
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for (name, seed), drive in driving.items():
            about = folders[name, seed] / "training.json"
            minutes = json.loads(about.read_text(encoding="utf-8"))["seconds"] / 60 if about.exists() else 0.0
            found.setdefault(name, {})[seed] = {**drive.result(), "minutes": minutes}
    return found


if __name__ == "__main__":
    main()
