"""Prometheus exporter: a long-lived service that shows the newest run and what it runs on.

    python -m server.monitoring.exporter --outputs outputs --port 9400 --superlink superlink:8000 --ca ca.crt

The ServerApp is a child process that ends with its run, so it is not scraped itself. Everything about a run
comes from its record on disk: a restart of the exporter, or of anything else, loses nothing, and counters go
on where they were.
"""

import argparse
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import Metric

from federation.errors import FederationError
from federation.logs import configure, get_logger
from federation.metrics import Samples
from federation.versions import versions
from server.deploy.control import SuperLink
from server.monitoring.catalogue import CATALOGUE
from server.monitoring.superlink import SuperLinkState, SuperLinkWatch
from server.monitoring.totals import NodeTotals, RunFollower, RunTotals
from server.run.accountant import privacy_spent
from server.run.phases import node_phases, round_phases, steps_taken
from server.run.records import EVENTS_FILE

__all__ = ["Exporter", "main"]

_STATES = ("running", "finished", "failed")
_PACKAGES = ("python", "flwr", "lerobot", "torch")
_SPREADS = ("policy_loss", "proximal_loss", "grad_norm")
_NODE_FIGURES = ("policy_loss", "proximal_loss", "grad_norm", "update_norm", "device_memory_bytes")
_RUN_INFO = {
    "policy": "policy.size",
    "aggregation": "aggregation.method",
    "download": "wire.download",
    "upload": "wire.upload",
    "privacy": "privacy.mode",
}
_log = get_logger("server.monitoring.exporter")


class Exporter:
    """Turns what is known into metrics at each scrape.

    Args:
        outputs: folder of the runs; the one written to last is shown.
        certificates: PEM files whose expiry is shown under their name without ending.
        superlink: asks SuperLink; None leaves its metrics out.
    """

    def __init__(
        self, outputs: Path, certificates: Sequence[Path] = (), superlink: SuperLinkWatch | None = None
    ) -> None:
        self._outputs, self._certificates, self._superlink = outputs, certificates, superlink
        self._versions = versions()
        self._follower: RunFollower | None = None
        self._lock = threading.Lock()  # Prometheus may scrape while a person looks
        self._said: dict[str, str] = {}  # thing -> what is wrong with it: said once, not at every scrape

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; without a readable run only those of the infrastructure."""
        samples = Samples(CATALOGUE)
        superlink = self._superlink.state if self._superlink else None
        with self._lock:
            totals = self._catch_up()
            samples.add("record_readable", totals is not None)
            if totals is not None:
                _add_run(samples, totals, self._newest_run or "")
                _add_learning(samples, totals)
                _add_participants(samples, totals)
                privacy = self._privacy_spent(totals)
                for name, node in sorted(totals.nodes.items()):
                    _add_node(samples, name, node, totals)
                    samples.add("node_privacy_epsilon", _epsilon(privacy, name), node=name)
            _add_last_seen(samples, totals, superlink)
        if superlink is not None:
            _add_superlink(samples, superlink)
        self._add_machine(samples)
        yield from samples.families()

    @property
    def _newest_run(self) -> str | None:
        return self._follower.folder.name if self._follower else None

    def _catch_up(self) -> RunTotals | None:
        try:
            files = list(self._outputs.glob(f"*/{EVENTS_FILE}"))
            if not files:
                return None
            folder = max(files, key=lambda file: file.stat().st_mtime).parent
            if not (self._follower and self._follower.folder == folder and self._follower.is_current()):
                self._follower = RunFollower(folder)
            totals = self._follower.catch_up()
        except (OSError, ValueError, TypeError) as error:
            self._warn("the newest run's record", error)
            self._follower = None
            return None
        self._said.pop("the newest run's record", None)
        return totals

    def _privacy_spent(self, run: RunTotals) -> dict[str, Any] | None:
        try:
            return privacy_spent(run.config, self._outputs / (self._newest_run or ""))
        except FederationError as error:
            self._warn("the privacy ledger", error)
            return None

    def _warn(self, thing: str, error: Exception) -> None:
        if self._said.get(thing) != str(error):
            _log.warning("%s cannot be read: %s", thing, error)
            self._said[thing] = str(error)

    def _add_machine(self, samples: Samples) -> None:
        labels = {name: self._versions.get(name, "") for name in _PACKAGES}
        samples.add("build_info", 1, **labels)
        disk = os.statvfs(self._outputs)
        samples.add("disk_free_bytes", disk.f_bavail * disk.f_frsize)
        samples.add("disk_size_bytes", disk.f_blocks * disk.f_frsize)
        for file in self._certificates:
            try:
                certificate = x509.load_pem_x509_certificate(file.read_bytes())
            except (OSError, ValueError) as error:
                self._warn(f"certificate {file}", error)
                continue
            self._said.pop(f"certificate {file}", None)
            expiry = certificate.not_valid_after_utc.timestamp()
            samples.add("certificate_expiry_timestamp_seconds", expiry, certificate=file.stem)


def _add_run(samples: Samples, run: RunTotals, name: str) -> None:
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


def _add_learning(samples: Samples, run: RunTotals) -> None:
    samples.add("evaluations", run.evaluations)
    samples.add("rollbacks", run.rollbacks)
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


def _add_participants(samples: Samples, run: RunTotals) -> None:
    samples.add("min_nodes", run.config["federation.min_nodes"])
    samples.add("waiting_for_nodes", run.waiting_for)
    samples.add("nodes_joined", len(run.nodes))
    samples.add("sampled_nodes", run.sampled)
    samples.add("joins_refused", run.joins_refused)
    samples.add("shut_out_nodes", run.shut_out)
    if run.newest:
        samples.add("participants", len(run.newest.clients))
        samples.add("missing_nodes", len(run.newest.missing))
        samples.add("refused_nodes", len(run.newest.rejected))


def _add_node(samples: Samples, name: str, node: NodeTotals, run: RunTotals) -> None:
    _add_facts(samples, name, node.facts)
    samples.add("node_left_out", node.left_out, node=name)
    samples.add("node_suspended_until_round", node.until_round, node=name)
    samples.add("node_updates", node.updates, node=name)
    samples.add("node_examples", node.examples, node=name)
    samples.add("node_skipped_frames", node.skipped_frames, node=name)
    for direction, total in node.bytes.items():
        samples.add("node_transferred_bytes", total, node=name, direction=direction)
    samples.add("node_missed_rounds", node.missed_rounds, node=name)
    for reason, count in node.refused.items():
        samples.add("node_refused_updates", count, node=name, reason=reason)
    samples.add("node_absent_rounds", node.absent_rounds, node=name)
    if not node.newest:
        return
    samples.add("node_round", node.round, node=name)
    for figure in _NODE_FIGURES:
        if figure in node.newest:
            samples.add(f"node_{figure}", node.newest[figure], node=name)
    for phase, seconds in node_phases(node.newest).items():
        samples.add("node_phase_seconds", seconds, node=name, phase=phase)
    if train_seconds := node.newest.get("train_seconds"):
        steps = steps_taken(node.newest, run.config)
        samples.add("node_steps_per_second", steps / train_seconds, node=name)
        waiting = node.newest.get("data_seconds", 0.0)
        samples.add("node_device_busy_ratio", 1 - waiting / train_seconds, node=name)


def _add_facts(samples: Samples, name: str, facts: dict[str, Any]) -> None:
    """What the node said when it joined; the record of an older release lacks some of it."""
    installed = facts.get("versions", {})
    labels = {package: installed.get(package, "") for package in _PACKAGES}
    cameras = ", ".join(facts.get("cameras", []))
    samples.add("node_info", 1, node=name, device=facts.get("device", ""), cameras=cameras, **labels)
    samples.add("node_episodes", facts["episodes"], node=name)
    samples.add("node_left_out_episodes", facts.get("left_out", 0), node=name)
    samples.add("node_frames", facts["frames"], node=name)
    if "fps" in facts:
        samples.add("node_fps", facts["fps"], node=name)


def _epsilon(privacy: dict[str, Any] | None, node: str) -> float:
    spent = privacy["epsilon"].get(node, 0.0) if privacy else None
    return math.inf if spent is None else spent


def _add_last_seen(samples: Samples, run: RunTotals | None, superlink: SuperLinkState | None) -> None:
    """The later of the node's newest reply and its newest heartbeat."""
    seen = {name: node.last_seen for name, node in run.nodes.items()} if run else {}
    for name, heartbeat in (superlink.last_seen if superlink else {}).items():
        seen[name] = max(heartbeat, seen.get(name, 0.0))
    for name, time_ in sorted(seen.items()):
        samples.add("node_last_seen_timestamp_seconds", time_, node=name)


