"""Where a site's recordings are on this machine, each as a dataset of format 3 that training can read.

What is on the Hub is downloaded into scratch, and format 2 is written anew there, each once. The owner's own
folders are only read.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from client.recordings.hub import download, remove_downloads
from client.recordings.sources import HUB, Source, cached_folder, local_path
from federation.data.advice import repair
from federation.data.description import find_datasets
from federation.errors import ConfigError, DatasetError
from federation.files import fingerprint, read_json_object, write_json
from federation.logs import get_logger
from federation.versions import versions

__all__ = ["Recording", "copies_kept", "folder_key", "open_recordings", "private_folders", "remove_others"]

_CONVERTED = "converted"  # on scratch
_NAMING, _CONVERTING = "recordings.lock", "converting.lock"  # there, too
_MAX_NAMED = 3
_log = get_logger("client.recordings.opened")


@dataclass(frozen=True)
class Recording:
    """One recording of a site."""

    source: Source
    folder: Path  # as it was recorded, or downloaded
    root: Path  # what training reads: `folder`, or the copy of it in format 3

    @property
    def label(self) -> str:
        """Its name for the owner."""
        return self.source.data if self.source.data.startswith(HUB) else self.folder.name

    @property
    def place(self) -> str:
        """Its folder, or where that is a download its name: no other recording has the same."""
        return self.source.data if self.source.data.startswith(HUB) else str(self.folder)

    def spell(self, text: str) -> str:
        """Return `text`, which is about `root`, about what the owner named: a fix must be one for that."""
        if str(self.root) not in text:
            return text
        # Only the copy has the files that are named below it: their paths stay.
        text = text.replace(f"DATA={shlex.quote(str(self.root))}", f"DATA={shlex.quote(str(self.folder))}")
        text = re.sub(rf"{re.escape(str(self.root))}(?!/)", lambda _: str(self.folder), text)
        is_named = text.startswith(self.label) or not self.source.data.startswith(HUB)
        return text if is_named else f"{self.label}: {text}"


def open_recordings(sources: Sequence[Source], scratch: Path) -> tuple[list[Recording], list[DatasetError]]:
    """Return the recordings that `sources` name, and why others of them cannot be had.

    Args:
        scratch: for downloads and copies in format 3.
    """
    recordings: list[Recording] = []
    faults: list[DatasetError] = []
    for source in sources:
        try:
            folders = _find_folders(source, scratch)
        except (DatasetError, OSError) as error:
            faults.append(_as_fault(source.data, error))
            continue
        for folder in folders:
            try:
                recordings.append(Recording(source, folder, _convert_once(folder, scratch)))
            except (DatasetError, OSError) as error:
                faults.append(_as_fault(folder, error))
    return _without_repeated(recordings, faults), faults


def private_folders(sources: Sequence[Source]) -> dict[str, Path]:
    """Return what to call each recording to the server -> its folder, or its name where it has none here."""
    paths: list[Path] = []
    for source in sources:
        try:
            paths += _local_folders(source) or [Path(source.data)]
        except (DatasetError, OSError):
            paths.append(Path(source.data))
    if len(paths) == 1:
        return {"dataset": paths[0]}
    return {f"dataset {number}": path for number, path in enumerate(paths, start=1)}


def folder_key(folder: Path) -> str:
    """Return the name on scratch of what belongs to a folder: it must not tell the folder's own name."""
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]


@contextmanager
def copies_kept(scratch: Path) -> Iterator[None]:
    """Keep `remove_others` from copies of recordings that are judged before the site names them."""
    with _open_lock(scratch, _NAMING) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _open_lock(scratch: Path, name: str) -> IO[str]:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    return (scratch / name).open("a+")  # NFS takes a shared lock on what is open for reading only


def remove_others(scratch: Path, recordings: Sequence[Recording]) -> None:
    """Remove the copies of recordings that the owner does not name any more.

    Not while somebody adds one (`copies_kept`): the next round does it.
    """
    with _open_lock(scratch, _NAMING) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _remove_others(scratch, recordings)


def _remove_others(scratch: Path, recordings: Sequence[Recording]) -> None:
    keys = {folder_key(recording.folder) for recording in recordings}
    for other in (scratch / _CONVERTED).glob("*"):
        if other.name not in keys:
            shutil.rmtree(other, ignore_errors=True)
    remove_downloads(scratch, [recording.folder for recording in recordings])


