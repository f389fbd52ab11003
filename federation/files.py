"""Files and folders that are either whole or absent: the one way that anything but a key is written.

Keys have a writer of their own in `federation/key_files.py`: theirs must never be readable, not even for a
moment.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "expand_home",
    "files_below",
    "fingerprint",
    "flush",
    "folder_of_this_process",
    "link_or_copy",
    "read_json_object",
    "remove_unfinished",
    "write_atomically",
    "write_folder",
    "write_json",
]


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` make a file at the path that it is given, then move that file to `path`.

    A crash at any point, the machine's included, leaves the old file, the new one, or none where there was
    none. A failed write leaves nothing behind; what a killed one left is never written to, and is removed by
    the next.

    Args:
        write: the path that it is given does not exist yet, and no other process knows it.
        durable: flush to the disk first. A file of which only the moment counts can do without.
    """
    with _staging(path) as staging:
        write(staging)
        if durable:
            flush(staging)
        staging.replace(path)
        if durable:
            flush(path.parent)


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write `content` as indented JSON, atomically. NaN and infinity are refused with `ValueError`."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda staging: staging.write_text(text, encoding="utf-8"), durable=durable)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Name a file a second time, which takes no room; where the file system cannot, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_folder(folder: Path, fill: Callable[[Path], object], *, replace: bool = True) -> None:
    """Let `fill` fill an empty folder, then move that to `folder`.

    Args:
        replace: put it in the place of a folder that is there. False: where another process was first, its
            folder stays, and this one is dropped.
    """
    with _staging(folder) as staging:
        staging.mkdir()
        fill(staging)
        for path in [*staging.rglob("*"), staging]:
            flush(path)
        former = staging.with_name(f"{folder.name}.former")
        if replace and folder.exists():
            folder.rename(former)  # a folder cannot be moved over another; killed here, there is none
        try:
            staging.rename(folder)
        except OSError:
            if former.exists():
                former.rename(folder)
            if replace or not folder.is_dir():
                raise
        flush(folder.parent)


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what processes that were killed left of the files called `name` that they wrote in `folder`."""
    for left in folder.glob(f".{name}.*.part"):
        with suppress(OSError):  # another process removes it too
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by whoever still writes
                shutil.rmtree(left)
            finally:
                os.close(descriptor)


def folder_of_this_process(path: Path) -> Path:
    """Return a new folder beside `path`; once this process was killed, the next one that asks removes it."""
    return _make_locked_folder(path)[0]  # the lock goes with the process


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Yield the path of `path.name` in a new folder beside `path`, which is removed at the end."""
    folder, descriptor = _make_locked_folder(path)
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make_locked_folder(path: Path) -> tuple[Path, int]:
    remove_unfinished(path.parent, glob.escape(path.name))
    while (made := _new_locked_folder(path)) is None:
        pass  # another process took it for unfinished before it was locked
    return made


def _new_locked_folder(path: Path) -> tuple[Path, int] | None:
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    if not folder.exists():
        os.close(descriptor)
        return None
    return folder, descriptor


def flush(path: Path) -> None:
    """Put a file on the disk. A folder's names last through a power cut only once it is there too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names, sizes and modification times of all files in `folder` that are not hidden.

    Links to folders are followed, as whoever reads a dataset follows them.
    """
    digest = hashlib.sha256()
    for file in sorted(files_below(folder)):
        facts = file.stat()
        digest.update(os.fsencode(f"{file.relative_to(folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\0"))
    return digest.hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in `folder` that are not hidden, also those behind links to folders."""
    seen: set[tuple[int, int]] = set()  # a link may lead back to a folder above it
    for place, folders, names in os.walk(folder, followlinks=True):
        facts = Path(place).stat()
        is_new = (facts.st_dev, facts.st_ino) not in seen
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = [name for name in folders if is_new and not name.startswith(".")]
        files = (Path(place, name) for name in names if is_new and not name.startswith("."))
        yield from (file for file in files if file.is_file())


def expand_home(source: str) -> str:
    """`source`, a path or a Hub id, with this user's home folder for a `~` at its start."""
    return str(Path(source).expanduser()) if source.startswith("~") else source
