"""The report's section on closed-loop evaluation: success rates with intervals, and videos of the newest."""

import base64
from pathlib import Path
from typing import Any, NamedTuple

from server.output.report.tables import Table

__all__ = ["Simulation", "read_simulation"]

_HEADER = ("weights", "success rate", "95 % interval", "mean return", "episodes")


class Simulation(NamedTuple):
    """How the policies of a run drove the simulated arm."""

    table: Table
    round: int  # of the newest
    videos: list[str]  # of the newest, in base64


def read_simulation(metrics: dict[str, Any], folder: Path) -> Simulation | None:
    """Return what the page shows, or None if no policy of this run drove the simulated arm."""
    simulated = metrics.get("simulated", [])
    if not simulated:
        return None
    rows = [
        (
            "before training" if entry["round"] == 0 else f"round {entry['round']}",
            f"{entry['success_rate']:.0%}",
            "{:.0%} to {:.0%}".format(*entry["interval"]),
            f"{entry['mean_return']:.2f}",
            entry["episodes"],
        )
        for entry in simulated
    ]
    newest = simulated[-1]
    rows.append(("scripted expert", f"{newest['expert_success_rate']:.0%}", "", "", newest["episodes"]))
    files = sorted((folder / "simulation" / f"round_{newest['round']}").glob("eval_episode_*.mp4"))
    videos = [base64.b64encode(file.read_bytes()).decode() for file in files]
    return Simulation(Table(_HEADER, rows), newest["round"], videos)
