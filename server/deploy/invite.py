"""`so100-server invite` and `revoke`: what a site elsewhere needs, in one archive, and taking it back.

The archive holds the site's private key: it is written for the operator alone and is handed over on a
private way. Its content is the same each time it is made from the same key, so two copies can be compared.
SuperLink is called through the `run` container, because its Control API is on the containers' own network;
`control` names another way to it.
"""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template

from certs.authority import CertificateError, canonical_host, server_names
from certs.files import locked, replace
from certs.issue import add_site, verify_server_certificate
from certs.settings import check_site_name
from federation.proxies import bypass_loopback
from server.superlink.control import PROJECT, ControlError

__all__ = ["invite_site", "make_bundle", "register_key", "retire_site", "revoke_key", "revoke_site"]

_TEMPLATES = PROJECT / "docker" / "site"
_PUBLIC_MODE, _PRIVATE_MODE = 0o644, 0o600
_FOLDERS = {"": 0o755, "/scratch": 0o700}  # decoded frames lie in the scratch folder
_SUPERLINK_IN_COMPOSE = "superlink:8000"
_CA_IN_COMPOSE = "/run/secrets/ca.crt"
_REGISTER_SECONDS = 180


def make_bundle(certs: Path, name: str, superlink: str) -> Path:
    """Write the archive of the site `name`, with a new key if it has none; return its path.

    Args:
        certs: the folder written by `make certs`.
        superlink: "host:port" under which the site reaches SuperLink's gateway.

    Raises:
        CertificateError: a name is malformed, or the server's certificate is not valid for the host.
        OSError: the archive cannot be written.
    """
    check_site_name(name)
    _require_valid_for(certs, _host(superlink))
    keys = certs / "sites" / name
    if not (keys / "node.key").is_file():
        add_site(certs, name)
    settings = {"name": name, "superlink": superlink, "version": _version()}
    files = [
        ("README.md", _render("README.md", settings), _PUBLIC_MODE),
        (".env", _render("env", settings), _PUBLIC_MODE),
        ("docker-compose.yml", (_TEMPLATES / "docker-compose.yml").read_bytes(), _PUBLIC_MODE),
        ("docker-compose.gpu.yml", (_TEMPLATES / "docker-compose.gpu.yml").read_bytes(), _PUBLIC_MODE),
        ("ca.crt", (certs / "superlink" / "ca.crt").read_bytes(), _PUBLIC_MODE),
        ("node.key", (keys / "node.key").read_bytes(), _PRIVATE_MODE),
    ]
    with locked(certs):
        return replace(_bundle(certs, name), _archive(f"so100-{name}", files), private=True)


def retire_site(certs: Path, name: str, now: datetime | None = None) -> Path:
    """Move the site's key to `revoked/` and remove its archive; return where the key lies now.

    Raises:
        CertificateError: there is no such site.
        OSError: the folder cannot be moved.
    """
    target = certs / "revoked" / f"{name}-{now or datetime.now(UTC):%Y%m%d-%H%M%S}"
    with locked(certs):
        _public_key(certs, name)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        (certs / "sites" / name).rename(target)
        _bundle(certs, name).unlink(missing_ok=True)
    return target


def register_key(certs: Path, name: str, control: str | None) -> str:
    """Register the site's key at SuperLink; return the answer in words.

    Args:
        control: "host:port" of the Control API; None: through the `run` container.

    Raises:
        CertificateError: there is no such site.
        ControlError: SuperLink refuses or cannot be reached.
    """
    return _change_key(certs, name, control)


def revoke_key(certs: Path, name: str, control: str | None) -> str:
    """Revoke the site's key at SuperLink; otherwise as `register_key`."""
    return _change_key(certs, name, control, "--revoke")


