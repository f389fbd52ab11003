"""`report.html` of a run, one self-contained file, and `plots/*.png`: made from its record alone.

python -m server.output.report.report outputs/<run>
"""

import argparse
import html
import io
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from federation.errors import FederationError
from federation.files import write_atomically
from server.output.report.markup import figure, format_duration, format_size
from server.output.report.plots import PLOTS, draw
from server.output.report.simulation import simulation_section
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
from server.run.accountant import format_max_epsilon
from server.run.recorded import EVENTS_FILE, evaluations_behind, parse_event, read_metrics
from server.run.round_record import RoundRecord, recorded_rounds

__all__ = ["write_report"]

_STYLE = """
:root { --ink: #1f2328; --quiet: #656d76; --line: #d8dee4; --good: #1a7f37; --bad: #b00020 }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 66rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
.quiet { color: var(--quiet) } .failed, .bad { color: var(--bad) } .finished { color: var(--good) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
           margin: 1.2rem 0 }
.figures div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem }
.figures b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.figures span { color: var(--quiet); font-size: .85rem }
.wide { overflow-x: auto; margin-top: .6rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th { color: var(--quiet); font-weight: 600 }
td { white-space: nowrap } td.text { white-space: normal; overflow-wrap: anywhere }
th:first-child, td:first-child, td.text, th.text { text-align: left }
tr.changed td { font-weight: 600 }
img { max-width: 100% }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 0 2rem }
@media print {
  @page { size: A4; margin: 14mm }
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0 }
  h2 { break-after: avoid } figure, table tr, .figures div { break-inside: avoid }
  .wide { overflow: visible } table { font-size: 8pt } th, td { padding: .15rem .4rem }
  thead { display: table-header-group }
}
figure { margin: .8rem 0 0 } figcaption { color: var(--quiet); font-size: .85rem }
"""


def write_report(folder: Path) -> Path:
    """Write the plots and the report of the run in `folder`; return the report's path.

    Raises:
        FederationError: `folder` holds no readable `federated_metrics.json`.
    """
    metrics = read_metrics(folder)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    images = {}
    for name in PLOTS:
        plot = draw(name, metrics)
        plot.savefig(plots / f"{name}.png", dpi=120)
        vector = io.BytesIO()
        plot.savefig(vector, format="svg", metadata={"Date": None})
        images[name] = vector.getvalue()
    report = folder / "report.html"
    page = _page(metrics, images, _shut_out(folder), simulation_section(metrics, folder))
    write_atomically(report, lambda staging: staging.write_text(page, encoding="utf-8"))
    return report


def _shut_out(folder: Path) -> list[tuple[str, str, str]]:
    """Node, what and why of those turned away at their join or suspended later; only the events hold it."""
    try:
        text = (folder / EVENTS_FILE).read_text(encoding="utf-8")
    except OSError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()  # a killed server leaves half a line
    # Only these lines are parsed: those of rounds are long, and there may be thousands.
    events = [parse_event(line) for line in lines if '"event": "node_' in line or '"join_denied"' in line]
    shut_out = []
    for event in events:
        if event["event"] == "join_denied":
            shut_out.append((event.get("node", ""), "join denied", event["reason"]))
        elif event["event"] == "node_suspended":
            until = f" until round {event['until_round']}" if "until_round" in event else ""
            shut_out.append((event["node"], f"suspended{until}", event["reason"]))
    return shut_out


def _page(
    metrics: dict[str, Any], images: dict[str, bytes], shut_out: list[tuple[str, str, str]], simulated: str
) -> str:
    name, status = html.escape(metrics["run"]), metrics["status"]
    rounds = recorded_rounds(metrics)
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Federated run {name}</h1>",
        f"<p class=quiet><b class={status}>{status}</b> · {_period(metrics)}</p>",
        f"<p class=bad>{html.escape(metrics['reason'])}</p>" if metrics.get("reason") else "",
        _figures(metrics, rounds),
        "<h2>Is it learning?</h2>",
        figure(images["policy_loss"], "Policy loss on held-out data, round by round; lower is better."),
        simulated,
        "<h2>Rounds</h2>",
        rounds_table(rounds),
        "<h2>Nodes</h2>",
        nodes_table(metrics, rounds),
        facts_table(metrics),
        '<div class="columns">',
        figure(images["client_losses"], "Policy loss while training, on each node's own data."),
        figure(images["update_norm"], "Size of the updates and of the change they made together."),
        "</div>",
        "<h2>Time and bytes</h2>",
        figure(images["time_by_phase"], "Critical path: the server's own work and the slowest node's."),
        '<div class="columns">',
        time_table(rounds),
        bytes_table(metrics, rounds),
        "</div>",
        "<h2>Faults</h2>",
        faults_table(metrics, rounds, shut_out),
        '<div class="columns"><section><h2>Configuration</h2>',
        configuration_table(metrics["config"]),
        "</section><section><h2>Environment of the server</h2>",
        environment_table(metrics.get("environment", {})),
        "</section></div></body></html>",
    ]
    return "\n".join(parts)


def _period(metrics: dict[str, Any]) -> str:
    started = datetime.fromisoformat(metrics["started"])
    if not metrics["finished"]:
        return f"{started:%Y-%m-%d %H:%M} UTC to now"
    finished = datetime.fromisoformat(metrics["finished"])
    return f"{started:%Y-%m-%d %H:%M} UTC, {format_duration((finished - started).total_seconds())}"


def _figures(metrics: dict[str, Any], rounds: list[RoundRecord]) -> str:
    """Return the results in one row, as HTML."""
    if not any(entry.evaluation for entry in rounds) or not metrics["baseline"]:
        return "<p>No round has been evaluated yet.</p>"
    found = evaluations_behind(metrics, rounds[-1].round)
    first, last = metrics["baseline"], found[max(found)]
    best = min(found, key=lambda round_: float(found[round_]["policy_loss"]))
    change = 100 * (last["policy_loss"] / first["policy_loss"] - 1)
    tone = "finished" if change < 0 else "bad"
    down, up = (sum(entry.bytes[way] for entry in rounds) / len(rounds) for way in ("down", "up"))
    cells = [
        (
            f"{last['policy_loss']:.4f} <small class={tone}>{change:+.1f} %</small>",
            f"policy loss, {first['policy_loss']:.4f} before training",
        ),
        (f"{found[best]['policy_loss']:.4f}", f"best policy loss, round {best}"),
        (f"{last['action_mse']:.1f}", f"action MSE, {first['action_mse']:.1f} before training"),
        (f"{len(rounds)} of {metrics['config']['run.num_rounds']}", "rounds done"),
        (f"{len(metrics['nodes'])}", f"nodes, {sum(e.num_examples for e in rounds):,} frames trained on"),
        (format_size(down + up), f"a round: {format_size(down)} to the nodes, {format_size(up)} from them"),
    ]
    if "privacy" in metrics:
        cells.append(("private", format_max_epsilon(metrics["privacy"])))
    body = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in cells)
    scale = f"<p class=quiet>Measured on {last['frames']} held-out frames ({last.get('mode', '')}).</p>"
    return f'<div class="figures">{body}</div>{scale}'


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
