"""`so100-server keys`: issues what is missing, and never overwrites a key.

What is made is laid out so that each party gets one folder and no more:

    ca/         ca.key: signs the server certificate; stays on the operator's machine, no container sees it
    superlink/  ca.crt server.crt server.key superexec.secret control.secret: for SuperLink and the server
    sites/NAME/ ca.crt node.key node.key.pub: for the SuperNode of a site on this machine

The keys of sites elsewhere are made there (`so100-site key`) and never come here; see `certs/invited.py`.
Folders are 0700, private files 0600 from their first byte.
"""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from certs.authority import (
    CertificateError,
    canonical_host,
    issue_ca,
    issue_server,
    load_certificate,
    load_key,
    private_pem,
    server_names,
)
from certs.check import SECRETS, WARN_DAYS, check, days_left, table, verify_server_certificate
from certs.invited import INVITED, REVOKED
from certs.settings import CA_DAYS, SERVER_DAYS, load_settings
from federation.key_files import locked, make_folder, move, replace, write_new
from federation.site_key import check_site_name, load_site_key, new_key, public_key, site_private_key

__all__ = [
    "RESTART",
    "CertificateError",
    "add_site",
    "check",
    "check_keys",
    "days_left",
    "issue_all",
    "issue_keys",
    "rotate",
    "verify_server_certificate",
]

SERVICE_HOSTS = ("superlink", "gateway", "server", "localhost", "127.0.0.1", "::1")
RESTART = "docker compose restart superlink gateway exporter"  # whoever uses the server's certificate
_SECRET_BYTES = 32


def issue_all(
    out: Path,
    hosts: Sequence[str],
    sites: Sequence[str],
    *,
    server_days: int = SERVER_DAYS,
    ca_days: int = CA_DAYS,
    now: datetime | None = None,
) -> list[Path]:
    """Issue what is missing in `out` and return the files made; an empty list if nothing was.

    Args:
        hosts: DNS names and IP addresses of SuperLink, besides those of the services and localhost.
        sites: names of the SuperNodes that need a key pair.
        now: beginning of validity; the present by default.

    Raises:
        CertificateError: a name is malformed, what is needed cannot be read, or the existing certificate
            lacks one of `hosts`.
        OSError: `out` cannot be written.
    """
    now = now or datetime.now(UTC)
    for site in sites:
        check_site_name(site)
    names = _all_names(hosts)
    with locked(out):
        made = _issue_authority(out, ca_days, now)
        made += _issue_server(out, names, server_days, now)
        for secret in (out / "superlink" / name for name in SECRETS):
            if not secret.exists():
                # Hexadecimal: Flower takes the bytes of the file as they are, and text survives an editor.
                made.append(write_new(secret, secrets.token_hex(_SECRET_BYTES).encode(), private=True))
        for mounted in (INVITED, REVOKED):  # by docker-compose.yml
            make_folder(out / mounted)
        known = {folder.name for folder in (out / "sites").glob("*") if folder.is_dir()}
        for site in [*dict.fromkeys(sites), *sorted(known - set(sites))]:
            made += _complete_site(out, site)
    return made


def add_site(out: Path, site: str) -> list[Path]:
    """Make the key pair of one more SuperNode and return its files.

    Raises:
        CertificateError: the name is malformed or has a key already, or there is no CA yet.
        OSError: `out` cannot be written.
    """
    check_site_name(site)
    load_certificate(out / "superlink" / "ca.crt")
    folder = out / "sites" / site
    with locked(out):
        if (folder / "node.key").exists() or (folder / "node.key.pub").exists():
            raise CertificateError(
                f"{folder}: has a key already; choose another name, or move the folder away"
            )
        return _complete_site(out, site)


def rotate(
    out: Path, hosts: Sequence[str], server_days: int = SERVER_DAYS, now: datetime | None = None
) -> list[Path]:
    """Renew the server's key and certificate under the same CA; nothing else changes.

    The old key is not kept: a copy would be one more secret to guard, and has no use. Running processes
    keep what they loaded until they are restarted.

    Raises:
        CertificateError: a host is malformed, or the CA is missing, unreadable or expired.
        OSError: `out` cannot be written.
    """
    names = _all_names(hosts)
    load_certificate(out / "superlink" / "ca.crt")
    with locked(out):
        return _write_server_pair(out, names, server_days, now or datetime.now(UTC))


def issue_keys(
    out: Path, config: Path, hosts: Sequence[str] = (), *, site: str | None = None, renew: bool = False
) -> None:
    """Issue what `config` names and `out` lacks, and print it.

    Args:
        hosts: DNS names and IP addresses of SuperLink besides those of `config`.
        site: only add the key pair of this one.
        renew: only renew the server's certificate.

    Raises:
        CertificateError: a name or the configuration is at fault, or `out` cannot be read or written.
    """
    settings = load_settings(config)
    settings["hosts"] = [*settings["hosts"], *hosts]
    with _named_faults(out):
        if site is not None:
            made = add_site(out, site)
        elif renew:
            made = _rotate_and_tell(out, settings["hosts"], settings["server_days"])
        else:
            made = issue_all(out, **settings)
        for file in made:
            print(f"made {file}")
        if not made:
            print(f"certificates and keys in {out} are complete, nothing changed")
        if site is not None:
            return
        verify_server_certificate(out)
        left = days_left(out / "superlink" / "server.crt")
        if left < WARN_DAYS:
            print(f"warning: the server certificate expires in {left:.0f} days; run make certs ROTATE=1")


