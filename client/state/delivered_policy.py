"""What the policy folder of this site holds, for its owner: `delivery.json`, put in place with the folder."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federation.files import read_json_object, write_json
from federation.settings import PolicyConfig, TrainingConfig

__all__ = [
    "DELIVERED_POLICY_FILE",
    "note_delivered_policy",
    "read_delivered_policy",
    "read_expected",
    "read_training",
]

DELIVERED_POLICY_FILE = "delivery.json"
_EXPECTED = ("cameras", "empty_cameras", "joint_units", "fps")  # of recordings


def note_delivered_policy(
    folder: Path,
    run: str,
    round_: int,
    sha256: str,
    training: TrainingConfig | None = None,
    policy: PolicyConfig | None = None,
) -> None:
    """Write into the policy folder, before it is put in place, what it holds.

    Args:
        training: how the run trained; None: it is not known.
        policy: what recordings it trained on; None: it is not known.
    """
    content = {
        "run": run,
        "round": round_,
        "sha256": sha256,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": dataclasses.asdict(training) if training else {},
        "expected": {key: getattr(policy, key) for key in _EXPECTED} if policy else {},
    }
    write_json(folder / DELIVERED_POLICY_FILE, content)


def read_delivered_policy(folder: Path) -> dict[str, Any]:
    """Return what `note_delivered_policy` wrote of the policy in `folder`; {} if there is none."""
    return read_json_object(folder / DELIVERED_POLICY_FILE)


def read_training(delivered: Mapping[str, Any]) -> TrainingConfig:
    """Return how the run of a delivered policy trained; as runs do by default, if that cannot be read."""
    try:
        return TrainingConfig(**delivered.get("training", {}))
    except (TypeError, ValueError):
        return TrainingConfig()


def read_expected(delivered: Mapping[str, Any], invited: PolicyConfig) -> PolicyConfig:
    """Return what recordings the run of a delivered policy trained on, which may be another than `invited`.

    Args:
        invited: what the invitation says; all that is known of a policy that an earlier release received.
    """
    try:
        return dataclasses.replace(invited, **delivered.get("expected", {}))
    except (TypeError, ValueError):
        return invited
