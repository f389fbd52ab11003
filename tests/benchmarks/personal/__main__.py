"""What an owner gets of a federation: personal policies against the federation's and against going alone.

    python -m tests.benchmarks.personal [--seeds 0,1,2] [--demonstrations 5,10,25,50,100] [--episodes 100]

A federation of the two sites of `make arm`, in process and with the momentum of 0.3 that it then had, is
the start. At home, in scene `right`, the owner of site-b tunes its policy on a hundred demonstrations. A
new owner, whose scene `middle` the federation has never seen, does so on few: cube, table, light, cameras
and wording are others. Alone is the same policy from scratch, 4000 steps on the same demonstrations;
personal is `client/personal/tune.py`, as `so100-site personalise` calls it, with a tenth of the
demonstrations kept out. Each policy drives the same episodes. Policies and drives lie in `--work`, so the
command goes on where it stopped; two run at a time. Writes `results.json` and `curves.png` beside this
file.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from server.evaluation.intervals import sign_test, wilson_interval
from tests.benchmarks.closed_loop.arms import record_three
from tests.benchmarks.personal.arms import BLIND, FEDERATION, Arm, drive_arm, train_arm

HERE = Path(__file__).parent
HOME, NEW = "right", "middle"
_HOME_DEMONSTRATIONS = 100
Found = dict[str, Any]


def main() -> None:
    """Record, train and drive what is not there yet, then print the table and write JSON and plot."""
    parser = argparse.ArgumentParser(description="Personal policies in closed loop.")
    parser.add_argument("--seeds", default="0,1,2", help="(%(default)s)")
    parser.add_argument("--demonstrations", default="5,10,25,50,100", help="of the new owner (%(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("outputs/personal"), help="(%(default)s)")
    arguments = parser.parse_args()
    seeds, counts = (list(map(int, text.split(","))) for text in (arguments.seeds, arguments.demonstrations))
    data = _record()
    federations = [Arm(FEDERATION, seed) for seed in seeds]
    owners = [
        Arm(kind, seed, scene, count)
        for seed in seeds
        for scene, amounts in ((HOME, [_HOME_DEMONSTRATIONS]), (NEW, counts))
        for count in amounts
        for kind in ("alone", "personal")
    ]
    started = time.monotonic()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first = [pool.submit(train_arm, arm, data, arguments.work) for arm in federations]
        alone = [arm for arm in owners if arm.kind == "alone"]
        others = [pool.submit(train_arm, arm, data, arguments.work) for arm in alone]
        _wait(first)
        others += [pool.submit(train_arm, arm, data, arguments.work) for arm in owners if arm not in alone]
        _wait(others)
        everywhere = [*federations, Arm(BLIND, seeds[0])]  # which has no seed of its own
        wanted = [(arm, scene) for arm in everywhere for scene in (HOME, NEW)]
        wanted += [(arm, arm.scene) for arm in owners]
        drives = [pool.submit(drive_arm, *each, arguments.episodes, arguments.work) for each in wanted]
        found = {(arm, scene): drive.result() for (arm, scene), drive in zip(wanted, drives, strict=True)}
    result = _summarise(found, seeds, counts) | {
        "date": time.strftime("%Y-%m-%d"),
        "episodes": arguments.episodes,
        "minutes_of_this_call": (time.monotonic() - started) / 60,
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _draw(result).savefig(HERE / "curves.png", dpi=110)
    for row in result["rows"]:
        print(_line(row))
    print(json.dumps(result["paired"], indent=1))


def _record() -> Path:
    """Return the folder of all demonstrations, recorded first where they are not there yet."""
    data = Path("data/arm")
    record_three(data)
    return data


def _wait(futures: Sequence[Any]) -> None:
    for future in futures:
        print(f"{future.result().name} is trained", flush=True)


def _summarise(found: dict[tuple[Arm, str], Found], seeds: list[int], counts: list[int]) -> Found:
    """Return a row for each kind of policy, over all seeds, and the paired comparisons."""
    rows, successes = [], {}
    kinds = [(kind, "", 0, scene) for kind in (BLIND, FEDERATION) for scene in (HOME, NEW)]
    kinds += [(kind, HOME, _HOME_DEMONSTRATIONS, HOME) for kind in ("alone", "personal")]
    kinds += [(kind, NEW, count, NEW) for count in counts for kind in ("alone", "personal")]
    for kind, own, count, scene in kinds:
        trained = seeds[:1] if kind == BLIND else seeds
        each = [found[Arm(kind, seed, own, count), scene]["successes"] for seed in trained]
        together = [success for one in each for success in one]
        successes[kind, count, scene] = together
        rows.append(
            {
                "kind": kind,
                "demonstrations": count,
                "scene": scene,
                "success_rate": sum(together) / len(together),
                "interval": wilson_interval(sum(together), len(together)),
                "by_seed": {str(seed): sum(one) / len(one) for seed, one in zip(trained, each, strict=True)},
            }
        )
    home = successes["personal", _HOME_DEMONSTRATIONS, HOME]
    paired = {
        f"home, personal against {kind}": _p(home, successes[kind, count, HOME])
        for kind, count in (("alone", _HOME_DEMONSTRATIONS), (FEDERATION, 0))
    } | {
        f"new owner, {count} demonstrations, personal against alone": _p(
            successes["personal", count, NEW], successes["alone", count, NEW]
        )
        for count in counts
    }
    paired |= {
        f"new owner, personal on {count} against alone on {counts[-1]}": _p(
            successes["personal", count, NEW], successes["alone", counts[-1], NEW]
        )
        for count in counts[:-1]
    }
    return {"seeds": seeds, "rows": rows, "paired": paired}


def _p(one: list[int], other: list[int]) -> float:
    """McNemar's exact test, on the same episodes."""
    return sign_test([a - b for a, b in zip(one, other, strict=True)])


def _line(row: Found) -> str:
    low, high = row["interval"]
    who = row["kind"] + (f", {row['demonstrations']} demonstrations" if row["demonstrations"] else "")
    seeds = " ".join(f"{rate:.0%}" for rate in row["by_seed"].values())
    return f"| {who} | {row['scene']} | {row['success_rate']:.0%} ({low:.0%} to {high:.0%}) | {seeds} |"


def _draw(result: Found) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kind, colour, marker in (("personal", "#0072B2", "o"), ("alone", "#E69F00", "s")):
        rows = [row for row in result["rows"] if (row["kind"], row["scene"]) == (kind, NEW)]
        counts, rates = [row["demonstrations"] for row in rows], [row["success_rate"] for row in rows]
        low, high = ([row["interval"][end] for row in rows] for end in (0, 1))
        axes.fill_between(counts, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(counts, rates, marker=marker, color=colour, label=kind)
    for kind, style, label in ((FEDERATION, "--", "the federation's, as it came"), (BLIND, ":", BLIND)):
        (row,) = (r for r in result["rows"] if (r["kind"], r["scene"]) == (kind, NEW))
        axes.axhline(row["success_rate"], ls=style, color="0.5", label=label)
    axes.set(xscale="log", xlabel="demonstrations of the new owner", ylabel="cubes picked up", ylim=(0, 1.02))
    axes.set_xticks([5, 10, 25, 50, 100], ["5", "10", "25", "50", "100"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    return figure


if __name__ == "__main__":
    main()
