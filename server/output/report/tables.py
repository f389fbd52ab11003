"""The report's tables: rounds, nodes, time, bytes, faults and settings."""

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

from federation.config import RunConfig, flatten
from server.output.report.formats import format_duration, format_size
from server.run.phases import PHASES, round_phases, steps_taken
from server.run.round_record import RoundRecord

__all__ = [
    "Table",
    "bytes_table",
    "configuration_table",
    "environment_table",
    "facts_table",
    "faults_table",
    "nodes_table",
    "rounds_table",
    "time_table",
]

_MAX_ROWS = 12  # of nodes, where one node is much like another
_SOFTWARE = ("torch", "lerobot", "flwr", "python")


class Table(NamedTuple):
    """What a table of the report shows."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text: Container[int] = ()  # columns that are read, not compared: aligned to the left
    bold: Container[str] = ()  # rows by their first cell


def rounds_table(rounds: list[RoundRecord]) -> Table:
    """Return a table with a row for each round."""
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
                format_duration(sum(entry.seconds.values())),
            ]
        )
    return Table(header, rows)


def nodes_table(metrics: dict[str, Any], rounds: list[RoundRecord]) -> Table:
    """Return a table with a row for each node: what it trained and how fast."""
    header = ["node", "rounds", "trained on", "skipped", "last loss", "steps/s", "busy", "peak memory"]
    header += ["missed", "rejected"]
    privacy = metrics.get("privacy")
    header += ["epsilon of the updates"] if privacy else []
    rows = []
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
                format_size(last["device_memory_bytes"]) if "device_memory_bytes" in last else "",
                sum(name in entry.missing for entry in rounds) or "",
                sum(name in entry.rejected for entry in rounds) or "",
            ]
        )
        if privacy:
            value = privacy["epsilon"].get(name, 0.0)
            rows[-1].append("beyond a million" if value is None else f"{value:.2f}")
    return Table(header, rows)


def facts_table(metrics: dict[str, Any]) -> Table:
    """Return what each node answered when it joined; the record of an older release lacks some of it."""
    header = ["node", "device", "software", "cameras", "episodes", "excluded", "frames", "frames/s"]
    rows = []
    for name, facts in sorted(metrics["nodes"].items()):
        installed = facts.get("versions", {})
        software = [f"{package} {installed[package]}" for package in _SOFTWARE if package in installed]
        rows.append(
            [
                name,
                facts.get("device", ""),
                ", ".join(software),
                ", ".join(facts["cameras"]),
                facts["episodes"],
                facts.get("left_out") or "",
                facts["frames"],
                facts.get("fps", ""),
            ]
        )
    return Table(header, rows, text=range(1, 4))


def time_table(rounds: list[RoundRecord]) -> Table:
    """Return a table with a row for each phase: where the time went."""
    totals = {phase: sum(round_phases(entry)[phase] for entry in rounds) for phase in PHASES}
    everything = sum(totals.values()) or 1.0
    rows = [
        [
            phase,
            format_duration(spent),
            f"{spent / max(1, len(rounds)):.1f} s",
            f"{100 * spent / everything:.0f} %",
        ]
        for phase, spent in totals.items()
    ]
    return Table(["phase", "all rounds", "a round", "share"], rows)


def bytes_table(metrics: dict[str, Any], rounds: list[RoundRecord]) -> Table:
    """Return a table with a row for each node: what it received and sent, the exported policy last."""
    moved, delivered = {}, metrics.get("delivered", {})
    for name in sorted(metrics["nodes"]):
        updates = [entry.clients[name] for entry in rounds if name in entry.clients]
        moved[name] = [sum(u.get(key, 0) for u in updates) for key in ("download_bytes", "update_bytes")]
        sent = delivered.get(name, {})
        moved[name].append(0 if sent.get("error") else sent.get("bytes", 0))
    home = sum(policy for _, _, policy in moved.values())
    if len(moved) > _MAX_ROWS:  # of each column for itself
        columns = list(zip(*moved.values(), strict=True))
        moved = {word: [choose(c) for c in columns] for word, choose in (("least", min), ("most", max))}
    rows = [[name, *map(format_size, sizes)] for name, sizes in moved.items()]
    down, up = (sum(entry.bytes[way] for entry in rounds) for way in ("down", "up"))
    rows.append(["all", *map(format_size, (down, up, home))])
    return Table(["node", "weights down", "updates up", "policy home"], rows)


def faults_table(
    metrics: dict[str, Any], entries: list[RoundRecord], shut_out: list[tuple[str, str, str]]
) -> Table:
    """Return what went wrong, the same fault of the same node once, with all its rounds."""
    rounds: dict[tuple[str, str, str], list[int]] = {}
    for entry in entries:
        faults = [(name, "missing", "no reply in time") for name in entry.missing]
        faults += [(name, "rejected", rejection.reason) for name, rejection in entry.rejected.items()]
        faults += [
            (name, "capped", f"it counted as {weight:.10g} frames, the median of the sites")
            for name, weight in entry.capped.items()
        ]
        for fault in faults:
            rounds.setdefault(fault, []).append(entry.round)
    rows = [(*fault, "") for fault in dict.fromkeys(shut_out)]
    rows += [
        ("server", "resumed", _resumption(again), f"after {again['after_round']}")
        for again in metrics.get("resumed", [])
    ]
    spiked = "the policy loss spiked; weights of round {} taken again"
    rows += [
        ("server", "reverted", spiked.format(entry.reverted_to), f"{entry.round}")
        for entry in entries
        if entry.reverted_to is not None
    ]
    rows += [(*fault, ", ".join(map(str, when))) for fault, when in rounds.items()]
    delivered = sorted(metrics.get("delivered", {}).items())
    rows += [(name, "no policy", sent["error"], "") for name, sent in delivered if sent.get("error")]
    return Table(["node", "what", "why", "rounds"], rows, text=range(4))


def _resumption(resumed: dict[str, Any]) -> str:
    if "evaluated_anew" not in resumed:
        return f"at {resumed['time']}"
    return (
        f"at {resumed['time']}; {resumed['evaluated_anew']}, so the weights before training and the best "
        "were evaluated anew and the other rounds before it have no figures"
    )


def configuration_table(config: dict[str, Any]) -> Table:
    """Return every setting; those that differ from the defaults are bold."""
    defaults = flatten(RunConfig())
    changed = {key for key, value in config.items() if value != defaults.get(key)}
    return Table(["setting", "value"], list(config.items()), bold=changed)


def environment_table(environment: dict[str, Any]) -> Table:
    """Return what the server ran on."""
    rows = [
        (key.removesuffix("_bytes"), format_size(value) if key.endswith("_bytes") else value)
        for key, value in environment.items()
    ]
    return Table(["what", "value"], rows)