def _add_superlink(samples: Samples, state: SuperLinkState) -> None:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve /metrics until stopped; exit code 2 with one line if something is wrong."""
    parser = argparse.ArgumentParser(description="Export the newest run's figures to Prometheus.")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--port", type=int, default=9400)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, without TLS")
    parser.add_argument("--superlink", metavar="HOST:PORT", help="SuperLink's state is exported too")
    parser.add_argument("--ca", type=Path, help="certificate that SuperLink is verified with")
    parser.add_argument(
        "--certificates", type=Path, nargs="+", default=[], help="PEM files to show the expiry of"
    )
    options = parser.parse_args(arguments)
    configure()
    try:
        server_url = _start(options)
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _log.info("metrics of %s on %s", options.outputs, server_url)
    threading.Event().wait()
    return 0


def _start(options: argparse.Namespace) -> str:
    if not options.outputs.is_dir():
        raise FederationError(f"--outputs {options.outputs}: no such folder; name the one runs are kept in")
    if options.superlink and not (options.ca and options.ca.is_file()):
        raise FederationError(f"--ca {options.ca}: no such file; SuperLink is verified with it (make certs)")
    watch = SuperLinkWatch(SuperLink(options.superlink, options.ca)) if options.superlink else None
    registry = CollectorRegistry()
    registry.register(Exporter(options.outputs, options.certificates, watch))
    ProcessCollector(registry=registry)
    try:
        start_http_server(options.port, addr=options.host, registry=registry)
    except OSError as error:
        raise FederationError(f"port {options.port} cannot be listened on ({error.strerror})") from None
    return f"http://{options.host}:{options.port}/metrics"


if __name__ == "__main__":
    sys.exit(main())
