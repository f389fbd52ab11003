"""What the totals of a run and SuperLink's state become as samples of metrics."""

import math
from typing import Any

from federation.metrics import Samples
from server.monitoring.superlink import SuperLinkState
from server.monitoring.totals import NodeTotals, RunTotals
from server.run.phases import node_phases, round_phases, steps_taken

__all__ = [
    "PACKAGES",
    "add_last_seen",
    "add_learning",
    "add_node",
    "add_participants",
    "add_run",
    "add_superlink",
]

PACKAGES = ("python", "flwr", "lerobot", "torch")
_STATES = ("running", "finished", "failed")
_SPREADS = ("policy_loss", "proximal_loss", "grad_norm")
_GPU_FIGURES = {  # of a node with a GPU
    "node_gpu_utilisation_ratio": "gpu_utilisation",
    "node_gpu_memory_used_bytes": "gpu_memory_bytes",
    "node_gpu_temperature_celsius": "gpu_celsius",
}
_NODE_FIGURES = ("policy_loss", "proximal_loss", "grad_norm", "update_norm", "device_memory_bytes")
_RUN_INFO = {
    "policy": "policy.size",
    "aggregation": "aggregation.method",
    "download": "wire.download",
    "upload": "wire.upload",
    "privacy": "privacy.mode",
}


def add_run(samples: Samples, run: RunTotals, name: str) -> None:
    """Add the state of the run `name`, its rounds and where their time went."""
    config = run.config
    labels = {label: str(config[key]) for label, key in _RUN_INFO.items()}
    samples.add("run_info", 1, run=name, **labels)
    for state in _STATES:
        samples.add("run_state", run.status == state, state=state)
    samples.add("run_start_timestamp_seconds", run.started)
    samples.add("last_event_timestamp_seconds", run.last_event)
    samples.add("rounds_planned", config["run.num_rounds"])
    samples.add("round_deadline_seconds", config["federation.round_deadline_seconds"])
    samples.add("round", run.round)
    samples.add("round_in_progress", run.round_in_progress)
    samples.add("round_waits_for_replies", int(bool(run.round_in_progress) and run.waits_for_replies))
    samples.add("rounds", run.rounds)
    samples.add("rounds_aggregated", run.rounds_aggregated)
    samples.add("examples", sum(node.examples for node in run.nodes.values()))
    for direction in ("down", "up"):
        total = sum(node.bytes[direction] for node in run.nodes.values())
        samples.add("transferred_bytes", total, direction=direction)
    for phase, seconds in run.phase_seconds.items():
        samples.add("phase_seconds", seconds, phase=phase)
    if run.round_started:
        samples.add("round_start_timestamp_seconds", run.round_started)
    if run.newest:
        samples.add("round_duration_seconds", sum(run.newest.seconds.values()))
        for phase, seconds in round_phases(run.newest).items():
            samples.add("round_phase_seconds", seconds, phase=phase)


def add_learning(samples: Samples, run: RunTotals) -> None:
    """Add what the evaluations and the newest round show."""
    samples.add("evaluations", run.evaluations)
    samples.add("rounds_reverted", run.reverts)
    if run.baseline is not None:
        samples.add("policy_loss_baseline", run.baseline)
    if run.best is not None:
        samples.add("policy_loss_best", run.best)
    if run.evaluation is not None:
        samples.add("evaluated_round", run.evaluation["round"])
        results = {**run.evaluation.get("datasets", {}), "all": run.evaluation}
        for dataset, result in results.items():
            samples.add("policy_loss", result["policy_loss"], dataset=dataset)
            samples.add("action_mse", result["action_mse"], dataset=dataset)
    if run.newest:
        samples.add("update_norm", run.newest.update_norm)
        if run.newest.proximal_mu is not None:  # an older record has none
            samples.add("proximal_mu", run.newest.proximal_mu)
        for figure in _SPREADS:
            if spread := getattr(run.newest, figure):
                samples.add(f"client_{figure}_mean", spread["mean"])
                samples.add(f"client_{figure}_std", spread["std"])


