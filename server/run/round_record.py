"""What is recorded of a round, in `federated_metrics.json`, the event `round_finished` and checkpoints."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

__all__ = [
    "Rejection",
    "RoundRecord",
    "held_out_losses",
    "last_update_of",
    "recorded_rounds",
    "reverts_in_row",
    "reverts_of",
    "undone_rounds",
]

_OPTIONAL = ("proximal_mu", "privacy", "evaluation", "reverted_to")


class Rejection(NamedTuple):
    """Why the update of a node was rejected."""

    code: str  # label of a `RejectionCode`; "" in a record that has none
    reason: str


@dataclass
class RoundRecord:
    """One complete round. What an older record lacks has its default.

    On disk `rejected` is two keys, `refused` (node -> reason) and `refusal_codes` (node -> code), and
    `reverted_to` is `rolled_back_to`: the names that readers of earlier records know.
    """

    round: int
    aggregated: bool = True  # False: the weights stayed as they were
    proximal_mu: float | None = None
    clients: dict[str, dict[str, Any]] = field(default_factory=dict)  # node -> metrics of its good update
    rejected: dict[str, Rejection] = field(default_factory=dict)  # node -> why its update was not used
    missing: list[str] = field(default_factory=list)  # nodes without a reply
    capped: dict[str, float] = field(default_factory=dict)  # node that claimed more -> what it weighed
    policy_loss: dict[str, float] | None = None  # mean and std over the nodes; None: no good update
    proximal_loss: dict[str, float] | None = None
    grad_norm: dict[str, float] | None = None
    update_norm: float = 0.0  # of the step of the global weights
    num_examples: int = 0
    skipped_frames: int = 0
    bytes: dict[str, int] = field(default_factory=lambda: {"down": 0, "up": 0})
    seconds: dict[str, float] = field(default_factory=dict)  # of the server, by what it did
    privacy: dict[str, Any] | None = None  # spent until this round
    evaluation: dict[str, Any] | None = None
    reverted_to: int | None = None  # the best round, whose weights the run went on with

    @property
    def held_out_loss(self) -> float | None:
        """Return the policy loss of the evaluation; infinite if that diverged, None if there was none."""
        if self.evaluation:
            return float(self.evaluation["policy_loss"])
        return None if self.reverted_to is None else math.inf

    def to_json(self) -> dict[str, Any]:
        """Return the round as it is written."""
        written = dict(vars(self))
        for name in _OPTIONAL:
            if written[name] is None:
                del written[name]
        rejected = written.pop("rejected")
        written["refused"] = {node: rejection.reason for node, rejection in rejected.items()}
        written["refusal_codes"] = {node: rejection.code for node, rejection in rejected.items()}
        if "reverted_to" in written:
            written["rolled_back_to"] = written.pop("reverted_to")
        return written

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> "RoundRecord":
        """Return the round of `written`, of this version or an earlier one.

        Raises:
            KeyError: it has no `round`.
        """
        codes = written.get("refusal_codes", {})
        refused = written.get("refused", {}).items()
        names = {known.name for known in fields(cls)} - {"round"}
        return cls(
            written["round"],
            rejected={node: Rejection(codes.get(node, ""), reason) for node, reason in refused},
            reverted_to=written.get("rolled_back_to"),
            **{name: value for name, value in written.items() if name in names},
        )


def last_update_of(rounds: Sequence[RoundRecord], node: str) -> str:
    """Return what became of the newest update that `node` was asked for, in `rounds`; "" if it never was."""
    for entry in reversed(rounds):
        if node in entry.clients and entry.aggregated:
            return f"accepted in round {entry.round}"
        if node in entry.clients:
            return f"good in round {entry.round}, which had too few others to change the weights"
        if node in entry.rejected:
            return f"rejected in round {entry.round}: {entry.rejected[node].reason}"
        if node in entry.missing:
            return f"not there in time in round {entry.round}"
    return ""


def held_out_losses(baseline: Mapping[str, Any] | None, rounds: Sequence[RoundRecord]) -> list[float]:
    """Return the policy losses of the evaluations before and in training, in their order.

    Infinite after a round that diverged; none after one whose weights stayed as they were.
    """
    before = [float(baseline["policy_loss"])] if baseline else []
    found = (entry.held_out_loss for entry in rounds if entry.aggregated)
    return before + [loss for loss in found if loss is not None]


def reverts_in_row(rounds: Sequence[RoundRecord], after: int) -> int:
    """Return how many of the last evaluations, of rounds later than `after`, took the weights back."""
    count = 0
    for entry in reversed(rounds):
        is_reverted = entry.reverted_to is not None
        if entry.round <= after or (entry.evaluation and not is_reverted):
            break
        count += is_reverted
    return count


def reverts_of(rounds: Sequence[RoundRecord]) -> list[tuple[int, int]]:
    """Return the best round and the spike of each revert in `rounds`."""
    return [(entry.reverted_to, entry.round) for entry in rounds if entry.reverted_to is not None]


def undone_rounds(rounds: Sequence[RoundRecord], rolled_back: Collection[int], node: str) -> list[int]:
    """Return the rounds taken back that `node` may have trained, of which nothing is in today's weights.

    Args:
        rolled_back: the rounds that the operator went back over; those in `rounds` were done again, and count
            unless `node` took part in them again.
    """
    trained = {entry.round for entry in rounds if node in entry.clients or node in entry.rejected}
    spikes = {lost for best, spike in reverts_of(rounds) for lost in range(best + 1, spike + 1)}
    return sorted(spikes | (set(rolled_back) - trained))


def recorded_rounds(metrics: Mapping[str, Any]) -> list[RoundRecord]:
    """Return the rounds of a run's `federated_metrics.json`."""
    return [RoundRecord.from_json(written) for written in metrics["rounds"]]
