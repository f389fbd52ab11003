"""Recordings on the Hub: a revision of one is downloaded into scratch, once."""

import errno
import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

from client.recordings.sources import parse_hub_name
from federation.errors import DatasetError
from federation.files import read_json_object, write_json
from federation.logs import get_logger

__all__ = ["download", "downloaded_name", "remove_downloads"]

_FOLDER = "hub"  # on scratch
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_log = get_logger("client.recordings.hub")


def download(name: str, scratch: Path) -> Path:
    """Return the folder with the recording `name`, such as "hf:owner/name@revision".

    What was downloaded under that name stays, also where a tag or branch is moved. A download that broke off
    goes on where it was. The folder's name does not tell that of the recording.

    Raises:
        DatasetError: it cannot be had.
    """
    repository, revision = parse_hub_name(name)
    folder = scratch / _FOLDER / hashlib.sha256(name.encode()).hexdigest()[:16]
    whole = folder.with_suffix(".json")  # written once all files are there
    if read_json_object(whole).get("recording") == name and (folder / "meta").is_dir():
        return folder
    from huggingface_hub import HfApi

    _log.info("%s is downloaded into scratch, once", name)
    api = HfApi()
    try:
        commit = api.dataset_info(repository, revision=revision).sha
        api.snapshot_download(repository, repo_type="dataset", revision=commit, local_dir=folder)
        write_json(whole, {"recording": name, "commit": commit})
    except Exception as error:  # the Hub client raises a dozen types; their texts name the repository
        # Its errors of the network are OSErrors as well.
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            reason = f"scratch cannot be written ({error.strerror}); make room"
            raise DatasetError(f"dataset {name}: cannot be downloaded, {reason}") from error
        raise DatasetError(
            f"dataset {name}: cannot be downloaded ({type(error).__name__}); check its name, its revision "
            "and the way to huggingface.co, and for a private one log in with: hf auth login"
        ) from error
    return folder


def downloaded_name(folder: Path) -> str:
    """Return the recording that was downloaded into `folder`, "hf:owner/name@revision"; "" if none was."""
    folder = folder.absolute()
    if folder.parent.name != _FOLDER:
        return ""
    return str(read_json_object(folder.with_suffix(".json")).get("recording", ""))


def remove_downloads(scratch: Path, used: Collection[Path]) -> None:
    """Remove what was downloaded, in part or as a whole, and is not among the folders `used`."""
    for folder in {entry.with_suffix("") for entry in (scratch / _FOLDER).glob("*")} - set(used):
        folder.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
