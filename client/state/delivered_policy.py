"""What the policy folder of this site holds, for its owner: `delivery.json`, put in place with the folder."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federation.files import read_json_object, write_json

__all__ = ["DELIVERED_POLICY_FILE", "note_delivered_policy", "read_delivered_policy"]

DELIVERED_POLICY_FILE = "delivery.json"


def note_delivered_policy(folder: Path, run: str, round_: int, sha256: str) -> None:
    """Write into the policy folder, before it is put in place, what it holds."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / DELIVERED_POLICY_FILE, {"run": run, "round": round_, "sha256": sha256, "at": at})


def read_delivered_policy(folder: Path) -> dict[str, Any]:
    """Return `run`, `round`, `sha256` and `at` of the policy in `folder`; {} if there is none."""
    return read_json_object(folder / DELIVERED_POLICY_FILE)
