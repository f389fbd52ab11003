"""`make certs`: issues what is missing, and never overwrites a key.

    python -m certs.issue [--site NAME] [--rotate] [--check]

What is made is laid out so that each party gets one folder and no more:

    ca/         ca.key: signs the server certificate; stays on the operator's machine, no container sees it
    superlink/  ca.crt server.crt server.key superexec.secret: for SuperLink and the server
    sites/NAME/ ca.crt node.key node.key.pub: for that site's SuperNode

Folders are 0700, private files 0600 from their first byte.
"""

import argparse
import os
import re
import secrets
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from certs.authority import CertificateError, issue_ca, issue_server, new_site_key, server_names
from certs.check import check, verify_server_certificate

__all__ = ["CertificateError", "add_site", "issue_all", "main", "rotate", "verify_server_certificate"]

DEFAULT_OUT = Path("certs/generated")
DEFAULT_CONFIG = Path("configs/certs.toml")
SERVICE_HOSTS = ("superlink", "gateway", "server", "localhost", "127.0.0.1", "::1")
_DEFAULTS: dict[str, Any] = {"hosts": [], "sites": ["site-a", "site-b"], "server_days": 397, "ca_days": 3650}
_SITE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SECRET_BYTES = 32


def issue_all(
    out: Path,
    hosts: Sequence[str],
    sites: Sequence[str],
    *,
    server_days: int = 397,
    ca_days: int = 3650,
    now: datetime | None = None,
) -> list[Path]:
    """Issue what is missing in `out` and return the files made; an empty list if nothing was.

    Args:
        hosts: DNS names and IP addresses of SuperLink, besides those of the services and localhost.
        sites: names of the SuperNodes that need a key pair.
        now: beginning of validity; the present by default.

    Raises:
        CertificateError: a name is malformed, or the existing certificate lacks one of `hosts`.
    """
    now = now or datetime.now(UTC)
    for site in sites:
        _check_site_name(site)
    names = list(dict.fromkeys([*SERVICE_HOSTS, *hosts]))
    made: list[Path] = []
    _make_folder(out)
    ca_key, ca_certificate = out / "ca" / "ca.key", out / "superlink" / "ca.crt"
    server_key, server_certificate = out / "superlink" / "server.key", out / "superlink" / "server.crt"
    if not ca_key.exists():
        if ca_certificate.exists():
            raise CertificateError(
                f"{ca_key} is missing but {ca_certificate} exists: bring the key back, or move {out} away"
            )
        key, certificate = issue_ca(ca_days, now)
        made += [_write(ca_key, key, private=True), _write(ca_certificate, certificate)]
    if not server_key.exists() or not server_certificate.exists():
        if server_key.exists() or server_certificate.exists():
            raise CertificateError(f"{server_certificate} or its key is missing; run make certs ROTATE=1")
        key, certificate = issue_server(ca_key, ca_certificate, names, server_days, now)
        made += [_write(server_key, key, private=True), _write(server_certificate, certificate)]
    elif missing := [name for name in names if name not in server_names(server_certificate)]:
        raise CertificateError(
            f"{server_certificate} is not valid for {', '.join(missing)}; run make certs ROTATE=1"
        )
    secret = out / "superlink" / "superexec.secret"
    if not secret.exists():
        made.append(_write(secret, secrets.token_hex(_SECRET_BYTES).encode(), private=True))
    for site in sites:
        if not (out / "sites" / site / "node.key").exists():
            made += _write_site(out, site)
    return made


def add_site(out: Path, site: str) -> list[Path]:
    """Make the key pair of one more SuperNode.

    Raises:
        CertificateError: the name is malformed or has a key already, or there is no CA yet.
    """
    _check_site_name(site)
    if (out / "sites" / site / "node.key").exists():
        raise CertificateError(f"{out / 'sites' / site}: has a key already; choose another name")
    if not (out / "superlink" / "ca.crt").exists():
        raise CertificateError(f"{out / 'superlink' / 'ca.crt'} is missing; run make certs")
    return _write_site(out, site)


