"""The folder of the sample datasets: what in it was recorded here, and so may be replaced and removed.

    python -m server.simulation.sample_folder data/sample data/arm     removes it; `make clean` calls this

Uses the standard library only: `make clean` may have no environment any more.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.data.simulated import SIMULATED_ROBOT, UNMARKED_ROBOT
from federation.files import read_json_object, write_json

__all__ = [
    "MANIFEST_KIND",
    "MANIFEST_NAME",
    "foreign_entries",
    "mark_as_simulated",
    "read_manifest",
    "remove",
]

MANIFEST_NAME = "manifest.json"
MANIFEST_KIND = "so100-federation sample data"


def read_manifest(out: Path) -> dict[str, Any]:
    """Return the manifest in `out`, or {} if there is none of ours."""
    manifest = read_json_object(out / MANIFEST_NAME)
    return manifest if manifest.get("kind") == MANIFEST_KIND else {}


def foreign_entries(out: Path) -> list[str]:
    """Return the names in `out` of what was not recorded here, sorted.

    A dataset of somebody else's under the name of one of ours is foreign too: it holds other numbers of
    episodes and frames than the manifest.
    """
    manifest = read_manifest(out)
    ours = {MANIFEST_NAME, *_recorded_here(out, manifest)} if manifest else set()
    return sorted(entry.name for entry in out.iterdir() if entry.name not in ours)


def mark_as_simulated(out: Path) -> None:
    """Mark the datasets in `out` that were recorded before there was a mark; each at once or not at all."""
    for name in _recorded_here(out, read_manifest(out)):
        file = out / name / "meta" / "info.json"
        info = read_json_object(file)
        if info.get("robot_type") != UNMARKED_ROBOT:
            continue
        write_json(file, info | {"robot_type": SIMULATED_ROBOT})


def _recorded_here(out: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the manifest's datasets that still are what was recorded."""
    counts = manifest.get("datasets")
    if not isinstance(counts, dict):
        return []
    return [name for name, recorded in counts.items() if _is_as_recorded(out / name, recorded)]


def _is_as_recorded(dataset: Path, recorded: Mapping[str, Any]) -> bool:
    if dataset.is_symlink():
        return False
    info = read_json_object(dataset / "meta" / "info.json")
    if not info:
        return not (dataset / "meta" / "info.json").exists()  # half removed, by whomever: no dataset
    return info.get("robot_type") in (SIMULATED_ROBOT, UNMARKED_ROBOT) and all(
        info.get(f"total_{what}") == recorded[what] for what in ("episodes", "frames")
    )


def remove(out: Path) -> None:
    """Remove what was recorded here from `out`, and `out` if nothing else is in it; print what stays."""
    if not out.exists():
        return
    if out.is_symlink() or not read_manifest(out):
        print(f"{out} stays: it was not recorded here")
        return
    for name in _recorded_here(out, read_manifest(out)):
        shutil.rmtree(out / name, ignore_errors=True)
    kept = [name for name in foreign_entries(out) if name != MANIFEST_NAME]
    if kept:
        print(f"{out} keeps {', '.join(kept)}: not recorded here")
    (out / MANIFEST_NAME).unlink()
    if not kept:
        out.rmdir()


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        remove(Path(folder))