def _find_folders(source: Source, scratch: Path) -> list[Path]:
    """Return the folders of the datasets that `source` names.

    Raises:
        DatasetError: it cannot be downloaded, or LeRobot's cache has several revisions of it.
        OSError: it cannot be reached.
    """
    return [download(source.data, scratch)] if source.data.startswith(HUB) else _local_folders(source)


def _local_folders(source: Source) -> list[Path]:
    """Return the folders on this machine; one that holds nothing is itself returned, to be judged.

    Raises:
        DatasetError: LeRobot's cache has several revisions of it.
        OSError: it cannot be reached, as on a disk that was pulled out.
    """
    if source.data.startswith(HUB):
        return []
    folder = local_path(source.data)
    if not folder.is_dir():
        try:
            return [cached_folder(source.data) or folder]
        except ConfigError as error:
            raise DatasetError(str(error)) from None
    try:
        return list(find_datasets(folder).values())
    except DatasetError:
        return [folder]


def _as_fault(place: Path | str, error: DatasetError | OSError) -> DatasetError:
    if isinstance(error, DatasetError):
        return error
    fix = "chmod -R a+rX it" if isinstance(error, PermissionError) else "see whether its disk is there"
    return DatasetError(f"dataset {place}: cannot be read ({error.strerror}); {fix}")


def _without_repeated(recordings: list[Recording], faults: list[DatasetError]) -> list[Recording]:
    """Return each of `recordings` once; one that is named twice, as by a folder above it, is a fault."""
    found: dict[Path, Recording] = {}
    for recording in recordings:
        if found.setdefault(recording.folder.resolve(), recording) is not recording:
            faults.append(DatasetError(f"dataset {recording.folder}: is named twice; name it once"))
    return list(found.values())


def _convert_once(folder: Path, scratch: Path) -> Path:
    """Return `folder`, or the copy of it in format 3 if it is of format 2.

    Raises:
        DatasetError: an episode of it cannot be converted, or scratch is full.
    """
    if not _format_version(folder).startswith("v2."):
        return folder
    own = scratch / _CONVERTED / folder_key(folder)
    root = own / fingerprint(folder)[:16]
    if found := _find_copy(root):
        return found
    try:
        lock = _open_lock(scratch, _CONVERTING)
    except OSError as error:
        raise _no_room(folder, error) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _find_copy(root) or _convert(folder, own, root)


def _find_copy(root: Path) -> Path | None:
    """Return `root` if the copy is there; None if nobody has tried to write it.

    Raises:
        DatasetError: these versions of the code have tried, and cannot.
    """
    if root.is_dir():
        return root
    kept = read_json_object(root.with_suffix(".json"))
    if kept and kept.get("versions") == versions():
        raise DatasetError(str(kept["fault"]))
    return None


def _convert(folder: Path, own: Path, root: Path) -> Path:
    _refuse_unreadable(folder)
    _log.info("%s is of format v2: written anew in scratch, once", folder)
    for former in own.glob("*"):
        shutil.rmtree(former) if former.is_dir() else former.unlink()
    if fault := _write_copy(folder, root):
        write_json(root.with_suffix(".json"), {"fault": fault, "versions": versions()})
        raise DatasetError(fault)
    return root


def _refuse_unreadable(folder: Path) -> None:
    """Raise PermissionError if this user may not read a file: else its episodes would count as lost."""
    for part in ("meta", "data", "videos"):
        for file in (folder / part).rglob("*"):
            if file.exists() and not os.access(file, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))


def _write_copy(folder: Path, root: Path) -> str:
    """Write the dataset in `folder` to `root` in format 3; return why not, if an episode would be lost.

    Raises:
        DatasetError: scratch cannot be written.
    """
    from client.repair.main import repair_dataset

    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        lost = repair_dataset(folder, root)
    except DatasetError as error:
        return str(error)
    except OSError as error:
        raise _no_room(folder, error) from None
    if not lost:
        return ""
    shutil.rmtree(root)
    named = "; ".join(f"episode {number}: {why}" for number, why in sorted(lost.items())[:_MAX_NAMED])
    return (
        f"dataset {folder}: is of format v2, and {len(lost)} of its episodes cannot be written in v3.0 "
        f"({named}); {repair(folder)} writes the others to a new folder: name that"
    )


def _no_room(folder: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"dataset {folder}: cannot be written to scratch in format v3.0 ({error.strerror}); make room"
    )


def _format_version(folder: Path) -> str:
    try:
        info = json.loads((folder / "meta" / "info.json").read_text(encoding="utf-8-sig"))
        return str(info["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # the judgement says what is wrong
