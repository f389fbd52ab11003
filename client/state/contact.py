"""What this site last heard of the server, for its owner: `<scratch>/contact.json`.

`client/app.py` writes it with each answer. Nothing of it leaves the site.
"""

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federation.files import read_json_object, write_json

__all__ = ["CONTACT_FILE", "note_contact", "read_contact"]

CONTACT_FILE = "contact.json"


def note_contact(
    scratch: Path, run: str, verdict: str, down: int = 0, up: int = 0, update: str | None = None
) -> None:
    """Write down that the server was heard, what it thinks of this site, and the bytes of the message.

    Args:
        update: what became of this site's last update; None: the message does not tell.

    A full disk, or a file that somebody changed, costs the owner a line and the round nothing.
    """
    now = datetime.now(UTC)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        today = f"{now:%Y-%m-%d}"
        before = read_contact(scratch)
        same_day = before.get("day") == today
        content = {
            "at": now.isoformat(timespec="seconds"),
            "run": run,
            "verdict": verdict,
            "update": before.get("update", "") if update is None else update,
            "day": today,
            "down_bytes": down + (int(before["down_bytes"]) if same_day else 0),
            "up_bytes": up + (int(before["up_bytes"]) if same_day else 0),
        }
        write_json(scratch / CONTACT_FILE, content, durable=False)


def read_contact(scratch: Path) -> dict[str, Any]:
    """Return what was written last; {} if there is nothing that can be read."""
    return read_json_object(scratch / CONTACT_FILE)
