"""`so100-site join`: from an invitation and a dataset to a SuperNode that takes part.

The doctor looks first. Its process then becomes another one that has not imported torch, and stays.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from client.doctor.main import examine_site
from client.membership.folder import SiteFolder
from client.membership.key import read_own_key
from client.membership.runner import END_IT, LEFT, is_running, keep_running, wish_of
from client.membership.supernode import PROGRAMS
from client.membership.unit import write_unit
from client.recordings.sources import Source, check_together, parse_sources, settle, write_list
from client.rules.owner import read_rules
from federation.errors import CertificateError, ConfigError, FederationError
from federation.invitation import Invitation, read_invitation, spell_authority
from federation.key_files import locked, make_folder, replace

__all__ = ["accept", "examine_member", "join_federation", "write_settings"]

_NO_DATASET = "no dataset yet: name its folder with --data"
# The environment variables of the command line whose values are kept among the site's settings.
_CHOICES = (
    "FEDERATION_DATASET",
    "FEDERATION_WEIGHTS",
    "FEDERATION_CAMERA_NAMES",
    "FEDERATION_SAMPLE_CACHE_GB",
)


def join_federation(
    folder: Path,
    invitation: Path | None,
    sources: Sequence[Source],
    options: Mapping[str, str | float],
    *,
    unchecked: bool = False,
    systemd: bool = False,
) -> int:
    """Accept `invitation`, keep what the owner chose, check this site and take part; return an exit code.

    Args:
        folder: the site's.
        invitation: None: the one that was accepted before.
        sources: the owner's recordings; none: those of the last time.
        options: of the node configuration. Without `sources` those of the last time stay where none is given
            here.
        unchecked: do not let the doctor look before.
        systemd: write a unit that joins, instead of joining.

    Raises:
        FederationError: the key, the invitation, an option or a rule is at fault, or the site runs already.
    """
    site = SiteFolder(folder.resolve())
    if not systemd and is_running(site):  # before the doctor has looked for a minute
        raise FederationError(f"the site in {site.path} runs already; {END_IT}")
    invited = accept(site, invitation)
    write_settings(site, invited, sources, options)
    if wish_of(site) == LEFT:  # and was kept from it
        site.wish.unlink()
    if unchecked:
        _introduce(site, invited)
    elif not examine_member(folder):
        print("not joined", file=sys.stderr)
        return 1
    if systemd:
        write_unit(site, invited.site)
        return 0
    if unchecked:
        return keep_running(site, invited.superlink)
    again = ["join", "--folder", str(site.path), "--unchecked"]
    environment = {name: value for name, value in os.environ.items() if name not in _CHOICES}
    os.execve(sys.executable, [sys.executable, str(PROGRAMS / "so100-site"), *again], environment)


def accept(site: SiteFolder, file: Path | None) -> Invitation:
    """Return the invitation in `file`, or the one accepted before (None), once it is kept in the folder.

    Raises:
        FederationError: it cannot be read, is for another key than this site's, or its owner, who is asked
            at a terminal, does not accept its authority.
    """
    own = read_own_key(site)
    if file is None and not site.invitation.exists():
        raise ConfigError(f"{site.invitation} is missing: name the file that the operator sent")
    invitation = read_invitation(file or site.invitation)
    if invitation.key != own.fingerprint:
        raise CertificateError(
            f"invitation {file or site.invitation}: is for the key {invitation.key}, and this site's is "
            f"{own.fingerprint}: send the operator the line of so100-site key again"
        )
    is_known = site.authority.exists() and site.authority.read_text("utf-8") == invitation.authority
    if not is_known and sys.stdin.isatty():
        _ask_about(invitation)
    with locked(site.path):
        replace(site.invitation, invitation.write())
        replace(site.authority, invitation.authority.encode())
    make_folder(site.scratch)
    return invitation


def _ask_about(invitation: Invitation) -> None:
    """Have the owner compare the digits of an authority that this site does not know yet.

    Raises:
        CertificateError: they are not the operator's.
    """
    print(f"the authority of {invitation.superlink} is {spell_authority(invitation.authority)}")
    try:
        answer = input("Does the operator read you the same digits, by voice? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CertificateError(
            "invitation: its authority is not accepted; if the digits differ, somebody may have replaced the "
            "file on its way: have the operator send it again on another"
        )


def _introduce(site: SiteFolder, invited: Invitation) -> None:
    """Print what a site is invited to, and on whose terms."""
    print(f"{invited.site} is invited to {invited.superlink}")
    print(f"its authority: {spell_authority(invited.authority)} (compare it with the operator's, by voice)")
    print(f"it expects: {invited.expects.spell()}")
    print(f"your rules: {read_rules(site.rules).spell()} ({site.rules})", flush=True)


def write_settings(
    site: SiteFolder,
    invitation: Invitation,
    sources: Sequence[Source],
    options: Mapping[str, str | float],
) -> None:
    """Keep the owner's choices: the list of recordings, and the node configuration, which names that.

    Without recordings those of the last time stay, and of the options those that are not given anew.

    Raises:
        ConfigError: an option is at fault, or no recording was ever named.
    """
    if not sources and not site.settings.exists():
        raise ConfigError(_NO_DATASET)
    settled = [settle(source) for source in sources]
    check_together(settled)
    kept = {} if sources else site.read_settings()
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name} {value}: must be a number")
    own = {"dataset": str(site.recordings), "scratch": str(site.scratch), "policy": str(site.policy)}
    settings = {**kept, "name": invitation.site, **own, **options}
    # A printable text as JSON is one of TOML's basic strings.
    lines = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items())
    with locked(site.path):
        if sources:
            replace(site.recordings, write_list(settled), private=True)
        replace(site.settings, lines.encode(), private=True)


def examine_member(folder: Path, sources: Sequence[Source] = (), full: bool = False) -> bool:
    """Say what the site is invited to, and let the doctor look; return whether it found no error.

    Args:
        sources: none: those of the settings.

    Raises:
        ConfigError: there is no recording, or what is in the folder cannot be read.
    """
    site = SiteFolder(folder.resolve())
    if not sources and not (settings := site.read_settings()):
        raise ConfigError(_NO_DATASET)
    sources = sources or parse_sources(settings)
    make_folder(site.scratch)
    if not site.invitation.exists():
        return examine_site(sources, full=full, scratch=site.scratch, key=site.key, rules=site.rules)
    invitation = accept(site, None)
    _introduce(site, invitation)
    return examine_site(
        sources,
        policy=invitation.expects.as_policy(),
        full=full,
        scratch=site.scratch,
        key=site.key,
        ca=site.authority,
        superlink=invitation.superlink,
        gpu_bytes=invitation.expects.gpu_bytes,
        rules=site.rules,
        round_bytes=invitation.expects.round_bytes,
        app=invitation.expects.app,
    )
