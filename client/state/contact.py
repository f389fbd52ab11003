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


def note_contact(scratch: Path, run: str, verdict: str, update: str | None = None) -> None:
    """Write down that the server was heard, and what it thinks of this site.

    Args:
        update: what became of this site's last update; None: the message does not tell.

    A full disk, or a file that somebody changed, costs the owner a line and the round nothing.
    """
    with contextlib.suppress(OSError):
        content = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": run,
            "verdict": verdict,
            "update": read_contact(scratch).get("update", "") if update is None else update,
        }
        write_json(scratch / CONTACT_FILE, content, durable=False)


def read_contact(scratch: Path) -> dict[str, Any]:
    """Return what was written last; {} if there is nothing that can be read."""
    return read_json_object(scratch / CONTACT_FILE)
