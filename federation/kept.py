"""What is found out once and kept on scratch, for as long as all that it depends on stays as it is."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from federation.errors import one_line
from federation.files import write_json
from federation.logs import get_logger

__all__ = ["keep", "kept_file", "load_kept"]

_MAX_KEPT = 200  # files in a folder: of each recording of a site, some
_log = get_logger("federation.kept")


def kept_file(folder: Path, *facts: Any) -> Path:
    """Return the file in `folder` that is named after `facts`, all that its content depends on.

    Args:
        facts: what JSON can hold.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{key}.json"


def load_kept[T](file: Path, read: Callable[[Any], T]) -> T | None:
    """Return what `read` makes of the JSON in `file`; None if nothing that it can read was kept."""
    try:
        return read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def keep(file: Path, content: Any) -> None:
    """Write `content` to `file` and drop the oldest of many beside it; where that fails, warn."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, content)
        others = sorted(file.parent.glob("*.json"), key=lambda other: other.stat().st_mtime)
        for other in others[:-_MAX_KEPT]:
            other.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("what was found out about a dataset is not kept: %s", one_line(error))
