"""`report.html` of a run, one self-contained file, and `plots/*.png`: made from its record alone.

python -m server.output.report.report outputs/<run>
"""

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from federation.config import RunConfig, flatten
from federation.errors import FederationError
from federation.files import write_atomically
from server.output.report.plots import PLOTS, draw
from server.output.report.simulation import simulation_section
from server.run.accountant import format_max_epsilon
from server.run.phases import PHASES, round_phases, steps_taken
from server.run.records import EVENTS_FILE, evaluations_behind, read_metrics
from server.run.round_record import RoundRecord, recorded_rounds

__all__ = ["write_report"]

_MAX_ROWS = 12  # of nodes, where one node is much like another
_SOFTWARE = ("torch", "lerobot", "flwr", "python")
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


class _Text(str):
    """A table cell that is read, not compared: aligned to the left."""


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
        figure = draw(name, metrics)
        figure.savefig(plots / f"{name}.png", dpi=120)
        vector = io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None})
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
    events = [json.loads(line) for line in lines if '"event": "node_' in line]
    shut_out = []
    for event in events:
        if event["event"] == "node_refused":
            shut_out.append((event.get("node", ""), "join denied", event["reason"]))
        elif event["event"] == "node_left_out":
            until = f" until round {event['until_round']}" if "until_round" in event else ""
            shut_out.append((event["node"], f"suspended{until}", event["reason"]))
    return shut_out


def _page(
    metrics: dict[str, Any], images: dict[str, bytes], shut_out: list[tuple[str, str, str]], simulated: str
) -> str:
    name, status = html.escape(metrics["run"]), metrics["status"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Federated run {name}</h1>",
        f"<p class=quiet><b class={status}>{status}</b> · {_period(metrics)}</p>",
        f"<p class=bad>{html.escape(metrics['reason'])}</p>" if metrics.get("reason") else "",
        _figures(metrics),
        "<h2>Is it learning?</h2>",
        _figure(images["policy_loss"], "Policy loss on held-out data, round by round; lower is better."),
        simulated,
        "<h2>Rounds</h2>",
        _rounds(recorded_rounds(metrics)),
        "<h2>Nodes</h2>",
        _nodes(metrics),
        _facts(metrics),
        '<div class="columns">',
        _figure(images["client_losses"], "Policy loss while training, on each node's own data."),
        _figure(images["update_norm"], "Size of the updates and of the change they made together."),
        "</div>",
        "<h2>Time and bytes</h2>",
        _figure(images["time_by_phase"], "Critical path: the server's own work and the slowest node's."),
        '<div class="columns">',
        _time(recorded_rounds(metrics)),
        _bytes(metrics),
        "</div>",
        "<h2>Faults</h2>",
        _faults(metrics, shut_out),
        '<div class="columns"><section><h2>Configuration</h2>',
        _configuration(metrics["config"]),
        "</section><section><h2>Environment of the server</h2>",
        _environment(metrics.get("environment", {})),
        "</section></div></body></html>",
    ]
    return "\n".join(parts)


def _period(metrics: dict[str, Any]) -> str:
    started = datetime.fromisoformat(metrics["started"])
    if not metrics["finished"]:
        return f"{started:%Y-%m-%d %H:%M} UTC to now"
    finished = datetime.fromisoformat(metrics["finished"])
    return f"{started:%Y-%m-%d %H:%M} UTC, {_duration((finished - started).total_seconds())}"


def _figures(metrics: dict[str, Any]) -> str:
    """The answer in one row."""
    rounds = recorded_rounds(metrics)
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
        (_size(down + up), f"a round: {_size(down)} to the nodes, {_size(up)} from them"),
    ]
    if "privacy" in metrics:
        cells.append(("private", format_max_epsilon(metrics["privacy"])))
    body = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in cells)
    scale = f"<p class=quiet>Measured on {last['frames']} held-out frames ({last.get('mode', '')}).</p>"
    return f'<div class="figures">{body}</div>{scale}'


