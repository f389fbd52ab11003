"""What the policy folder of this site holds, for its owner: `delivery.json`, put in place with the folder."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federation.files import write_json

__all__ = ["HOME_POLICY_FILE", "note_home_policy", "read_home_policy"]

HOME_POLICY_FILE = "delivery.json"


def note_home_policy(folder: Path, run: str, round_: int, sha256: str) -> None:
    """Write into the policy folder, before it is put in place, what it holds."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / HOME_POLICY_FILE, {"run": run, "round": round_, "sha256": sha256, "at": at})


def read_home_policy(folder: Path) -> dict[str, Any]:
    """Return `run`, `round`, `sha256` and `at` of the policy in `folder`; {} if there is none."""
    try:
        content = json.loads((folder / HOME_POLICY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
