"""Which site got the exported policy of a run: `deliveries.json` in the run's folder.

Beside the record and not in it: a site that was off gets the policy when the run is long over, and a record
that is finished is not opened again.
"""

from pathlib import Path
from typing import Any

from federation.files import read_json_object, write_json

__all__ = ["DELIVERIES_FILE", "note_delivery", "read_deliveries"]

DELIVERIES_FILE = "deliveries.json"


def read_deliveries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return, by site, `round`, `sha256`, `bytes` sent, `seconds`, `time` and `error` of its last delivery.

    `sha256` is that of the weights that the site wrote; with an `error` it is empty.
    """
    return read_json_object(folder / DELIVERIES_FILE)


def note_delivery(folder: Path, site: str, facts: dict[str, Any]) -> None:
    """Record what came of sending the policy to `site`.

    Raises:
        OSError: it cannot be written.
    """
    write_json(folder / DELIVERIES_FILE, read_deliveries(folder) | {site: facts})
