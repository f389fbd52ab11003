"""Success in closed loop: experts, the start, each site alone, federated and centralised, with seeds.

    python -m tests.benchmarks.closed_loop [--of two-sites] [--seeds 0,1,2] [--arms 'NAME;NAME'] [--flower]

The sites differ in where the cube lies, its colour, wording, table, light and cameras. Two are those of
`make arm`, which trains from scratch. Of four, one has half the demonstrations, and every arm of `arms.py`
fine-tunes one base: the small SmolVLA of `configs/arm.toml`, pretrained on eight scenes of nobody's.

Every learner takes the same number of optimizer steps in a row: a site alone, or the pooled data, as many as
each site does in the federation; the pooled data with a batch as large as those of all sites together, so
with as many frames. Every policy drives the same episodes, as many at each site. Policies and drives lie in
`--work`, so the command goes on where it stopped; two run at a time. With `--flower` the federation's first
seed is trained by a run with Flower as well, over TLS. Writes JSON, table and plot, named after the
comparison, beside this file.
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
    COMPARISONS,
    EXPERTS,
    FEDERATED,
    Arm,
    Comparison,
    drive_arm,
    train_once,
)
from tests.benchmarks.closed_loop.report import draw, make_table, summarise
from tests.benchmarks.closed_loop.with_flower import train_with_flower
from tests.benchmarks.pretraining import pretrain, start_from

HERE = Path(__file__).parent
BASE = "base, as it is"
PRETRAINING = {"run.num_rounds": 70, "training.batch_size": 64, "training.warmup_steps": 100}
WITH_FLOWER = "federated, with Flower"


def main() -> None:
    """Record, then train and drive what is not there yet; print the table, write table, JSON and plot."""
    options = _parse_options()
    compared = COMPARISONS[options.of]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    arms = {arm.name: arm for arm in (*compared.arms, *compared.candidates)}
    wanted = options.arms.split(";") if options.arms else [arm.name for arm in compared.arms]
    if unknown := [name for name in wanted if name not in arms]:
        raise SystemExit(f"--arms {unknown[0]!r}: there are {'; '.join(arms)}")
    rounds = options.rounds or compared.rounds
    compared.record(compared.data)
    found = _train_and_drive(compared, [arms[name] for name in wanted], seeds, rounds, options)
    result = summarise(found, seeds, compared.sites) | {
        "date": time.strftime("%Y-%m-%d"),
        "episodes": options.episodes,
        "rounds": rounds,
    }
    file = options.out / options.of
    file.with_suffix(".json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(make_table(result), encoding="utf-8")
    draw(result).savefig(file.with_suffix(".png"), dpi=110)
    print(make_table(result))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Success in closed loop.")
    parser.add_argument("--of", choices=COMPARISONS, default="four-sites", help="(%(default)s)")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="most arms take the first three (%(default)s)")
    parser.add_argument(
        "--arms", default="", help="only these, separated by semicolons (all but the candidates)"
    )
    parser.add_argument("--rounds", type=int, help="(as many as the comparison says)")
    parser.add_argument("--episodes", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("outputs/closed_loop"), help="(%(default)s)")
    parser.add_argument("--flower", action="store_true", help="the federation's first seed with Flower too")
    parser.add_argument("--out", type=Path, default=HERE, help="(%(default)s)")
    return parser.parse_args()


def _train_and_drive(
    compared: Comparison, arms: Sequence[Arm], seeds: Sequence[int], rounds: int, options: argparse.Namespace
) -> dict[str, dict[int, dict[str, Any]]]:
    """Return arm -> seed -> what its policy reaches, with the minutes of its training."""
    work = options.work / options.of
    settings = {**compared.settings, "run.num_rounds": rounds}
    folders = {(name, seeds[0]): work / name.replace(" ", "-") for name in EXPERTS}
    if compared.fine_tuned:
        base = pretrain(compared.data.with_name("foreign"), options.work, PRETRAINING, beginning=10)
        settings |= start_from(base)
        folders[BASE, seeds[0]] = base
    place = work / f"{rounds}-rounds"
    if options.flower:
        federated = next(arm for arm in compared.arms if arm.name == FEDERATED)
        folders[WITH_FLOWER, seeds[0]] = train_with_flower(
            federated, seeds[0], settings, compared.data, place
        )
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        training = {
            (arm.name, seed): pool.submit(train_once, arm, seed, settings, compared.data, place)
            for arm in arms
            for seed in seeds[: arm.seeds]
        }
        for each, future in training.items():
            folders[each] = future.result()
            print(f"{each[0]}, seed {each[1]}, is trained", flush=True)
        scenes = tuple(compared.sites.values())
        driving = {
            each: pool.submit(drive_arm, each[0], folder, scenes, options.episodes)
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