def check_keys(out: Path) -> bool:
    """Print what there is in `out` and what is wrong with it; return whether nothing is an error.

    Raises:
        CertificateError: it cannot be read.
    """
    with _named_faults(out):
        findings = check(out)
    print(table(findings, out))
    return not any(finding.level == "error" for finding in findings)


@contextmanager
def _named_faults(out: Path) -> Iterator[None]:
    """Turn what the file system refuses into a CertificateError with the fix."""
    try:
        yield
    except PermissionError as error:
        me = os.getuid()
        raise CertificateError(
            f"{error.filename}: user {me} may not read or write it; run this as its owner or with sudo, or "
            f"take all over: sudo chown -R {me}:{os.getgid()} {out}"
        ) from None
    except OSError as error:
        raise CertificateError(f"{error.filename}: {error.strerror}; check --out, owner and mode") from None


def _rotate_and_tell(out: Path, hosts: Sequence[str], server_days: int) -> list[Path]:
    certificate = out / "superlink" / "server.crt"
    try:
        before = server_names(certificate)
    except CertificateError:
        before = []
    made = rotate(out, hosts, server_days)
    if dropped := [name for name in before if name not in server_names(certificate)]:
        print(f"warning: no longer valid for {', '.join(dropped)}: to keep it, put it in hosts")
    print(f"then, where they run: {RESTART}")
    return made


def _all_names(hosts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*SERVICE_HOSTS, *map(canonical_host, hosts)]))


def _issue_authority(out: Path, days: int, now: datetime) -> list[Path]:
    key_file, certificate = out / "ca" / "ca.key", out / "superlink" / "ca.crt"
    if certificate.exists():
        return []
    if key_file.exists():
        # The same key under the same name: what it signed before stays valid.
        key, made = load_key(key_file, fix="bring a copy back, or move it away for a new CA"), []
    else:
        key = new_key()
        made = [write_new(key_file, private_pem(key), private=True)]
    return [*made, write_new(certificate, issue_ca(key, days, now))]


def _issue_server(out: Path, names: Sequence[str], days: int, now: datetime) -> list[Path]:
    folder = out / "superlink"
    key, certificate, upcoming = (folder / n for n in ("server.key", "server.crt", ".next.server.crt"))
    if key.exists() and upcoming.exists():
        made = _finish(key, upcoming, certificate)
        if made:
            return made
    if not key.exists():
        return _write_server_pair(out, names, days, now)
    if not certificate.exists():
        public = load_key(key, fix="run make certs ROTATE=1").public_key()
        signed = issue_server(public, out / "ca" / "ca.key", folder / "ca.crt", names, days, now)
        return [write_new(certificate, signed)]
    if missing := [name for name in names if name not in server_names(certificate)]:
        raise CertificateError(
            f"{certificate} is not valid for {', '.join(missing)}; run make certs ROTATE=1"
        )
    return []


def _write_server_pair(out: Path, names: Sequence[str], days: int, now: datetime) -> list[Path]:
    """Replace key and certificate.

    Two files cannot change in one step, so the certificate waits beside the old pair, complete on disk,
    while the key is replaced. A crash before that leaves the old pair in use; a crash after it leaves a
    key whose certificate is there, and the next run puts it in its place (`_finish`).
    """
    folder, key = out / "superlink", new_key()
    signed = issue_server(key.public_key(), out / "ca" / "ca.key", folder / "ca.crt", names, days, now)
    upcoming = replace(folder / ".next.server.crt", signed)
    return [
        replace(folder / "server.key", private_pem(key), private=True),
        move(upcoming, folder / "server.crt"),
    ]


def _finish(key: Path, upcoming: Path, certificate: Path) -> list[Path]:
    """Complete a renewal that was interrupted after the key was replaced; drop one interrupted before."""
    public = load_key(key, fix="run make certs ROTATE=1").public_key()
    if load_certificate(upcoming).public_key() == public:
        return [move(upcoming, certificate)]
    upcoming.unlink()
    return []


def _complete_site(out: Path, site: str) -> list[Path]:
    """Write what the folder of `site` lacks.

    A public key alone is no gap: its private half has gone to its site.
    """
    folder = out / "sites" / site
    private, public, authority = (folder / n for n in ("node.key", "node.key.pub", "ca.crt"))
    made = []
    if not private.exists() and not public.exists():
        made.append(write_new(private, site_private_key(new_key()), private=True))
    if not public.exists():
        key = load_site_key(private, f"remove {folder} and make it again")
        made.append(write_new(public, f"{public_key(key).spell(site)}\n".encode()))
    trusted = (out / "superlink" / "ca.crt").read_bytes()
    if not authority.exists() or authority.read_bytes() != trusted:
        made.append(replace(authority, trusted))
    return made
