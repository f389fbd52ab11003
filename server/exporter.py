"""Prometheus exporter: a long-lived service that shows the newest run from its record on disk.

    python -m server.exporter --outputs outputs --port 9400

The ServerApp is a child process that ends with its run, so it is not scraped itself. Everything here is
derived from `federated_metrics.json` at the moment of the scrape: a restart of the exporter loses nothing,
and counters go on where they were.
"""

import argparse
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from federation.logs import configure, get_logger
from server.records import METRICS_FILE

__all__ = ["RunCollector", "main"]

_STATES = ("running", "finished", "failed")
_EVALUATION_FIGURES = {
    "policy_loss": "Policy loss on a held-out data set after the newest evaluation",
    "action_mse": "Mean squared error of predicted actions, in squared units of the data set",
}
_CLIENT_FIGURES = {
    "policy_loss": "Mean policy loss of a node in the newest round it took part in",
    "proximal_loss": "Mean proximal loss of a node in the newest round it took part in",
    "grad_norm": "Mean gradient norm of a node before clipping, in the newest round it took part in",
    "update_norm": "L2 norm of a node's update in the newest round it took part in",
    "train_seconds": "Seconds a node spent in training steps in the newest round it took part in",
}
_log = get_logger("server.exporter")


class RunCollector:
    """Turns the record of the newest run in `outputs` into metrics, anew at each scrape."""

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the newest run; only `federation_up` if there is none or it is unreadable."""
        run = self._newest_run()
        yield GaugeMetricFamily("federation_up", "1 if there is a readable run", float(run is not None))
        if run is None:
            return
        yield from _run_metrics(run)
        yield from _evaluation_metrics(run)
        yield from _client_metrics(run)

    def _newest_run(self) -> dict[str, Any] | None:
        files = sorted(self._outputs.glob(f"*/{METRICS_FILE}"), key=lambda file: file.stat().st_mtime)
        if not files:
            return None
        try:
            return dict(json.loads(files[-1].read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            _log.warning("%s cannot be read: %s", files[-1], error)
            return None


def _run_metrics(run: dict[str, Any]) -> Iterator[Metric]:
    rounds = run["rounds"]
    state = GaugeMetricFamily(
        "federation_run_state", "1 for the state the run is in", labels=["run", "state"]
    )
    for name in _STATES:
        state.add_metric([run["run"], name], float(run["status"] == name))
    yield state
    yield GaugeMetricFamily("federation_round", "Newest complete round", rounds[-1]["round"] if rounds else 0)
    planned = run["config"]["run.num_rounds"]
    yield GaugeMetricFamily("federation_rounds_planned", "Rounds the run is configured for", planned)
    yield GaugeMetricFamily("federation_nodes_joined", "Nodes that joined the run", len(run["nodes"]))
    aggregated = sum(entry["aggregated"] for entry in rounds)
    yield CounterMetricFamily(
        "federation_rounds_aggregated", "Rounds with at least one good update", aggregated
    )
    phases = CounterMetricFamily(
        "federation_phase_seconds", "Seconds spent in each phase of the rounds", labels=["phase"]
    )
    for phase in ("send", "train", "aggregate", "evaluate", "checkpoint"):
        phases.add_metric([phase], sum(entry["seconds"].get(phase, 0.0) for entry in rounds))
    yield phases
    transferred = CounterMetricFamily(
        "federation_transferred_bytes", "Bytes of weights (down) and updates (up)", labels=["direction"]
    )
    for direction in ("down", "up"):
        transferred.add_metric([direction], sum(entry["bytes"][direction] for entry in rounds))
    yield transferred
    if rounds:
        newest = rounds[-1]
        yield GaugeMetricFamily(
            "federation_participants", "Good updates of the round", len(newest["clients"])
        )
        yield GaugeMetricFamily(
            "federation_update_norm", "L2 norm of the global update", newest["update_norm"]
        )
        yield GaugeMetricFamily(
            "federation_round_seconds", "Duration of the round", sum(newest["seconds"].values())
        )
        if newest["policy_loss"]:
            loss = newest["policy_loss"]
            yield GaugeMetricFamily("federation_client_policy_loss_mean", "Mean over the nodes", loss["mean"])
            yield GaugeMetricFamily(
                "federation_client_policy_loss_std", "Standard deviation over the nodes", loss["std"]
            )


def _evaluation_metrics(run: dict[str, Any]) -> Iterator[Metric]:
    evaluations = [entry["evaluation"] for entry in run["rounds"] if "evaluation" in entry]
    if run["baseline"]:
        evaluations.insert(0, run["baseline"])
    if not evaluations:
        return
    for figure, text in _EVALUATION_FIGURES.items():
        family = GaugeMetricFamily(f"federation_{figure}", text, labels=["dataset"])
        family.add_metric(["all"], evaluations[-1][figure])
        for name, result in evaluations[-1]["datasets"].items():
            family.add_metric([name], result[figure])
        yield family
    best = min(evaluation["policy_loss"] for evaluation in evaluations)
    yield GaugeMetricFamily("federation_policy_loss_best", "Lowest policy loss so far", best)


def _client_metrics(run: dict[str, Any]) -> Iterator[Metric]:
    rounds, names = run["rounds"], sorted(run["nodes"])
    newest = {name: entry["clients"][name] for entry in rounds for name in names if name in entry["clients"]}
    for figure, text in _CLIENT_FIGURES.items():
        gauge = GaugeMetricFamily(f"federation_node_{figure}", text, labels=["node"])
        for name, metrics in newest.items():
            gauge.add_metric([name], metrics[figure])
        yield gauge
    for counted, text in (
        ("num_examples", "Frames a node trained on"),
        ("skipped_frames", "Frames a node could not decode"),
    ):
        counter = CounterMetricFamily(f"federation_node_{counted}", text, labels=["node"])
        for name in names:
            trained = [entry["clients"][name] for entry in rounds if name in entry["clients"]]
            counter.add_metric([name], sum(metrics[counted] for metrics in trained))
        yield counter
    for kind, text in (
        ("missing", "Rounds in which a node did not reply in time"),
        ("refused", "Updates of a node that were refused"),
    ):
        counter = CounterMetricFamily(f"federation_node_{kind}", text, labels=["node"])
        for name in names:
            counter.add_metric([name], sum(name in entry[kind] for entry in rounds))
        yield counter


def main() -> None:
    """Serve /metrics until stopped."""
    parser = argparse.ArgumentParser(description="Export the newest run's figures to Prometheus.")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--port", type=int, default=9400)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (a container's own network)")
    arguments = parser.parse_args()
    configure()
    registry = CollectorRegistry()
    registry.register(RunCollector(arguments.outputs))
    start_http_server(arguments.port, addr=arguments.host, registry=registry)
    _log.info("metrics of %s on port %d", arguments.outputs, arguments.port)
    threading.Event().wait()


if __name__ == "__main__":
    main()