def _change_key(certs: Path, name: str, control: str | None, *options: str) -> str:
    key = _public_key(certs, name)
    if control:
        command = [sys.executable, "-m", "server.cli", "register", "--superlink", control]
        command += ["--ca", str((certs / "superlink" / "ca.crt").resolve())]
    else:
        command = ["docker", "compose", "run", "--rm", "--no-deps", "-T"]
        command += ["--entrypoint", "python", "run", "-m", "server.cli", "register"]
        command += ["--superlink", _SUPERLINK_IN_COMPOSE, "--ca", _CA_IN_COMPOSE]
    command += ["--name", name, "--key", key, *options]
    try:
        result = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=_REGISTER_SECONDS, check=False
        )
    except OSError as error:
        raise ControlError(
            f"{command[0]} cannot be started here ({error.strerror}); install it, or name SuperLink with "
            "CONTROL=host:port"
        ) from None
    except subprocess.TimeoutExpired:
        raise ControlError(
            f"SuperLink did not answer within {_REGISTER_SECONDS} s; see docker compose ps"
        ) from None
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip().splitlines() or ["it said nothing"]
        raise ControlError(f"SuperLink was not told: {said[-1].removeprefix('error: ')}")
    return result.stdout.strip()


def invite_site(certs: Path, name: str, superlink: str, control: str | None = None) -> None:
    """Make the archive of the site `name`, register its key, and print what came of both.

    Raises:
        CertificateError: a name is malformed, or the server's certificate is not valid for the host.
        OSError: the archive cannot be written.
    """
    os.environ.update(bypass_loopback(os.environ))
    bundle = make_bundle(certs, name, superlink)
    print(f"made {bundle}; it holds the private key of {name}: hand it over privately, e.g. over ssh")
    try:
        print(f"SuperLink: {register_key(certs, name, control)}")
    except ControlError as error:
        print(f"{name} cannot join yet: {error}")
        print("start SuperLink and run this again; the archive and its key stay the same")


def revoke_site(certs: Path, name: str, control: str | None = None) -> None:
    """Revoke the key of the site `name` for good, move it away, and print where it is.

    Raises:
        CertificateError: there is no such site.
        ControlError: SuperLink refuses or cannot be reached; the key stays where it is.
        OSError: the key cannot be moved.
    """
    os.environ.update(bypass_loopback(os.environ))
    # First SuperLink: a key that was moved away but not revoked could still connect.
    print(f"SuperLink: {revoke_key(certs, name, control)}")
    print(
        f"its key is in {retire_site(certs, name)}; take {name} out of configs/certs.toml if it stands there"
    )


def _require_valid_for(certs: Path, host: str) -> None:
    verify_server_certificate(certs)
    certificate = certs / "superlink" / "server.crt"
    names = server_names(certificate)
    if host not in names:
        raise CertificateError(
            f"{certificate} is not valid for {host} but for {', '.join(names)}; "
            "add it to hosts in configs/certs.toml and run make certs ROTATE=1"
        )


def _host(superlink: str) -> str:
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CertificateError(f"SUPERLINK={superlink}: must be host:port, e.g. fed.example.org:443")
    return canonical_host(host.removeprefix("[").removesuffix("]"))


def _public_key(certs: Path, name: str) -> str:
    check_site_name(name)
    file = certs / "sites" / name / "node.key.pub"
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        known = ", ".join(sorted(folder.name for folder in (certs / "sites").glob("*"))) or "none"
        raise CertificateError(f"{file} is missing: no site {name}; there are {known}") from None


def _bundle(certs: Path, name: str) -> Path:
    return certs / "bundles" / f"{name}.tar.gz"


def _version() -> str:
    """Return the version of the images, as docker-compose.yml builds them from this checkout."""
    return str(tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def _render(template: str, settings: dict[str, str]) -> bytes:
    return Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(settings).encode()


def _archive(folder: str, files: Sequence[tuple[str, bytes, int]]) -> bytes:
    """Return a tar.gz with nothing in it that depends on when, where or by whom it is made."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, mode in _FOLDERS.items():
            entry = tarfile.TarInfo(folder + name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for name, content, mode in files:
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
