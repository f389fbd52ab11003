"""Predicted against recorded actions of a held-out episode: what a loss means in degrees.

`predicted_actions.json` in the run's folder; the report and the model card show it as a plot.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from federation.data.joint_names import JOINTS
from federation.errors import one_line
from federation.files import read_json_object, write_atomically, write_json
from federation.logs import get_logger

if TYPE_CHECKING:
    from server.evaluation.held_out import Evaluator
    from server.model import GlobalModel

__all__ = ["PLOT_FILE", "draw_predictions", "note_predictions", "read_predictions", "write_plot"]

PREDICTIONS_FILE = "predicted_actions.json"
PLOT_FILE = "predicted_actions.png"
_log = get_logger("server.output.predictions")


def note_predictions(folder: Path, evaluator: "Evaluator", model: "GlobalModel", round_: int) -> None:
    """Write what the weights after `round_` predict; what fails costs the plot and not the run."""
    try:
        content = evaluator.predict(model.evaluated) | {"round": round_}
        write_json(folder / PREDICTIONS_FILE, content)
    except Exception as error:  # a NaN, a video that cannot be decoded, a GPU that is full
        _log.warning("no plot of predicted actions: %s", one_line(error))


def read_predictions(folder: Path) -> dict[str, Any] | None:
    """Return what was written for the run in `folder`; None if nothing that can be read was."""
    found = read_json_object(folder / PREDICTIONS_FILE)
    return found if {"round", "dataset", "fps", "recorded", "predicted"} <= found.keys() else None


def draw_predictions(found: dict[str, Any]) -> Figure:
    """Draw the actions of one episode, a panel for each joint."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).flat
    seconds = [number / found["fps"] for number in range(len(found["recorded"]))]
    for joint, (axes, name) in enumerate(zip(panels, JOINTS, strict=True)):
        for values, colour in (("recorded", "0.45"), ("predicted", "#0072B2")):
            axes.plot(
                seconds, [action[joint] for action in found[values]], color=colour, lw=1.4, label=values
            )
        axes.set_title(name, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("action, as recorded", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def write_plot(folder: Path, file: Path) -> None:
    """Write the plot of the run in `folder` to `file`, if there is one."""
    if found := read_predictions(folder):
        plot = draw_predictions(found)
        write_atomically(file, lambda staging: plot.savefig(staging, dpi=120, format="png"))
