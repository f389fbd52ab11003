"""What a run has cost each site of its privacy so far: the accountant of `federation/privacy.py`."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.config import PrivacyConfig
from federation.privacy import epsilon
from server.records import EVENTS_FILE

__all__ = ["most_spent", "privacy_spent"]


def privacy_spent(config: PrivacyConfig, folder: Path) -> dict[str, Any]:
    """For the record: `{"mode", "delta", "epsilon": {node: value}}`; a value is None beyond a million.

    Args:
        folder: of the run. A round counts for every node that was asked in it, also if it was done again or
            no update arrived: something may have been seen.
    """
    asked: Counter[str] = Counter()
    for line in (folder / EVENTS_FILE).read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "round_started":
            asked.update(event["nodes"])
    spent = {
        node: epsilon(config.noise_multiplier, rounds, config.delta) for node, rounds in sorted(asked.items())
    }
    return {
        "mode": config.mode,
        "delta": config.delta,
        "epsilon": {node: value if value < float("inf") else None for node, value in spent.items()},
    }


def most_spent(privacy: Mapping[str, Any]) -> str:
    """What the node that was asked most often has spent, in words."""
    values = privacy["epsilon"].values()
    most = "beyond a million" if None in values else f"{max(values):.2f}"
    return f"epsilon {most} at delta {privacy['delta']:g}, {privacy['mode']} noise"