def add_participants(samples: Samples, run: RunTotals) -> None:
    """Add how many nodes take part and how many do not."""
    samples.add("min_nodes", run.config["federation.min_nodes"])
    samples.add("waiting_for_nodes", run.waiting_for)
    samples.add("nodes_joined", len(run.nodes))
    samples.add("sampled_nodes", run.sampled)
    samples.add("joins_denied", run.joins_denied)
    samples.add("denied_nodes", run.denied)
    if run.newest:
        samples.add("participants", len(run.newest.clients))
        samples.add("timed_out_replies", len(run.newest.missing))
        samples.add("rejected_updates", len(run.newest.rejected))


def add_node(
    samples: Samples, name: str, node: NodeTotals, run: RunTotals, privacy: dict[str, Any] | None
) -> None:
    """Add the figures of one node; `privacy` is what `privacy_spent` returns."""
    samples.add("node_privacy_epsilon", _epsilon(privacy, name), node=name)
    _add_facts(samples, name, node.facts)
    samples.add("node_suspended", node.suspended, node=name)
    samples.add("node_suspended_until_round", node.until_round, node=name)
    samples.add("node_updates", node.updates, node=name)
    samples.add("node_examples", node.examples, node=name)
    samples.add("node_skipped_frames", node.skipped_frames, node=name)
    for direction, total in node.bytes.items():
        samples.add("node_transferred_bytes", total, node=name, direction=direction)
    samples.add("node_timed_out_replies", node.timed_out_replies, node=name)
    for reason, count in node.rejected.items():
        samples.add("node_rejected_updates", count, node=name, reason=reason)
    samples.add("node_absent_rounds", node.absent_rounds, node=name)
    if not node.newest:
        return
    samples.add("node_round", node.round, node=name)
    for figure in _NODE_FIGURES:
        if figure in node.newest:
            samples.add(f"node_{figure}", node.newest[figure], node=name)
    for metric, figure in _GPU_FIGURES.items():
        if figure in node.newest:
            samples.add(metric, node.newest[figure], node=name)
    for phase, seconds in node_phases(node.newest).items():
        samples.add("node_phase_seconds", seconds, node=name, phase=phase)
    if train_seconds := node.newest.get("train_seconds"):
        steps = steps_taken(node.newest, run.config)
        samples.add("node_steps_per_second", steps / train_seconds, node=name)
        waiting = node.newest.get("data_seconds", 0.0)
        samples.add("node_device_busy_ratio", 1 - waiting / train_seconds, node=name)


def _add_facts(samples: Samples, name: str, facts: dict[str, Any]) -> None:
    """Add what the node answered when it joined; the record of an older release lacks some of it."""
    installed = facts.get("versions", {})
    labels = {package: installed.get(package, "") for package in PACKAGES}
    cameras = ", ".join(facts.get("cameras", []))
    samples.add("node_info", 1, node=name, device=facts.get("device", ""), cameras=cameras, **labels)
    samples.add("node_episodes", facts["episodes"], node=name)
    samples.add("node_excluded_episodes", facts.get("left_out", 0), node=name)
    samples.add("node_frames", facts["frames"], node=name)
    if "fps" in facts:
        samples.add("node_fps", facts["fps"], node=name)


def _epsilon(privacy: dict[str, Any] | None, node: str) -> float:
    spent = privacy["epsilon"].get(node, 0.0) if privacy else None
    return math.inf if spent is None else spent


def add_last_seen(samples: Samples, run: RunTotals | None, superlink: SuperLinkState | None) -> None:
    """Add the later of the node's newest reply and its newest heartbeat."""
    seen = {name: node.last_seen for name, node in run.nodes.items()} if run else {}
    for name, heartbeat in (superlink.last_seen if superlink else {}).items():
        seen[name] = max(heartbeat, seen.get(name, 0.0))
    for name, time_ in sorted(seen.items()):
        samples.add("node_last_seen_timestamp_seconds", time_, node=name)


def add_superlink(samples: Samples, state: SuperLinkState) -> None:
    """Add what SuperLink answered, or that it did not."""
    samples.add("superlink_up", state.up)
    if not state.up:
        return
    samples.add("superlink_response_seconds", state.response_seconds)
    for status, count in state.nodes.items():
        samples.add("superlink_nodes", count, status=status)
    for status, count in state.runs.items():
        samples.add("superlink_runs", count, status=status)
    for name, online in state.online.items():
        samples.add("node_online", online, node=name)
