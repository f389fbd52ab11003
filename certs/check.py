"""Looking at what `make certs` made: who it is for, how long it lasts, and what is wrong with it."""

import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.x509 import Certificate

from certs.authority import CertificateError, load_certificate, load_key, server_names

__all__ = ["Finding", "check", "days_left", "verify_server_certificate"]

WARN_DAYS = 14


@dataclass(frozen=True)
class Finding:
    """One line of the check: `level` is "ok", "warning" or "error"."""

    level: str
    file: Path
    text: str


def days_left(certificate: Path, now: datetime | None = None) -> float:
    """Days until the certificate expires; negative if it has. Raises `CertificateError` if unreadable."""
    left = load_certificate(certificate).not_valid_after_utc - (now or datetime.now(UTC))
    return left.total_seconds() / 86400


def verify_server_certificate(out: Path, now: datetime | None = None) -> None:
    """Raise a `CertificateError`, one line with the fix, unless SuperLink can start with what is in `out`."""
    now = now or datetime.now(UTC)
    folder = out / "superlink"
    authority = load_certificate(folder / "ca.crt")
    certificate = load_certificate(folder / "server.crt")
    for path, subject, fix in (
        (folder / "ca.crt", authority, f"move {out} away and run make certs"),
        (folder / "server.crt", certificate, "run make certs ROTATE=1"),
    ):
        if now > subject.not_valid_after_utc:
            raise CertificateError(f"{path} expired on {subject.not_valid_after_utc:%Y-%m-%d}; {fix}")
        if now < subject.not_valid_before_utc:
            raise CertificateError(
                f"{path} is not valid before {subject.not_valid_before_utc:%Y-%m-%d %H:%M}; set the clock"
            )
    if not _is_signed_by(certificate, authority):
        raise CertificateError(
            f"{folder / 'server.crt'} is not signed by {folder / 'ca.crt'}; run make certs ROTATE=1"
        )
    if load_key(folder / "server.key").public_key() != certificate.public_key():
        raise CertificateError(
            f"{folder / 'server.key'} is not the key of {folder / 'server.crt'}; run make certs ROTATE=1"
        )
    if not (folder / "superexec.secret").is_file():
        raise CertificateError(f"{folder / 'superexec.secret'} is missing; run make certs")


def check(out: Path, now: datetime | None = None) -> list[Finding]:
    """Everything in `out`, one finding each, then what is wrong."""
    findings: list[Finding] = []
    for name in ("ca.crt", "server.crt"):
        path = out / "superlink" / name
        try:
            left, certificate = days_left(path, now), load_certificate(path)
            text = f"{certificate.subject.rfc4514_string()}, {left:.0f} days left"
            if name == "server.crt":
                text += f", valid for {', '.join(server_names(path))}"
            findings.append(Finding("warning" if 0 <= left < WARN_DAYS else "ok", path, text))
        except CertificateError as error:
            findings.append(Finding("error", path, str(error)))
    for site in sorted((out / "sites").glob("*")):
        complete = all((site / name).is_file() for name in ("ca.crt", "node.key", "node.key.pub"))
        findings.append(
            Finding("ok", site, "key pair")
            if complete
            else Finding("error", site, "is incomplete; remove it and make it again")
        )
    for path in (out, *sorted(out.rglob("*"))):
        private = path.is_dir() or path.suffix in (".key", ".secret")
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
        if private and mode & 0o077:
            fix = f"chmod {'700' if path.is_dir() else '600'} {path}"
            findings.append(Finding("error", path, f"mode {mode:o}: others can read it; {fix}"))
    try:
        verify_server_certificate(out, now)
    except CertificateError as error:
        findings.append(Finding("error", out, str(error)))
    return findings


def _is_signed_by(certificate: Certificate, authority: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
