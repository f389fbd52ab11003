"""The doctor's look at this machine: scratch, key, the authority's certificate, packages."""

import os
import shlex
import shutil
import stat
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path

from packaging.requirements import Requirement

from client.doctor.check import Check, days_check
from federation.versions import versions

__all__ = ["check_ca", "check_key", "check_scratch", "check_software"]

_INSTALL = (
    "install the operator's release again, in its checkout: uv tool install --reinstall --python 3.12 "
    "--constraints requirements.lock . (make env where make started this), or take its image"
)
_PROJECT_FILE = Path(__file__).resolve().parents[1] / "project.toml"  # a link; in a wheel, a copy

_WARN_FREE_GB, _MIN_FREE_GB = 10.0, 1.0  # weights of the policy, an Arrow copy of the tables, residuals


def check_scratch(folder: Path) -> list[Check]:
    """Look whether `folder` can be written and has room."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # decoded frames will lie there
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = f"give user {os.getuid()} the right to write there, or name another folder"
        return [Check("error", "scratch", f"{folder}: cannot be written ({error.strerror}); {fix}")]
    free = shutil.disk_usage(folder).free / 1e9
    text = f"{folder}: writable, {free:.1f} GB free"
    if free < _MIN_FREE_GB:
        return [Check("error", "scratch", f"{text}, {_WARN_FREE_GB:.0f} GB are wanted; make room")]
    if free < _WARN_FREE_GB:
        return [Check("warning", "scratch", f"{text}, {_WARN_FREE_GB:.0f} GB are wanted; make room")]
    return [Check("ok", "scratch", text)]


def check_key(file: Path) -> list[Check]:
    """Look whether `file` is a SuperNode's private key that only its owner can read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    again = "so100-site key --new makes another"
    try:
        content, mode = file.read_bytes(), stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        return [Check("error", "key", f"{file}: missing; so100-site key makes it")]
    except OSError as error:
        fix = f"make user {os.getuid()} its owner; in containers set SITE_UID in .env to what id -u says"
        return [Check("error", "key", f"{file}: cannot be read ({error.strerror}); {fix}")]
    try:
        key = load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return [Check("error", "key", f"{file}: no private key in OpenSSH form without a password; {again}")]
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return [Check("error", "key", f"{file}: {type(key).__name__}, must be on an elliptic curve; {again}")]
    if mode & 0o077:
        fix = f"chmod 600 {shlex.quote(str(file))}, or where that changes nothing (WSL's /mnt/c) move it home"
        return [Check("error", "key", f"{file}: mode {mode:o}, others can read it; {fix}")]
    return [Check("ok", "key", f"{file}: ECDSA {key.curve.name}, mode {mode:o}")]


def check_ca(file: Path, now: datetime | None = None) -> list[Check]:
    """Look whether `file` is a certificate authority that is valid for a while."""
    from cryptography import x509

    again = "so100-site join writes it from the invitation"
    new = "ask the operator for a new invitation"
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except FileNotFoundError:
        return [Check("error", "CA", f"{file}: missing; {again}")]
    except OSError as error:
        return [Check("error", "CA", f"{file}: cannot be read ({error.strerror}); {again}")]
    except (ValueError, x509.ExtensionNotFound):
        return [Check("error", "CA", f"{file}: is no certificate of an authority; {again}")]
    if not constraints.ca:
        return [Check("error", "CA", f"{file}: is a server's certificate, not the authority's; {again}")]
    now = now or datetime.now(UTC)
    if now < certificate.not_valid_before_utc:
        text = f"{file}: not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return [Check("error", "CA", f"{text}, this clock says {now:%Y-%m-%d %H:%M}; set the clock")]
    end = certificate.not_valid_after_utc
    if now > end:
        return [Check("error", "CA", f"{file}: expired on {end:%Y-%m-%d}; {new}")]
    left = (end - now).days
    return [days_check("CA", f"{file}: {left} days left", left, new)]


def check_software(app: str | None = None) -> list[Check]:
    """Look whether app and packages, which decide what this site computes, have the release that is wanted.

    Args:
        app: the digest of the operator's release when it made the invitation; None: not known.
    """
    dependencies = tomllib.loads(_PROJECT_FILE.read_text(encoding="utf-8"))["project"]["dependencies"]
    pinned = {
        requirement.name: pin.version
        for requirement in map(Requirement, dependencies)
        for pin in requirement.specifier
        if pin.operator == "=="
    }
    found = versions()
    for package, wanted in pinned.items():
        installed = found.get(package, "none")
        if installed.split(".")[:2] != wanted.split(".")[:2]:  # as the server compares them
            text = f"{package} {installed} is installed, this app wants {wanted}; {_INSTALL}"
            return [Check("error", "software", text)]
    text = ", ".join(f"{package} {found[package]}" for package in pinned)
    if app and app != found["app"]:
        # No error: the operator may have taken this release since.
        text = f"app {found['app']} is installed, the operator had {app} when inviting this site; {_INSTALL}"
        return [Check("warning", "software", text)]
    return [Check("ok", "software", f"app {found['app']}, {text}")]
