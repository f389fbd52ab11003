"""`report.html` of a run, one self-contained file, and `plots/*.png`: made from its record alone."""

import base64
import io
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from federation.files import write_atomically
from server.output.predictions import PLOT_FILE, draw_predictions, read_predictions
from server.output.report.formats import format_duration, format_size
from server.output.report.plots import PLOTS, draw
from server.output.report.simulation import read_simulation
from server.output.report.tables import (
    bytes_table,
    configuration_table,
    environment_table,
    facts_table,
    faults_table,
    nodes_table,
    rounds_table,
    time_table,
)
from server.output.report.template import PAGE
from server.run.accountant import format_max_epsilon
from server.run.recorded import evaluations_behind, read_events, read_metrics
from server.run.round_record import RoundRecord, recorded_rounds

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write the plots and the report of the run in `folder`; return the report's path.

    Raises:
        FederationError: `folder` holds no readable `federated_metrics.json`.
    """
    metrics = read_metrics(folder)
    rounds = recorded_rounds(metrics)
    (folder / "plots").mkdir(exist_ok=True)
    plots = {}
    for name in PLOTS:
        plots[name] = _embed(draw(name, metrics, rounds), folder / "plots" / f"{name}.png")
    if found := read_predictions(folder):
        plots["predicted_actions"] = _embed(draw_predictions(found), folder / "plots" / PLOT_FILE)
    page = _page(metrics, rounds, plots, folder)
    report = folder / "report.html"
    write_atomically(report, lambda staging: staging.write_text(page, encoding="utf-8"))
    return report


def _embed(plot: Figure, file: Path) -> str:
    """Save `plot` to `file`; return it as SVG in base64."""
    plot.savefig(file, dpi=120)
    vector = io.BytesIO()
    plot.savefig(vector, format="svg", metadata={"Date": None})
    return base64.b64encode(vector.getvalue()).decode()


def _shut_out(folder: Path) -> list[tuple[str, str, str]]:
    """Node, what and why of those turned away at their join or suspended later; only the events hold it."""
    shut_out = []
    for event in read_events(folder, ("join_denied", "node_suspended")):
        if event["event"] == "join_denied":
            shut_out.append((event.get("node", ""), "join denied", event["reason"]))
        else:
            until = f" until round {event['until_round']}" if "until_round" in event else ""
            shut_out.append((event["node"], f"suspended{until}", event["reason"]))
    return shut_out


def _page(metrics: dict[str, Any], rounds: list[RoundRecord], plots: dict[str, str], folder: Path) -> str:
    return PAGE.render(
        run=metrics["run"],
        status=metrics["status"],
        reason=metrics.get("reason"),
        period=_period(metrics),
        results=_results(metrics, rounds),
        plots=plots,
        simulation=read_simulation(metrics, folder),
        rounds=rounds_table(rounds),
        nodes=nodes_table(metrics, rounds),
        not_covered=metrics.get("privacy", {}).get("not_covered"),
        facts=facts_table(metrics),
        time=time_table(rounds),
        bytes=bytes_table(metrics, rounds),
        faults=faults_table(metrics, rounds, _shut_out(folder)),
        configuration=configuration_table(metrics["config"]),
        environment=environment_table(metrics.get("environment", {})),
    )


def _period(metrics: dict[str, Any]) -> str:
    started = datetime.fromisoformat(metrics["started"])
    if not metrics["finished"]:
        return f"{started:%Y-%m-%d %H:%M} UTC to now"
    finished = datetime.fromisoformat(metrics["finished"])
    return f"{started:%Y-%m-%d %H:%M} UTC, {format_duration((finished - started).total_seconds())}"


def _results(metrics: dict[str, Any], rounds: list[RoundRecord]) -> dict[str, Any] | None:
    """Return the figures of the first row, that of the policy loss first, or None before an evaluation."""
    if not any(entry.evaluation for entry in rounds) or not metrics["baseline"]:
        return None
    found = evaluations_behind(metrics, rounds[-1].round)
    first, last = metrics["baseline"], found[max(found)]
    best = min(found, key=lambda round_: float(found[round_]["policy_loss"]))
    down, up = (sum(entry.bytes[way] for entry in rounds) / len(rounds) for way in ("down", "up"))
    figures = [
        (f"{last['policy_loss']:.4f}", f"policy loss, {first['policy_loss']:.4f} before training"),
        (f"{found[best]['policy_loss']:.4f}", f"best policy loss, round {best}"),
        (f"{last['action_mse']:.1f}", f"action MSE, {first['action_mse']:.1f} before training"),
        (f"{len(rounds)} of {metrics['config']['run.num_rounds']}", "rounds done"),
        (f"{len(metrics['nodes'])}", f"nodes, {sum(e.num_examples for e in rounds):,} frames trained on"),
        (format_size(down + up), f"a round: {format_size(down)} to the nodes, {format_size(up)} from them"),
    ]
    if "privacy" in metrics:
        figures.append(("private", format_max_epsilon(metrics["privacy"])))
    change = 100 * (last["policy_loss"] / first["policy_loss"] - 1)
    return {"figures": figures, "change": change, "frames": last["frames"], "mode": last.get("mode", "")}