def _rounds(rounds: list[RoundRecord]) -> str:
    header = ["round", "updates", "training loss", "± std", "held-out loss", "action MSE"]
    header += ["update norm", "examples", "skipped", "missing", "rejected", "time"]
    rows = []
    for entry in rounds:
        loss, evaluation = entry.policy_loss, entry.evaluation
        reverted = "" if entry.reverted_to is None else " reverted"
        rows.append(
            [
                entry.round,
                len(entry.clients),
                f"{loss['mean']:.4f}" if loss else "",
                f"{loss['std']:.4f}" if loss else "",
                f"{evaluation['policy_loss']:.4f}{reverted}" if evaluation else reverted,
                f"{evaluation['action_mse']:.1f}" if evaluation else "",
                f"{entry.update_norm:.4f}",
                entry.num_examples,
                entry.skipped_frames,
                len(entry.missing) or "",
                len(entry.rejected) or "",
                _duration(sum(entry.seconds.values())),
            ]
        )
    return _table(header, rows)


def _nodes(metrics: dict[str, Any]) -> str:
    header = ["node", "rounds", "trained on", "skipped", "last loss", "steps/s", "busy", "peak memory"]
    header += ["missed", "rejected"]
    privacy = metrics.get("privacy")
    header += ["epsilon of the updates"] if privacy else []
    rows, rounds = [], recorded_rounds(metrics)
    for name in sorted(metrics["nodes"]):
        updates = [entry.clients[name] for entry in rounds if name in entry.clients]
        last = updates[-1] if updates else {}
        train, data = last.get("train_seconds", 0.0), last.get("data_seconds", 0.0)
        rows.append(
            [
                name,
                len(updates),
                sum(update["num_examples"] for update in updates),
                sum(update.get("skipped_frames", 0) for update in updates),
                f"{last['policy_loss']:.4f}" if last else "",
                f"{steps_taken(last, metrics['config']) / train:.2f}" if train else "",
                f"{100 * (1 - data / train):.0f} %" if train else "",
                _size(last["device_memory_bytes"]) if "device_memory_bytes" in last else "",
                sum(name in entry.missing for entry in rounds) or "",
                sum(name in entry.rejected for entry in rounds) or "",
            ]
        )
        if privacy:
            value = privacy["epsilon"].get(name, 0.0)
            rows[-1].append("beyond a million" if value is None else f"{value:.2f}")
    table = _table(header, rows)
    return f"{table}<p class=quiet>{html.escape(privacy['not_covered'])}</p>" if privacy else table


def _facts(metrics: dict[str, Any]) -> str:
    """What each node said when it joined; the record of an older release lacks some of it."""
    header = ["node", "device", "software", "cameras", "episodes", "left out", "frames", "frames/s"]
    rows = []
    for name, facts in sorted(metrics["nodes"].items()):
        installed = facts.get("versions", {})
        software = [f"{package} {installed[package]}" for package in _SOFTWARE if package in installed]
        rows.append(
            [
                name,
                _Text(facts.get("device", "")),
                _Text(", ".join(software)),
                _Text(", ".join(facts["cameras"])),
                facts["episodes"],
                facts.get("left_out") or "",
                facts["frames"],
                facts.get("fps", ""),
            ]
        )
    return _table(header, rows)


def _time(rounds: list[RoundRecord]) -> str:
    totals = {phase: sum(round_phases(entry)[phase] for entry in rounds) for phase in PHASES}
    everything = sum(totals.values()) or 1.0
    rows = [
        [
            phase,
            _duration(seconds),
            f"{seconds / max(1, len(rounds)):.1f} s",
            f"{100 * seconds / everything:.0f} %",
        ]
        for phase, seconds in totals.items()
    ]
    return _table(["phase", "all rounds", "a round", "share"], rows)


