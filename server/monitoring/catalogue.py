"""Every metric the exporters serve: name, type, labels, meaning. The exporters make no other.

Labels are bounded: a node's name (as many as there are sites), and fixed lists. Rounds and runs are never
labels, but for the name of the one run that is shown.
"""

from federation.metrics import SITE_METRICS, MetricSpec, counter, gauge
from federation.privacy_budget import NOT_COVERED

__all__ = ["CATALOGUE", "GROUPS"]


_RUN_LABELS = ("run", "policy", "aggregation", "download", "upload", "privacy")
_EPSILON = f"Privacy spent; +Inf: unbounded, or beyond a million. {NOT_COVERED}"
_NODE_LABELS = ("node", "device", "cameras", "python", "flwr", "lerobot", "torch")

GROUPS: dict[str, tuple[MetricSpec, ...]] = {
    "The run": (
        gauge("record_readable", "1 if there is a run and its record can be read"),
        gauge("run_info", "1, with the run that is shown and how it is set up", *_RUN_LABELS),
        gauge("run_state", "1 for the state the run is in: running, finished, failed", "state"),
        gauge("run_start_timestamp_seconds", "When the run started or was last resumed"),
        gauge("last_event_timestamp_seconds", "When something was last written to the run's record"),
        gauge("rounds_planned", "Rounds the run is configured for"),
        gauge("round", "Newest complete round"),
        gauge("round_in_progress", "Round under way; 0 if none is"),
        gauge("round_waits_for_replies", "1 while the round under way waits for its nodes"),
        gauge("round_start_timestamp_seconds", "When the newest round was sent to its nodes"),
        gauge("round_duration_seconds", "Duration of the newest complete round"),
        gauge("round_deadline_seconds", "Configured time after which a reply is not waited for"),
        gauge("round_phase_seconds", "Critical path of the newest complete round by phase", "phase"),
        counter("phase_seconds", "Critical path of all rounds by phase", "phase"),
        counter("rounds", "Complete rounds, those repeated after a resume included"),
        counter("rounds_aggregated", "Rounds with good updates enough to change the weights"),
        counter("examples", "Frames trained on by all nodes"),
        counter("transferred_bytes", "Encoded weights (down) and updates (up)", "direction"),
    ),
    "Is it learning": (
        gauge("policy_loss", "Flow-matching loss on held-out data, newest evaluation", "dataset"),
        gauge("action_mse", "Squared error of actions on held-out data, squared units of it", "dataset"),
        gauge("policy_loss_baseline", "Policy loss on all held-out data before training"),
        gauge("policy_loss_best", "Lowest policy loss on all held-out data so far"),
        gauge("evaluated_round", "Round of the newest evaluation; 0 is before training"),
        counter("evaluations", "Evaluations on held-out data"),
        counter("rounds_reverted", "Rounds reverted because the policy loss spiked"),
        gauge("proximal_mu", "FedProx's mu in the newest complete round"),
        gauge("client_policy_loss_mean", "Policy loss in training, mean over the round's nodes"),
        gauge("client_policy_loss_std", "Policy loss in training, standard deviation over the nodes"),
        gauge("client_proximal_loss_mean", "Proximal loss, mean over the round's nodes"),
        gauge("client_proximal_loss_std", "Proximal loss, standard deviation over the nodes"),
        gauge("client_grad_norm_mean", "Gradient norm before clipping, mean over the round's nodes"),
        gauge("client_grad_norm_std", "Gradient norm before clipping, standard deviation over the nodes"),
        gauge("update_norm", "L2 norm of the newest change of the global weights"),
    ),
    "Who takes part": (
        gauge("min_nodes", "Nodes that must be online before a round starts"),
        gauge("waiting_for_nodes", "Nodes that must still join, if they have been waited for long, else 0"),
        gauge("nodes_joined", "Nodes that ever joined the run"),
        gauge("sampled_nodes", "Nodes the newest round was sent to"),
        gauge("participants", "Nodes whose update was good in the newest complete round"),
        gauge("timed_out_replies", "Replies that timed out in the newest complete round"),
        gauge("rejected_updates", "Updates rejected in the newest complete round"),
        counter("joins_denied", "Joins that were denied"),
        gauge("denied_nodes", "Nodes denied or suspended that have not joined again"),
    ),
    "One node, from its newest update": (
        gauge("node_round", "Newest round with an update of the node", "node"),
        gauge("node_policy_loss", "Policy loss in training", "node"),
        gauge("node_proximal_loss", "Proximal loss", "node"),
        gauge("node_grad_norm", "Gradient norm before clipping", "node"),
        gauge("node_update_norm", "L2 norm of the update", "node"),
        gauge("node_steps_per_second", "Optimizer steps a second", "node"),
        gauge("node_phase_seconds", "Seconds of the round by phase", "node", "phase"),
        gauge("node_device_memory_bytes", "Peak memory: the GPU's, or the process's without one", "node"),
        gauge("node_device_busy_ratio", "Share of training time not spent waiting for data", "node"),
        gauge("node_gpu_utilisation_ratio", "Share of training time the GPU computed, by nvidia-smi", "node"),
        gauge("node_gpu_memory_used_bytes", "Most memory of the GPU in use by all programs", "node"),
        gauge("node_gpu_temperature_celsius", "Highest temperature of the GPU", "node"),
    ),
    "One node, as it joined": (
        gauge("node_info", "1, with what the node runs on and the cameras it feeds", *_NODE_LABELS),
        gauge("node_episodes", "Episodes the node trains on", "node"),
        gauge("node_excluded_episodes", "Episodes excluded, they cannot be trained on", "node"),
        gauge("node_frames", "Frames the node trains on", "node"),
        gauge("node_fps", "Frames a second of its recordings", "node"),
    ),
    "One node, over the run": (
        counter("node_updates", "Good updates", "node"),
        counter("node_examples", "Frames trained on", "node"),
        counter("node_skipped_frames", "Frames that could not be decoded", "node"),
        counter("node_transferred_bytes", "Encoded weights (down) and updates (up)", "node", "direction"),
        counter("node_timed_out_replies", "Replies that timed out", "node"),
        counter("node_rejected_updates", "Rejected updates by reason", "node", "reason"),
        gauge("node_absent_rounds", "How many of the newest rounds in a row the node did not answer", "node"),
        gauge(
            "node_suspended",
            "1 while suspended: three rejections in a row, or one by its owner's rule",
            "node",
        ),
        gauge("node_suspended_until_round", "Round a suspended node is tried again in; 0: is not", "node"),
        gauge("node_privacy_epsilon", _EPSILON, "node"),
        gauge("node_last_seen_timestamp_seconds", "Newest heartbeat or reply", "node"),
    ),
    "Infrastructure": (
        gauge("build_info", "1, with the server's versions", "python", "flwr", "lerobot", "torch"),
        gauge("superlink_up", "1 if SuperLink answered when last asked; only with --superlink"),
        gauge("superlink_response_seconds", "How long SuperLink took to answer"),
        gauge("superlink_nodes", "Registered SuperNodes by status", "status"),
        gauge("superlink_runs", "The newest thousand runs of SuperLink by status", "status"),
        gauge("node_online", "1 if the SuperNode sends heartbeats", "node"),
        gauge("certificate_expiry_timestamp_seconds", "When a certificate expires", "certificate"),
        gauge("disk_free_bytes", "Free space where runs are recorded"),
        gauge("disk_size_bytes", "Size of the disk where runs are recorded"),
    ),
    "A site's own exporter, inside a round": SITE_METRICS,
}
CATALOGUE = tuple(spec for group in GROUPS.values() for spec in group)
