"""Looking at what `make certs` made: who it is for, how long it lasts, and what is wrong with it."""

import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from cryptography.x509 import Certificate

from certs.authority import CertificateError, load_certificate, load_key, server_names
from federation.site_key import load_site_key

__all__ = ["SECRETS", "WARN_DAYS", "Finding", "check", "days_left", "table", "verify_server_certificate"]

WARN_DAYS = 14
SECRETS = ("superexec.secret", "control.secret")
_ROTATE = "run make certs ROTATE=1"


@dataclass(frozen=True)
class Finding:
    """One row: `level` is "ok", "warning" or "error"; the rest is empty where it says nothing."""

    level: str
    file: Path
    text: str = ""
    subject: str = ""
    days: float | None = None
    names: Sequence[str] = ()


def days_left(certificate: Path, now: datetime | None = None) -> float:
    """Days until the certificate expires; negative if it has. Raises `CertificateError` if unreadable."""
    return _days(load_certificate(certificate), now)


def verify_server_certificate(out: Path, now: datetime | None = None) -> None:
    """Raise a `CertificateError`, one line with the fix, unless SuperLink can start with what is in `out`."""
    now = now or datetime.now(UTC)
    folder = out / "superlink"
    authority = load_certificate(folder / "ca.crt")
    certificate = load_certificate(folder / "server.crt", fix=_ROTATE)
    _verify_dates(
        folder / "ca.crt", authority, now, f"move {out / 'ca'} and {folder} away and run make certs"
    )
    _verify_dates(folder / "server.crt", certificate, now, _ROTATE)
    if not _is_signed_by(certificate, authority):
        raise CertificateError(f"{folder / 'server.crt'} is not signed by {folder / 'ca.crt'}; {_ROTATE}")
    if load_key(folder / "server.key", fix=_ROTATE).public_key() != certificate.public_key():
        raise CertificateError(
            f"{folder / 'server.key'} is not the key of {folder / 'server.crt'}; {_ROTATE}"
        )
    for secret in (folder / name for name in SECRETS):
        if not secret.is_file():
            raise CertificateError(f"{secret} is missing; run make certs")
        if secret.stat().st_size == 0:
            raise CertificateError(f"{secret} is empty; remove it and run make certs")


def check(out: Path, now: datetime | None = None) -> list[Finding]:
    """Return what there is in `out` and what is wrong with it, permissions included; raise nothing itself."""
    folder = out / "superlink"
    findings = [
        _look_at_ca_key(out),
        _look_at_certificate(folder / "ca.crt", "remove it and run make certs", now),
        _look_at_certificate(folder / "server.crt", _ROTATE, now),
    ]
    findings += [_look_at_site(site, folder / "ca.crt") for site in sorted((out / "sites").glob("*"))]
    try:
        verify_server_certificate(out, now)
    except CertificateError as error:
        if str(error) not in {finding.text for finding in findings}:
            findings.append(Finding("error", folder, str(error)))
    return findings + _open_permissions(out)


def table(findings: Sequence[Finding], out: Path) -> str:
    """Return the findings as aligned text, files relative to `out`."""
    rows = [("STATUS", "FILE", "DAYS LEFT", "SUBJECT", "VALID FOR / REMARK")]
    for finding in findings:
        file = finding.file.relative_to(out) if finding.file != out else finding.file
        days = "" if finding.days is None else f"{finding.days:.0f}"
        remark = ", ".join(finding.names) or finding.text
        rows.append((finding.level, str(file), days, finding.subject, remark))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _days(certificate: Certificate, now: datetime | None) -> float:
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))).total_seconds() / 86400


def _look_at_certificate(path: Path, fix: str, now: datetime | None) -> Finding:
    try:
        certificate = load_certificate(path, fix)
        names = server_names(path)
    except CertificateError as error:
        return Finding("error", path, str(error))
    left = _days(certificate, now)
    level = "error" if left < 0 else "warning" if left < WARN_DAYS else "ok"
    return Finding(level, path, subject=certificate.subject.rfc4514_string(), days=left, names=names)


def _look_at_ca_key(out: Path) -> Finding:
    path, authority = out / "ca" / "ca.key", out / "superlink" / "ca.crt"
    if not path.exists() and authority.exists():
        return Finding("ok", path, f"is kept elsewhere; to renew the server certificate, bring it to {path}")
    try:
        key = load_key(path, fix="run make certs, or bring a copy back")
        if key.public_key() != load_certificate(authority).public_key():
            return Finding("error", path, f"is not the key of {authority}; bring the right one back")
    except CertificateError as error:
        return Finding("error", path, str(error))
    return Finding("ok", path, "signs the server certificate; no container needs it")


def _look_at_site(site: Path, authority: Path) -> Finding:
    private, public, ca = site / "node.key", site / "node.key.pub", site / "ca.crt"
    try:
        registered = load_ssh_public_key(public.read_bytes())
        if (
            private.exists()
            and load_site_key(private, f"remove {site} and make it again").public_key() != registered
        ):
            return Finding("error", public, f"is not of {private}; remove {public} and run make certs")
        if not authority.exists() or ca.read_bytes() != authority.read_bytes():
            return Finding("error", ca, f"differs from {authority}; run make certs, then send it to the site")
    except (OSError, ValueError, UnsupportedAlgorithm):
        return Finding("error", site, "lacks a readable node.key.pub or ca.crt; run make certs")
    except CertificateError as error:
        return Finding("error", private, str(error))
    return Finding("ok", site, "key pair" if private.exists() else "public key; the private one is elsewhere")


def _open_permissions(out: Path) -> list[Finding]:
    findings = []
    for path in (out, *sorted(out.rglob("*"))):
        # Whatever is not known to be public is private, so that a stray copy of a key is seen too.
        if not path.exists() or (path.is_file() and path.suffix in (".crt", ".pub")):
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            fix = f"chmod {'700' if path.is_dir() else '600'} {shlex.quote(str(path))}"
            findings.append(Finding("error", path, f"mode {mode:o}: others can open it; {fix}"))
    return findings


def _verify_dates(path: Path, certificate: Certificate, now: datetime, fix: str) -> None:
    if now > certificate.not_valid_after_utc:
        raise CertificateError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {fix}")
    if now < certificate.not_valid_before_utc:
        start = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
        raise CertificateError(f"{path} is not valid before {start} UTC; set this machine's clock")


def _is_signed_by(certificate: Certificate, authority: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
