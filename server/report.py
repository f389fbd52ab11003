"""`report.html` and `plots/*.png` of a run, made from its `federated_metrics.json` alone.

python -m server.report outputs/<run>
"""

import argparse
import base64
import html
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from federation.errors import FederationError
from server.records import METRICS_FILE

__all__ = ["write_report"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
.failed { color: #b00020 }
summary { cursor: pointer; margin-bottom: .5rem }
"""


def write_report(folder: Path) -> Path:
    """Write the plots and the report of the run in `folder`; return the report's path.

    Raises:
        FederationError: `folder` holds no readable `federated_metrics.json`.
    """
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise FederationError(
            f"{folder / METRICS_FILE} cannot be read ({error}): name a run's folder"
        ) from None
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    images = []
    for name, draw in _PLOTS.items():
        figure = Figure(figsize=(8, 4), layout="constrained")
        draw(figure.subplots(), metrics)
        figure.savefig(plots / f"{name}.png", dpi=120)
        images.append(plots / f"{name}.png")
    report = folder / "report.html"
    report.write_text(_page(metrics, images), encoding="utf-8")
    return report


def _plot_policy_loss(axes: Axes, metrics: dict[str, Any]) -> None:
    evaluations = {0: metrics["baseline"]} if metrics["baseline"] else {}
    evaluations |= {
        entry["round"]: entry["evaluation"] for entry in metrics["rounds"] if "evaluation" in entry
    }
    rounds = list(evaluations)
    axes.plot(rounds, [e["policy_loss"] for e in evaluations.values()], "o-", lw=2, label="all held-out data")
    names = {name for e in evaluations.values() for name in e["datasets"]}
    if len(names) > 1:
        for name in sorted(names):
            axes.plot(
                rounds, [e["datasets"][name]["policy_loss"] for e in evaluations.values()], lw=1, label=name
            )
    _finish(axes, "Policy loss on held-out data", "policy loss")


def _plot_client_losses(axes: Axes, metrics: dict[str, Any]) -> None:
    _plot_clients(axes, metrics, "policy_loss")
    _finish(axes, "Policy loss while training, by node", "policy loss")


def _plot_update_norm(axes: Axes, metrics: dict[str, Any]) -> None:
    _plot_clients(axes, metrics, "update_norm")
    rounds = [entry["round"] for entry in metrics["rounds"]]
    norms = [entry["update_norm"] for entry in metrics["rounds"]]
    axes.plot(rounds, norms, "o-", lw=2, color="black", label="global update")
    _finish(axes, "Norm of the updates", "L2 norm")


def _plot_clients(axes: Axes, metrics: dict[str, Any], figure: str) -> None:
    """One line a node, in the same colour in every plot."""
    for name in sorted(metrics["nodes"]):
        entries = [entry for entry in metrics["rounds"] if name in entry["clients"]]
        values = [entry["clients"][name][figure] for entry in entries]
        axes.plot([entry["round"] for entry in entries], values, ".-", label=name)


_PLOTS = {
    "policy_loss": _plot_policy_loss,
    "client_losses": _plot_client_losses,
    "update_norm": _plot_update_norm,
}


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set(title=title, xlabel="round", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)


def _page(metrics: dict[str, Any], images: list[Path]) -> str:
    name = html.escape(metrics["run"])
    status = metrics["status"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{_STYLE}</style>",
        f"<h1>Federated run {name}</h1>",
        f"<p class={status}>{status}, {html.escape(metrics['started'])}"
        f" to {html.escape(metrics['finished'] or 'now')}</p>",
        _summary(metrics),
        *(
            f'<img alt="{image.stem}" src="data:image/png;base64,'
            f'{base64.b64encode(image.read_bytes()).decode()}">'
            for image in images
        ),
        "<h2>Rounds</h2>",
        _rounds_table(metrics),
        "<h2>Nodes</h2>",
        _table(
            ["node", "episodes", "frames", "fps", "cameras"],
            [
                [node, facts["episodes"], facts["frames"], facts["fps"], ", ".join(facts["cameras"])]
                for node, facts in sorted(metrics["nodes"].items())
            ],
        ),
        "<h2>Configuration</h2><details open><summary>every setting of the run</summary>",
        _table(["setting", "value"], [[key, value] for key, value in metrics["config"].items()]),
        "</details></html>",
    ]
    return "\n".join(parts)


def _summary(metrics: dict[str, Any]) -> str:
    evaluated = [entry["evaluation"] for entry in metrics["rounds"] if "evaluation" in entry]
    if not evaluated or not metrics["baseline"]:
        return "<p>No round has been evaluated yet.</p>"
    first, last = metrics["baseline"], evaluated[-1]
    change = 100 * (last["policy_loss"] / first["policy_loss"] - 1)
    return (
        f"<p>Policy loss on {last['frames']} held-out frames: "
        f"<b>{first['policy_loss']:.4f}</b> before training, <b>{last['policy_loss']:.4f}</b> "
        f"after {len(metrics['rounds'])} rounds ({change:+.1f} %). "
        f"Action MSE: {first['action_mse']:.1f} before, {last['action_mse']:.1f} after.</p>"
        f"<p>On average a round moved {_megabytes(metrics, 'down')} MB down to the nodes "
        f"and {_megabytes(metrics, 'up')} MB up.</p>"
    )


def _megabytes(metrics: dict[str, Any], direction: str) -> str:
    rounds = metrics["rounds"]
    return f"{sum(entry['bytes'][direction] for entry in rounds) / len(rounds) / 1e6:.1f}"


def _rounds_table(metrics: dict[str, Any]) -> str:
    header = ["round", "nodes", "client loss", "± std", "held-out loss", "action MSE"]
    header += ["update norm", "examples", "skipped", "missing", "refused", "seconds"]
    rows = []
    for entry in metrics["rounds"]:
        loss, evaluation = entry["policy_loss"], entry.get("evaluation")
        rows.append(
            [
                entry["round"],
                len(entry["clients"]),
                f"{loss['mean']:.4f}" if loss else "",
                f"{loss['std']:.4f}" if loss else "",
                f"{evaluation['policy_loss']:.4f}" if evaluation else "",
                f"{evaluation['action_mse']:.1f}" if evaluation else "",
                f"{entry['update_norm']:.4f}",
                entry["num_examples"],
                entry["skipped_frames"],
                ", ".join(entry["missing"]),
                ", ".join(entry["refused"]),
                f"{sum(entry['seconds'].values()):.1f}",
            ]
        )
    return _table(header, rows)


def _table(header: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def main() -> int:
    """Write the report of the run folder given on the command line."""
    parser = argparse.ArgumentParser(description="Write report.html and plots of a run.")
    parser.add_argument("folder", type=Path, help="outputs/<run>")
    try:
        print(write_report(parser.parse_args().folder))
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
