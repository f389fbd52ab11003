"""Writing files that are either whole or absent."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["write_atomically", "write_json"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, flush it to disk, then move it into place.

    A crash at any point, the machine's included, leaves the old file, the new one, or none where there was
    none; a failed write leaves no litter behind.
    """
    staging = path.with_name(f".{path.name}.part")
    try:
        write(staging)
        with staging.open("rb") as written:
            os.fsync(written.fileno())
        staging.replace(path)
        _flush_folder(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. NaN and infinity are refused with `ValueError`."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda staging: staging.write_text(text, encoding="utf-8"))


def _flush_folder(folder: Path) -> None:
    """A new name lasts through a power cut only once its folder is on disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