def _bytes(metrics: dict[str, Any]) -> str:
    moved, rounds = {}, recorded_rounds(metrics)
    for name in sorted(metrics["nodes"]):
        updates = [entry.clients[name] for entry in rounds if name in entry.clients]
        moved[name] = [sum(u.get(key, 0) for u in updates) for key in ("download_bytes", "update_bytes")]
    if len(moved) > _MAX_ROWS:  # of each column for itself
        columns = list(zip(*moved.values(), strict=True))
        moved = {word: [choose(c) for c in columns] for word, choose in (("least", min), ("most", max))}
    rows = [[name, *map(_size, sizes)] for name, sizes in moved.items()]
    down, up = (sum(entry.bytes[way] for entry in rounds) for way in ("down", "up"))
    return _table(["node", "weights down", "updates up"], [*rows, ["all", _size(down), _size(up)]])


def _evaluated_anew(resumed: dict[str, Any]) -> list[str]:
    if "evaluated_anew" not in resumed:
        return []
    return [
        f"{resumed['evaluated_anew']}, so the weights before training and the best were evaluated anew and "
        "the other rounds before it have no figures"
    ]


def _faults(metrics: dict[str, Any], shut_out: list[tuple[str, str, str]]) -> str:
    """What went wrong, the same fault of the same node once, with all its rounds."""
    rounds: dict[tuple[str, str, str], list[int]] = {}
    entries = recorded_rounds(metrics)
    for entry in entries:
        faults = [(name, "missing", "no reply in time") for name in entry.missing]
        faults += [(name, "rejected", rejection.reason) for name, rejection in entry.rejected.items()]
        faults += [
            (name, "capped", f"it counted as {weight:.10g} frames, the median of the sites")
            for name, weight in entry.capped.items()
        ]
        for fault in faults:
            rounds.setdefault(fault, []).append(entry.round)
    rows = [[*map(_Text, fault), _Text("")] for fault in dict.fromkeys(shut_out)]
    rows += [
        [
            _Text("server"),
            _Text("resumed"),
            _Text("; ".join([f"at {again['time']}", *_evaluated_anew(again)])),
            _Text(f"after {again['after_round']}"),
        ]
        for again in metrics.get("resumed", [])
    ]
    rows += [
        [
            _Text("server"),
            _Text("reverted"),
            _Text(f"the policy loss spiked; weights of round {entry.reverted_to} taken again"),
            _Text(f"{entry.round}"),
        ]
        for entry in entries
        if entry.reverted_to is not None
    ]
    rows += [
        [_Text(name), _Text(what), _Text(why), _Text(", ".join(map(str, when)))]
        for (name, what, why), when in rounds.items()
    ]
    if not rows:
        return "<p>No node was missing, no update was rejected, nothing had to be resumed.</p>"
    return _table(["node", "what", "why", "rounds"], rows)


def _configuration(config: dict[str, Any]) -> str:
    """Every setting; those that differ from the defaults are bold."""
    defaults = flatten(RunConfig())
    changed = {key for key, value in config.items() if value != defaults.get(key)}
    note = "<p class=quiet>Bold: other than the default.</p>"
    return note + _table(["setting", "value"], [[key, value] for key, value in config.items()], changed)


def _environment(environment: dict[str, Any]) -> str:
    rows = [
        [key.removesuffix("_bytes"), _size(value) if key.endswith("_bytes") else value]
        for key, value in environment.items()
    ]
    return _table(["what", "value"], rows) if rows else "<p>It was not recorded.</p>"


def _figure(svg: bytes, caption: str) -> str:
    source = base64.b64encode(svg).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], bold: frozenset[str] | set[str] = frozenset()
) -> str:
    text = [isinstance(cell, _Text) for cell in rows[0]] if rows else [False] * len(header)
    head = "".join(
        f"<th{' class=text' if left else ''}>{html.escape(cell)}"
        for cell, left in zip(header, text, strict=True)
    )
    body = ""
    for row in rows:
        cells = "".join(
            f"<td class=text>{html.escape(cell)}"
            if isinstance(cell, _Text)
            else f"<td>{html.escape(str(cell))}"
            for cell in row
        )
        body += f"<tr class=changed>{cells}" if row[0] in bold else f"<tr>{cells}"
    return f'<div class="wide"><table><thead><tr>{head}</thead><tbody>{body}</tbody></table></div>'


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if hours < 1 else f"{hours:.1f} h"


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
