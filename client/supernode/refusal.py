"""Why this site is refused, or refuses, as its owner's `so100-site status` tells it."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["REFUSAL_VARIABLE", "forget_refusal", "note_refusal", "read_refusal"]

REFUSAL_VARIABLE = "FEDERATION_REFUSAL_FILE"


def note_refusal(reason: str) -> None:
    """Write the reason down, if the environment names a file for it."""
    if file := os.environ.get(REFUSAL_VARIABLE):
        with suppress(OSError):
            Path(file).write_text(reason, encoding="utf-8")


def forget_refusal() -> None:
    """Take back what was written down: it is over."""
    if file := os.environ.get(REFUSAL_VARIABLE):
        with suppress(OSError):
            Path(file).unlink(missing_ok=True)


def read_refusal(file: Path) -> str:
    """Return the reason that `file` holds; "" if there is none."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
