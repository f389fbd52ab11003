"""Where the time of a round went, on its critical path: the server's own work and the slowest node's.

The exporter and the report show the same split and the same speed of a node, so they are made here.
"""

from collections.abc import Mapping
from typing import Any

from federation.settings import TrainingConfig
from server.run.round_record import RoundRecord

__all__ = ["NODE_PHASES", "PHASES", "node_phases", "round_phases", "steps_taken"]

NODE_PHASES = ("download", "setup", "train", "upload")
# In the order in which a round goes through them. "wait" is for nodes that did not answer in time.
PHASES = ("sample", "send", *NODE_PHASES, "wait", "aggregate", "evaluate", "checkpoint")


def node_phases(client: dict[str, float]) -> dict[str, float]:
    """Return the seconds of one node's round by phase; Flower's polling counts as download or upload."""
    return {phase: client.get(f"{phase}_seconds", 0.0) for phase in NODE_PHASES}


def steps_taken(client: Mapping[str, float], config: Mapping[str, Any]) -> int:
    """Return the optimizer steps of one node's round.

    Args:
        config: as in the record; an older release did not accumulate gradients.
    """
    training = TrainingConfig(
        batch_size=config["training.batch_size"],
        gradient_accumulation_steps=config.get("training.gradient_accumulation_steps", 1),
    )
    return training.steps_taken(int(client["num_examples"]))


def round_phases(entry: RoundRecord) -> dict[str, float]:
    """Return the seconds of a round by phase; they add up to the round's duration.

    Args:
        entry: its `seconds["train"]` is how long the server waited for replies; that is split as the slowest
            node that answered spent it.
    """
    seconds = entry.seconds
    waited = seconds.get("train", 0.0)
    phases = {phase: seconds.get(phase, 0.0) for phase in PHASES}
    slowest: dict[str, float] = max(
        entry.clients.values(), key=lambda client: client.get("reply_seconds", 0.0), default={}
    )
    spent = node_phases(slowest)
    total = sum(spent.values())
    scale = min(1.0, waited / total) if total else 0.0  # sending overlaps with the first node's download
    phases |= {phase: value * scale for phase, value in spent.items()}
    phases["wait"] = waited - total * scale
    return phases
