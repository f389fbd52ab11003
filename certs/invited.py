"""Sites elsewhere, whose private keys were never here: what is known of them is public.

    invited/NAME/ node.key.pub NAME.invitation.json: until the key is revoked
    revoked/NAME-WHEN/: what the folder held; a key in here is never invited again

The `run` service registers the keys in `invited/` and shuts out those in `revoked/`, whatever SuperLink's
database holds: it may be a backup. Sites of this machine are in `sites/`.
"""

from datetime import UTC, datetime
from pathlib import Path

from federation.errors import CertificateError
from federation.key_files import locked, make_folder, replace, write_new
from federation.site_key import PublicKey, check_site_name, read_key_line

__all__ = ["INVITED", "REVOKED", "keep_invitation", "record_key", "registered_key", "retire_site"]

INVITED, REVOKED, _OWN = "invited", "revoked", "sites"
_KEY_FILE = "node.key.pub"


def record_key(out: Path, name: str, key: PublicKey) -> None:
    """Keep the key that the site `name` sent. Repeatable.

    Raises:
        CertificateError: the name or the key belongs to another site, or the key was revoked.
        OSError: `out` cannot be written.
    """
    check_site_name(name)
    with locked(out):
        _refuse_known(out, name, key)
        file = out / INVITED / name / _KEY_FILE
        if not file.exists():
            write_new(file, f"{key.spell(name)}\n".encode())


def keep_invitation(out: Path, name: str, content: bytes) -> Path:
    """Write the invitation of an invited site and return its path."""
    with locked(out):
        return replace(out / INVITED / name / f"{name}.invitation.json", content, private=True)


def registered_key(out: Path, name: str) -> PublicKey:
    """Return the public key of the site `name`, elsewhere or on this machine.

    Raises:
        CertificateError: there is no such site, or its key cannot be read.
    """
    check_site_name(name)
    for folder in (INVITED, _OWN):
        if (file := out / folder / name / _KEY_FILE).is_file():
            return _read(file)
    known = sorted({path.parent.name for path in out.glob(f"[is]*/*/{_KEY_FILE}")})
    file = out / INVITED / name / _KEY_FILE
    raise CertificateError(f"{file} is missing: no site {name}; there are {', '.join(known) or 'none'}")


def retire_site(out: Path, name: str, now: datetime | None = None) -> Path:
    """Move what there is of the site to `revoked/` and return where it lies now.

    Raises:
        CertificateError: there is no such site.
        OSError: the folder cannot be moved.
    """
    target = out / REVOKED / f"{name}-{now or datetime.now(UTC):%Y%m%d-%H%M%S}"
    with locked(out):
        registered_key(out, name)
        make_folder(target.parent)
        is_invited = (out / INVITED / name / _KEY_FILE).is_file()
        (out / (INVITED if is_invited else _OWN) / name).rename(target)
    return target


def _refuse_known(out: Path, name: str, key: PublicKey) -> None:
    if (revoked := out / REVOKED).exists():
        next(revoked.iterdir(), None)  # raises if it may not be read, which `glob` passes over
    for file in sorted(revoked.glob(f"*/{_KEY_FILE}")):
        if _read(file).line == key.line:
            raise CertificateError(
                f"this key was revoked ({file.parent.name}), which is for good; the site makes another with "
                "so100-site key --new"
            )
    for file in sorted(out.glob(f"[is]*/*/{_KEY_FILE}")):
        if file.parent.name == name and _read(file).line != key.line:
            raise CertificateError(
                f"{name} has the key {_read(file).fingerprint}, and this one is {key.fingerprint}; "
                f"so100-server revoke {name} first, or choose another name"
            )
        if file.parent.name != name and _read(file).line == key.line:
            raise CertificateError(f"this key is the one of {file.parent.name}; each site makes its own")
    if (out / _OWN / name).exists():
        raise CertificateError(f"{out / _OWN / name} is a site of this machine; choose another name")


def _read(file: Path) -> PublicKey:
    try:
        return read_key_line(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, CertificateError) as error:
        raise CertificateError(f"{file} cannot be read as a public key ({error}); remove it") from None
