"""What the arms reached, over all seeds: rates, intervals, paired comparisons, a table and a plot."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from server.evaluation.intervals import sign_test, wilson_interval
from tests.benchmarks.closed_loop.arms import CENTRALISED, EXPERTS
from tests.benchmarks.intervals import mean_interval

__all__ = ["draw", "make_table", "summarise"]

_COLOURS = {"federated": "#D55E00", "Flower": "#D55E00", CENTRALISED: "#0072B2", "alone": "#009E73"}
_HEAD = """Success: of all seeds' episodes together, with Wilson's 95 % interval; all drive the same ones. Of
centralised: the mean of the ratios seed by seed, with Student's 95 % interval; p is McNemar's exact test on
the same pairs. Least of alone: the lowest, of the sites, of the ratios to what a site reaches at home with a
policy of its own. Minutes: of training, one seed, one core.

"""


def summarise(
    found: Mapping[str, Mapping[int, dict[str, Any]]], seeds: Sequence[int], sites: Mapping[str, str]
) -> dict[str, Any]:
    """Return a row for each arm.

    Args:
        found: arm -> seed -> what `drive` returned.
        sites: site -> its scene.
    """
    rows = []
    for name, by_seed in found.items():
        together = [success for seed in by_seed for success in by_seed[seed]["successes"]]
        row = {
            "arm": name,
            "success_rate": sum(together) / len(together),
            "interval": wilson_interval(sum(together), len(together)),
            "by_seed": {str(seed): result["success_rate"] for seed, result in by_seed.items()},
            "by_site": {
                site: float(np.mean([result["by_site"][scene] for result in by_seed.values()]))
                for site, scene in sites.items()
            },
            "minutes": float(np.mean([result["minutes"] for result in by_seed.values()])),
        }
        both = [seed for seed in by_seed if seed in found.get(CENTRALISED, {})]
        if both and name != CENTRALISED:
            mine, other = (
                np.array([found[arm][seed]["successes"] for seed in both]) for arm in (name, CENTRALISED)
            )
            ratios = (mine.sum(1) / np.maximum(1, other.sum(1))).tolist()
            row["of_centralised"] = float(np.mean(ratios))
            row["of_centralised_interval"] = mean_interval(ratios)
            row["p"] = sign_test((mine - other).ravel().tolist())
        rows.append(row)
    _compare_at_home(rows, sites)
    successes = {name: {str(s): r["successes"] for s, r in each.items()} for name, each in found.items()}
    return {"seeds": list(seeds), "rows": rows, "successes": successes}


def _compare_at_home(rows: Sequence[dict[str, Any]], sites: Iterable[str]) -> None:
    """Add to each policy that serves all sites the least, of the sites, over what the site reaches alone."""
    alone = {row["arm"].removesuffix(" alone"): row for row in rows if row["arm"].endswith(" alone")}
    if not alone.keys() >= set(sites):
        return
    at_home = {site: max(0.01, alone[site]["by_site"][site]) for site in sites}
    for row in rows:
        if row["arm"] not in EXPERTS and not row["arm"].endswith(" alone"):
            row["least_of_alone"] = min(row["by_site"][site] / at_home[site] for site in sites)


def make_table(result: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    sites = result["rows"][0]["by_site"]
    lines = [
        f"| arm | seeds | success | by seed | {' | '.join(sites)} "
        "| of centralised | p | least of alone | minutes |",
        "|---" * (8 + len(sites)) + "|",
    ]
    for row in result["rows"]:
        low, high = row["interval"]
        ratio = ""
        if "of_centralised" in row:
            ratio = f"{row['of_centralised']:.2f}"
            if interval := row["of_centralised_interval"]:
                ratio += " ({:.2f} to {:.2f})".format(*interval)
        cells = [
            row["arm"],
            str(len(row["by_seed"])),
            f"{row['success_rate']:.0%} ({low:.0%} to {high:.0%})",
            ", ".join(f"{100 * rate:.0f}" for rate in row["by_seed"].values()),
            *(f"{rate:.0%}" for rate in row["by_site"].values()),
            ratio,
            f"{row['p']:.2g}" if "p" in row else "",
            f"{row['least_of_alone']:.2f}" if "least_of_alone" in row else "",
            f"{row['minutes']:.0f}" if row["minutes"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return _HEAD + "\n".join(lines) + "\n"


def draw(result: Mapping[str, Any]) -> Figure:
    """Draw the rate of each arm with its interval, and each seed as a dot."""
    rows = result["rows"][::-1]
    figure = Figure(figsize=(7.5, 0.8 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(rows):
        low, high = row["interval"]
        colour = next((rgb for word, rgb in _COLOURS.items() if word in row["arm"]), "0.5")
        axes.plot([low, high], [height, height], color=colour, lw=6, alpha=0.25, solid_capstyle="butt")
        axes.plot(list(row["by_seed"].values()), [height] * len(row["by_seed"]), "o", ms=4, color="0.35")
        axes.plot(row["success_rate"], height, "|", ms=14, mew=2.5, color=colour)
        axes.text(1.03, height, f"{row['success_rate']:.0%}", va="center")
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    axes.set(xlim=(-0.02, 1.02), xlabel="cubes picked up: mean and 95 % interval, a dot for each seed")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
