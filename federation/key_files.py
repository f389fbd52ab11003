"""Writing keys and certificates so that neither a crash nor a second process leaves half of one.

Whoever owns a folder owns what is written into it: `sudo make certs` in a user's checkout leaves no key there
that the user, or a container under the user's id, cannot read.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from federation.errors import CertificateError

__all__ = ["locked", "make_folder", "move", "read", "replace", "write_new"]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Let one process at a time write keys into `out`, which is made if missing. Raises `OSError`."""
    make_folder(out)
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(path: Path, fix: str) -> bytes:
    """Return the content of a key or certificate.

    Raises:
        CertificateError: it cannot be read; names the file and, if it is missing, `fix`.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CertificateError(f"{path} is missing; {fix}") from None
    except OSError as error:
        raise CertificateError(
            f"{path} cannot be read ({error.strerror}); check its owner and mode"
        ) from None


def write_new(path: Path, content: bytes, *, private: bool = False) -> Path:
    """Write a file that does not exist yet; `FileExistsError` if it does. Call it inside `locked`."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, "exists and is not overwritten", str(path))
    return replace(path, content, private=private)


def replace(path: Path, content: bytes, *, private: bool = False) -> Path:
    """Write a file whole or not at all: 0600 if private, else 0644. Call it inside `locked`."""
    make_folder(path.parent)
    staging = path.with_name(f".new.{path.name}")
    staging.unlink(missing_ok=True)  # a killed run left it
    mode = 0o600 if private else 0o644
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # a strict umask would hide what is public
            if private:
                _require_closed(path, descriptor)
            _give_to_owner_of(path.parent, descriptor)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return move(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def move(source: Path, target: Path) -> Path:
    """Rename within a folder, durably."""
    source.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return target


def _require_closed(path: Path, descriptor: int) -> None:
    """Raise a `CertificateError` where a mode does not hold: others would read the key that is to come."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o077:
        raise CertificateError(
            f"{path}: this file system keeps no permissions (mode {mode:o} after chmod 600), so others could "
            "read the key; move the folder to one that does, under WSL from /mnt/c into your Linux home"
        )


def make_folder(folder: Path) -> None:
    """Make what is missing of `folder`, closed to others."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
        _give_to_owner_of(missing.parent, missing)


def _give_to_owner_of(folder: Path, made: Path | int) -> None:
    if os.geteuid() == 0:  # nobody else may, nor needs to
        owner = folder.stat()
        os.chown(made, owner.st_uid, owner.st_gid)
