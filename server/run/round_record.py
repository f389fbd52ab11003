"""What is recorded of a round, in `federated_metrics.json`, the event `round_finished` and checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

__all__ = ["Rejection", "RoundRecord", "last_update_of", "recorded_rounds"]

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
        if node in entry.clients:
            return f"accepted in round {entry.round}"
        if node in entry.rejected:
            return f"rejected in round {entry.round}: {entry.rejected[node].reason}"
        if node in entry.missing:
            return f"not there in time in round {entry.round}"
    return ""


def recorded_rounds(metrics: Mapping[str, Any]) -> list[RoundRecord]:
    """Return the rounds of a run's `federated_metrics.json`."""
    return [RoundRecord.from_json(written) for written in metrics["rounds"]]