def rotate(out: Path, hosts: Sequence[str], server_days: int, now: datetime | None = None) -> list[Path]:
    """Renew the server's key and certificate under the same CA; nothing else changes.

    Each file is replaced whole. A crash between the two leaves a pair that does not match: SuperLink then
    refuses to start, `check` says so, and rotating again mends it. Running processes keep what they loaded.

    Raises:
        CertificateError: the CA's key or certificate is missing.
    """
    folder = out / "superlink"
    names = list(dict.fromkeys([*SERVICE_HOSTS, *hosts]))
    key, certificate = issue_server(
        out / "ca" / "ca.key", folder / "ca.crt", names, server_days, now or datetime.now(UTC)
    )
    return [
        _replace(folder / "server.key", key, private=True),
        _replace(folder / "server.crt", certificate),
    ]


def main() -> int:
    """Do what the command line asks; exit code 2 for bad input, 1 if `--check` finds an error."""
    parser = argparse.ArgumentParser(description="Issue the federation's certificates and keys.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--site", metavar="NAME", help="add the key pair of one more SuperNode")
    task.add_argument("--rotate", action="store_true", help="renew the server certificate")
    task.add_argument("--check", action="store_true", help="show what there is and what is wrong with it")
    arguments = parser.parse_args()
    out = arguments.out
    try:
        settings = _load_settings(arguments.config)
        if arguments.check:
            return _print_check(out)
        if arguments.site:
            made = add_site(out, arguments.site)
        elif arguments.rotate:
            made = rotate(out, settings["hosts"], settings["server_days"])
        else:
            made = issue_all(out, **settings)
    except CertificateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in made:
        print(f"made {file}")
    if not made:
        print(f"certificates and keys in {out} are complete")
    return 0


def _print_check(out: Path) -> int:
    findings = check(out)
    for finding in findings:
        print(f"{finding.level:<7} {finding.file}: {finding.text}")
    return int(any(finding.level == "error" for finding in findings))


def _load_settings(path: Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CertificateError(f"{path}: cannot be read as TOML ({error})") from None
    for key, value in settings.items():
        if key not in _DEFAULTS:
            raise CertificateError(f"{path}: unknown key {key!r}: must be one of {', '.join(_DEFAULTS)}")
        if isinstance(_DEFAULTS[key], list):
            if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
                raise CertificateError(f"{path}: {key} = {value!r}: must be a list of names")
        elif type(value) is not int or not 1 <= value <= 36500:
            raise CertificateError(f"{path}: {key} = {value!r}: must be a number of days from 1 to 36500")
    return _DEFAULTS | settings


def _check_site_name(site: str) -> None:
    if not _SITE_NAME.fullmatch(site):
        raise CertificateError(
            f"site name {site!r}: use 1 to 63 lowercase letters, digits and hyphens, no hyphen at either end"
        )


def _write_site(out: Path, site: str) -> list[Path]:
    private, public = new_site_key(site)
    folder = out / "sites" / site
    ca_certificate = (out / "superlink" / "ca.crt").read_bytes()
    # The private key is last: without it the site is incomplete and is made again.
    files = [_replace(folder / "ca.crt", ca_certificate), _replace(folder / "node.key.pub", public)]
    return [*files, _write(folder / "node.key", private, private=True)]


def _write(path: Path, content: bytes, *, private: bool = False) -> Path:
    """Write a file that must not exist yet."""
    if path.exists():
        raise CertificateError(f"{path} exists and is not overwritten")
    return _replace(path, content, private=private)


def _replace(path: Path, content: bytes, *, private: bool = False) -> Path:
    """Write a file whole or not at all, with its final mode from the first byte."""
    _make_folder(path.parent)
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    return path


def _make_folder(folder: Path) -> None:
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700)


if __name__ == "__main__":
    sys.exit(main())
