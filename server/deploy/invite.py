"""`so100-server invite` and `revoke`: a site's key is registered or shut out; an invitation for its owner.

The private key never comes here: the site made it (`so100-site key`) and sent one public line. The
invitation holds no secret. SuperLink is called through the `run` container, because its Control API is on the
containers' own network; `control` names another way to it. Where SuperLink does not run yet, the `run`
service registers the key that was recorded.
"""

import subprocess
from pathlib import Path

from certs.authority import server_names
from certs.invited import keep_invitation, record_key, registered_key, retire_site
from certs.issue import RESTART, verify_server_certificate
from federation.addresses import parse_address
from federation.config import load_run_config
from federation.errors import CertificateError, one_line
from federation.invitation import Invitation, spell_authority
from federation.site_key import check_site_name, read_key_line
from server.deploy.expectations import describe_run
from server.deploy.register import change_registration
from server.deploy.run_container import run_container
from server.superlink.control import ControlError, SuperLink

__all__ = ["invite_site", "register_key", "revoke_key", "revoke_site", "write_invitation"]

_SUPERLINK_IN_COMPOSE = "superlink:8000"
_CA_IN_COMPOSE = "/run/secrets/ca.crt"
_REGISTER_SECONDS = 180


def invite_site(
    certs: Path, name: str, key: str, superlink: str, config: Path, control: str | None = None
) -> None:
    """Record and register the key of the site `name`, write its invitation and print what came of it.

    Args:
        certs: the folder written by `make certs`.
        key: what the site's owner sent, the line of `so100-site key`.
        superlink: "host:port" under which the site reaches SuperLink's gateway.
        config: of the run that the site is invited to.

    Raises:
        FederationError: a name, the key or the configuration is at fault, or the server's certificate is
            not valid for the host.
        OSError: the invitation cannot be written.
    """
    invitation, file = write_invitation(certs, name, key, superlink, config)
    print(f"made {file}; it holds no secret: send it to {name} by mail")
    print(f"it says what {config} expects: {invitation.expects.spell()}")
    print(f"key: {invitation.key} (that of the line that so100-site key printed)")
    print(f"authority: {spell_authority(invitation.authority)} (read it to them, by voice)")
    try:
        print(f"SuperLink: {register_key(certs, name, control)}")
    except ControlError as error:
        print(f"{name} cannot join yet: {error}")
        print("docker compose up registers the key, or run this again once SuperLink runs")


def write_invitation(
    certs: Path, name: str, key: str, superlink: str, config: Path
) -> tuple[Invitation, Path]:
    """Record the site's key and return its invitation and the file of it; errors as `invite_site`."""
    check_site_name(name)
    public = read_key_line(key)
    _require_valid_for(certs, superlink)
    invitation = Invitation(
        so100_invitation=1,
        site=name,
        superlink=superlink,
        key=public.fingerprint,
        authority=(certs / "superlink" / "ca.crt").read_text(encoding="ascii"),
        expects=describe_run(load_run_config(config, {})),
    )
    record_key(certs, name, public)
    return invitation, keep_invitation(certs, name, invitation.write())


def revoke_site(certs: Path, name: str, control: str | None = None) -> None:
    """Revoke the key of the site `name` for good, move what is known of it away, and print where it is.

    Raises:
        CertificateError: there is no such site.
        ControlError: SuperLink refuses or cannot be reached; the key stays where it is.
        OSError: the key cannot be moved.
    """
    # First SuperLink: a key that was moved away but not revoked could still connect.
    print(f"SuperLink: {revoke_key(certs, name, control)}")
    is_here = (certs / "sites" / name).is_dir()
    print(f"its key is in {retire_site(certs, name)}")
    if is_here:
        print(f"make certs makes {name} another, unless you take it out of configs/certs.toml")


def register_key(certs: Path, name: str, control: str | None) -> str:
    """Register the site's key at SuperLink; return the answer in words.

    Args:
        control: "host:port" of the Control API; None: through the `run` container.

    Raises:
        CertificateError: there is no such site.
        ControlError: SuperLink refuses or cannot be reached.
    """
    return _change_key(certs, name, control, revoke=False)


def revoke_key(certs: Path, name: str, control: str | None) -> str:
    """Revoke the site's key at SuperLink; otherwise as `register_key`."""
    return _change_key(certs, name, control, revoke=True)


def _change_key(certs: Path, name: str, control: str | None, *, revoke: bool) -> str:
    key = registered_key(certs, name).line
    if control:
        superlink = SuperLink(control, certs / "superlink" / "ca.crt")
        return change_registration(superlink, name, key, revoke=revoke)
    command = ["-T", "--entrypoint", "python", "run", "-m", "server.cli", "register"]
    command += ["--superlink", _SUPERLINK_IN_COMPOSE, "--ca", _CA_IN_COMPOSE]
    command += ["--name", name, "--key", key, *(["--revoke"] if revoke else [])]
    try:
        result = run_container(command, capture_output=True, text=True, timeout=_REGISTER_SECONDS)
    except subprocess.TimeoutExpired:
        raise ControlError(
            f"SuperLink did not answer within {_REGISTER_SECONDS} s; see docker compose ps"
        ) from None
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip().splitlines() or ["it said nothing"]
        raise ControlError(f"SuperLink was not told: {one_line(said[-1].removeprefix('error: '))}")
    return result.stdout.strip()


def _require_valid_for(certs: Path, superlink: str) -> None:
    host, _ = parse_address(superlink)
    verify_server_certificate(certs)
    certificate = certs / "superlink" / "server.crt"
    names = server_names(certificate)
    if host not in names:
        raise CertificateError(
            f"{certificate} is not valid for {host} but for {', '.join(names)}; "
            f"add it to hosts in configs/certs.toml and run make certs ROTATE=1 and {RESTART}"
        )
