"""Every metric the exporters serve: name, type, labels, meaning. The exporters make no other.

Names follow Prometheus' conventions: base units in the name, `_total` for counters. Labels are bounded: a
node's name (as many as there are sites), and fixed lists. Rounds and runs are never labels, but for the name
of the one run that is shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from federation.privacy_budget import NOT_COVERED

__all__ = ["CATALOGUE", "GROUPS", "MetricSpec", "Samples"]


@dataclass(frozen=True)
class MetricSpec:
    """One metric; a counter's name ends in `_total`."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: str = "gauge"  # or "counter"


def _gauge(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"federation_{name}", text, labels)


def _counter(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"federation_{name}_total", text, labels, "counter")


_RUN_LABELS = ("run", "policy", "aggregation", "download", "upload", "privacy")
_EPSILON = f"Privacy spent; +Inf: unbounded, or beyond a million. {NOT_COVERED}"
_NODE_LABELS = ("node", "device", "cameras", "python", "flwr", "lerobot", "torch")

GROUPS: dict[str, tuple[MetricSpec, ...]] = {
    "The run": (
        _gauge("record_readable", "1 if there is a run and its record can be read"),
        _gauge("run_info", "1, with the run that is shown and how it is set up", *_RUN_LABELS),
        _gauge("run_state", "1 for the state the run is in: running, finished, failed", "state"),
        _gauge("run_start_timestamp_seconds", "When the run started or was last resumed"),
        _gauge("last_event_timestamp_seconds", "When something was last written to the run's record"),
        _gauge("rounds_planned", "Rounds the run is configured for"),
        _gauge("round", "Newest complete round"),
        _gauge("round_in_progress", "Round under way; 0 if none is"),
        _gauge("round_start_timestamp_seconds", "When the newest round was sent to its nodes"),
        _gauge("round_duration_seconds", "Duration of the newest complete round"),
        _gauge("round_deadline_seconds", "Configured time after which a reply is not waited for"),
        _gauge("round_phase_seconds", "Critical path of the newest complete round by phase", "phase"),
        _counter("phase_seconds", "Critical path of all rounds by phase", "phase"),
        _counter("rounds", "Complete rounds, those repeated after a resume included"),
        _counter("rounds_aggregated", "Rounds with at least one good update"),
        _counter("examples", "Frames trained on by all nodes"),
        _counter("transferred_bytes", "Encoded weights (down) and updates (up)", "direction"),
    ),
    "Is it learning": (
        _gauge("policy_loss", "Flow-matching loss on held-out data, newest evaluation", "dataset"),
        _gauge("action_mse", "Squared error of actions on held-out data, squared units of it", "dataset"),
        _gauge("policy_loss_baseline", "Policy loss on all held-out data before training"),
        _gauge("policy_loss_best", "Lowest policy loss on all held-out data so far"),
        _gauge("evaluated_round", "Round of the newest evaluation; 0 is before training"),
        _counter("evaluations", "Evaluations on held-out data"),
        _counter("rollbacks", "Rounds undone because the policy loss spiked"),
        _gauge("proximal_mu", "FedProx's mu in the newest complete round"),
        _gauge("client_policy_loss_mean", "Policy loss in training, mean over the round's nodes"),
        _gauge("client_policy_loss_std", "Policy loss in training, standard deviation over the nodes"),
        _gauge("client_proximal_loss_mean", "Proximal loss, mean over the round's nodes"),
        _gauge("client_proximal_loss_std", "Proximal loss, standard deviation over the nodes"),
        _gauge("client_grad_norm_mean", "Gradient norm before clipping, mean over the round's nodes"),
        _gauge("client_grad_norm_std", "Gradient norm before clipping, standard deviation over the nodes"),
        _gauge("update_norm", "L2 norm of the newest change of the global weights"),
    ),
    "Who takes part": (
        _gauge("min_nodes", "Nodes that must be online before a round starts"),
        _gauge("waiting_for_nodes", "Nodes that must still join, if they have been waited for long, else 0"),
        _gauge("nodes_joined", "Nodes that ever joined the run"),
        _gauge("sampled_nodes", "Nodes the newest round was sent to"),
        _gauge("participants", "Nodes whose update went into the newest complete round"),
        _gauge("missing_nodes", "Nodes without a reply in the newest complete round"),
        _gauge("refused_nodes", "Nodes whose reply was refused in the newest complete round"),
        _counter("joins_refused", "Nodes refused when they joined"),
        _gauge("shut_out_nodes", "Nodes refused or suspended that have not joined again"),
    ),
    "One node, from its newest update": (
        _gauge("node_round", "Newest round with an update of the node", "node"),
        _gauge("node_policy_loss", "Policy loss in training", "node"),
        _gauge("node_proximal_loss", "Proximal loss", "node"),
        _gauge("node_grad_norm", "Gradient norm before clipping", "node"),
        _gauge("node_update_norm", "L2 norm of the update", "node"),
        _gauge("node_steps_per_second", "Optimizer steps a second", "node"),
        _gauge("node_phase_seconds", "Seconds of the round by phase", "node", "phase"),
        _gauge("node_device_memory_bytes", "Peak memory: the GPU's, or the process's without one", "node"),
        _gauge("node_device_busy_ratio", "Share of training time not spent waiting for data", "node"),
    ),
    "One node, as it joined": (
        _gauge("node_info", "1, with what the node runs on and the cameras it feeds", *_NODE_LABELS),
        _gauge("node_episodes", "Episodes the node trains on", "node"),
        _gauge("node_left_out_episodes", "Episodes left out, they cannot be trained on", "node"),
        _gauge("node_frames", "Frames the node trains on", "node"),
        _gauge("node_fps", "Frames a second of its recordings", "node"),
    ),
    "One node, over the run": (
        _counter("node_updates", "Good updates", "node"),
        _counter("node_examples", "Frames trained on", "node"),
        _counter("node_skipped_frames", "Frames that could not be decoded", "node"),
        _counter("node_transferred_bytes", "Encoded weights (down) and updates (up)", "node", "direction"),
        _counter("node_missed_rounds", "Rounds without a reply before the deadline", "node"),
        _counter("node_refused_updates", "Refused replies by reason", "node", "reason"),
        _gauge("node_absent_rounds", "Newest rounds in a row that the node should have answered", "node"),
        _gauge("node_left_out", "1 while suspended after three refusals in a row", "node"),
        _gauge("node_suspended_until_round", "Round a suspended node is tried again in; 0: is not", "node"),
        _gauge("node_privacy_epsilon", _EPSILON, "node"),
        _gauge("node_last_seen_timestamp_seconds", "Newest heartbeat or reply", "node"),
    ),
    "Infrastructure": (
        _gauge("build_info", "1, with the server's versions", "python", "flwr", "lerobot", "torch"),
        _gauge("superlink_up", "1 if SuperLink answered when last asked; only with --superlink"),
        _gauge("superlink_response_seconds", "How long SuperLink took to answer"),
        _gauge("superlink_nodes", "Registered SuperNodes by status", "status"),
        _gauge("superlink_runs", "The newest thousand runs of SuperLink by status", "status"),
        _gauge("node_online", "1 if the SuperNode sends heartbeats", "node"),
        _gauge("certificate_expiry_timestamp_seconds", "When a certificate expires", "certificate"),
        _gauge("disk_free_bytes", "Free space where runs are recorded"),
        _gauge("disk_size_bytes", "Size of the disk where runs are recorded"),
    ),
    "A site's own exporter, inside a round": (
        _gauge("site_round", "Round the site is training or trained last", "node"),
        _gauge("site_local_step", "Optimizer steps done in that round", "node"),
        _gauge("site_local_steps", "Optimizer steps of that round", "node"),
        _gauge("site_policy_loss", "Policy loss of the newest step", "node"),
        _gauge("site_progress_timestamp_seconds", "When the newest step was written down", "node"),
        _gauge("site_scratch_free_bytes", "Free space of the site's scratch folder", "node"),
    ),
}
CATALOGUE = {spec.name.removesuffix("_total"): spec for group in GROUPS.values() for spec in group}


class Samples:
    """The samples of one scrape, gathered by metric; what the catalogue does not hold is refused."""

    def __init__(self) -> None:
        self._families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add one sample of the metric `federation_<name>`; raises `KeyError` for a name or label unknown."""
        spec = CATALOGUE[f"federation_{name}"]
        family = self._families.get(spec.name)
        if family is None:
            kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
            family = self._families[spec.name] = kind(spec.name, spec.help, labels=spec.labels)
        family.add_metric([labels[label] for label in spec.labels], value)

    def families(self) -> Iterator[Metric]:
        """What a collector yields."""
        yield from self._families.values()
