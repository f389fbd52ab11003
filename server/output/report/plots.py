"""The plots of a run, drawn from its `federated_metrics.json`: for the report, and as `plots/*.png`."""

from collections.abc import Callable
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server.run.phases import PHASES, round_phases
from server.run.round_record import RoundRecord

__all__ = ["PLOTS", "draw"]

# Okabe-Ito: distinct with any colour vision and in grey.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000"]
_MAX_NAMED_LINES = len(_COLOURS)  # more would share colours, in a legend that nobody reads
_PHASE_COLOURS = dict(
    zip(
        PHASES,
        [
            "#bbbbbb",
            "#888888",
            "#56B4E9",
            "#F0E442",
            "#0072B2",
            "#009E73",
            "#D55E00",
            "#CC79A7",
            "#E69F00",
            "#444444",
        ],
        strict=True,
    )
)


def draw(name: str, metrics: dict[str, Any], rounds: list[RoundRecord]) -> Figure:
    """Draw the plot `name` of `PLOTS`; `rounds` are those of `metrics`."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=_COLOURS)
    PLOTS[name](axes, metrics, rounds)
    return figure


def _policy_loss(axes: Axes, metrics: dict[str, Any], rounds: list[RoundRecord]) -> None:
    evaluations = {0: metrics["baseline"]} if metrics["baseline"] else {}
    evaluations |= {entry.round: entry.evaluation for entry in rounds if entry.evaluation}
    numbers = list(evaluations)
    if metrics["baseline"]:
        axes.axhline(metrics["baseline"]["policy_loss"], ls="--", lw=1, color="0.5", label="before training")
    losses = [e["policy_loss"] for e in evaluations.values()]
    axes.plot(numbers, losses, "o-", lw=2, label="all held-out data")
    names = sorted({name for e in evaluations.values() for name in e["datasets"]})
    if 1 < len(names) <= _MAX_NAMED_LINES:
        for name in names:
            values = [e["datasets"][name]["policy_loss"] for e in evaluations.values()]
            axes.plot(numbers, values, lw=1, label=name)
    _finish(axes, "policy loss")


def _client_losses(axes: Axes, metrics: dict[str, Any], rounds: list[RoundRecord]) -> None:
    _clients(axes, metrics, rounds, "policy_loss")
    _finish(axes, "policy loss")


def _update_norm(axes: Axes, metrics: dict[str, Any], rounds: list[RoundRecord]) -> None:
    _clients(axes, metrics, rounds, "update_norm")
    norms = {entry.round: entry.update_norm for entry in rounds}
    axes.plot(list(norms), list(norms.values()), "o-", lw=2, color="black", label="global update")
    _finish(axes, "L2 norm")


def _time_by_phase(axes: Axes, metrics: dict[str, Any], rounds: list[RoundRecord]) -> None:
    numbers = [entry.round for entry in rounds]
    split = [round_phases(entry) for entry in rounds]
    below = [0.0] * len(rounds)
    for phase in PHASES:
        seconds = [phases[phase] for phases in split]
        if sum(seconds) < 0.005 * sum(sum(phases.values()) for phases in split):
            continue  # too thin to see; the table has it
        axes.bar(numbers, seconds, bottom=below, width=0.8, color=_PHASE_COLOURS[phase], label=phase)
        below = [a + b for a, b in zip(below, seconds, strict=True)]
    _finish(axes, "seconds")
    axes.grid(visible=False, axis="x")
    if axes.containers:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)


PLOTS: dict[str, Callable[[Axes, dict[str, Any], list[RoundRecord]], None]] = {
    "policy_loss": _policy_loss,
    "client_losses": _client_losses,
    "update_norm": _update_norm,
    "time_by_phase": _time_by_phase,
}


def _clients(axes: Axes, metrics: dict[str, Any], rounds: list[RoundRecord], figure: str) -> None:
    """One line a node, in the same colour in every plot; where there are too many, what lies between them."""
    names = sorted(metrics["nodes"])
    if len(names) > _MAX_NAMED_LINES:
        _spread(axes, rounds, figure, len(names))
        return
    for name in names:
        entries = [entry for entry in rounds if name in entry.clients]
        values = [entry.clients[name][figure] for entry in entries]
        axes.plot([entry.round for entry in entries], values, ".-", label=name)


def _spread(axes: Axes, rounds: list[RoundRecord], figure: str, nodes: int) -> None:
    """Draw the mean over the nodes, in a band from the least to the most of them."""
    entries = [entry for entry in rounds if entry.clients]
    numbers = [entry.round for entry in entries]
    values = [[client[figure] for client in entry.clients.values()] for entry in entries]
    low, high = (list(map(choose, values)) for choose in (min, max))
    axes.fill_between(numbers, low, high, color=_COLOURS[0], alpha=0.2, lw=0, label="from least to most")
    for edge in (low, high):  # a band of a single round has no width
        axes.plot(numbers, edge, "_", color=_COLOURS[0])
    axes.plot(numbers, list(map(mean, values)), ".-", color=_COLOURS[0], label=f"mean of {nodes} nodes")


def _finish(axes: Axes, unit: str) -> None:
    axes.set(xlabel="round", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    first, last = axes.get_xlim()
    if last - first < 1:  # a single round
        axes.set_xlim(round(first) - 1, round(last) + 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
