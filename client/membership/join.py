"""`so100-site join`: from an invitation and a dataset to a SuperNode that takes part.

The doctor looks first. Its process then becomes another one that has not imported torch, and stays.
"""

import json
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from client.doctor.main import examine_site
from client.membership.folder import SiteFolder
from client.membership.key import read_own_key
from client.membership.runner import keep_running
from client.membership.supernode import PROGRAMS
from client.membership.unit import write_unit
from client.privacy_rules import parse_privacy_rules
from federation.data.cameras import parse_camera_names
from federation.errors import CertificateError, ConfigError
from federation.invitation import Invitation, read_invitation, spell_authority
from federation.key_files import locked, make_folder, replace

__all__ = ["accept", "examine_member", "join_federation", "write_settings"]


def join_federation(
    folder: Path,
    invitation: Path | None,
    dataset: Path | None,
    options: Mapping[str, str],
    *,
    unchecked: bool = False,
    systemd: bool = False,
) -> int:
    """Accept `invitation`, keep what the owner chose, check this site and take part; return an exit code.

    Args:
        folder: the site's.
        invitation: None: the one that was accepted before.
        dataset: None: with `options`, those of the last time.
        options: `cameras`, `min-noise` and `max-epsilon` as the node configuration has them.
        unchecked: do not let the doctor look before.
        systemd: write a unit that joins, instead of joining.

    Raises:
        FederationError: the key, the invitation or an option is at fault.
    """
    site = SiteFolder(folder.resolve())
    invited = accept(site, invitation)
    write_settings(site, invited, dataset, options)
    print(f"{invited.site} is invited to {invited.superlink}")
    print(f"its authority: {spell_authority(invited.authority)} (compare it with the operator's, by voice)")
    print(f"it expects: {invited.expects.spell()}", flush=True)
    if not unchecked and not examine_member(folder, dataset):
        print("not joined", file=sys.stderr)
        return 1
    if systemd:
        write_unit(site, invited.site)
        return 0
    if unchecked:
        return keep_running(site, invited.superlink)
    again = ["join", "--folder", str(site.path), "--unchecked"]
    os.execv(sys.executable, [sys.executable, str(PROGRAMS / "so100-site"), *again])


def accept(site: SiteFolder, file: Path | None) -> Invitation:
    """Return the invitation in `file`, or the one accepted before (None), once it is kept in the folder.

    Raises:
        FederationError: it cannot be read, or is for another key than this site's.
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
    with locked(site.path):
        replace(site.invitation, invitation.write())
        replace(site.authority, invitation.authority.encode())
    make_folder(site.scratch)
    return invitation


def write_settings(
    site: SiteFolder, invitation: Invitation, dataset: Path | None, options: Mapping[str, str]
) -> None:
    """Keep the owner's choices as the node configuration; without a dataset those of the last time stay.

    Raises:
        ConfigError: an option is at fault, or no dataset was ever named.
    """
    if dataset is None:
        if not site.settings.exists():
            raise ConfigError("no dataset yet: name its folder with --data")
        return
    if not str(dataset).isprintable():
        raise ConfigError(f"--data {str(dataset)!r}: the path holds a control character; rename the folder")
    if not (dataset.expanduser() / "meta").is_dir():
        raise ConfigError(
            f"--data {dataset}: no dataset there; name the folder of one that holds data, meta and videos"
        )
    parse_camera_names(options.get("cameras", ""))
    parse_privacy_rules(options)
    settings = {
        "name": invitation.site,
        "dataset": str(dataset.expanduser().resolve()),
        "scratch": str(site.scratch),
        "policy": str(site.policy),
        **options,
    }
    # A printable text as JSON is one of TOML's basic strings.
    lines = "".join(f"{key} = {json.dumps(text, ensure_ascii=False)}\n" for key, text in settings.items())
    with locked(site.path):
        replace(site.settings, lines.encode(), private=True)


def examine_member(folder: Path, dataset: Path | None, camera_names: str = "", full: bool = False) -> bool:
    """Let the doctor look at all that the folder of a site names; return whether it found no error.

    Args:
        dataset: None: that of the settings.
        camera_names: "": those of the settings.

    Raises:
        ConfigError: there is no dataset, or what is in the folder cannot be read.
    """
    site = SiteFolder(folder.resolve())
    make_folder(site.scratch)
    kept = tomllib.loads(site.settings.read_text(encoding="utf-8")) if site.settings.exists() else {}
    where = dataset or (Path(kept["dataset"]) if kept else None)
    if where is None:
        raise ConfigError("no dataset yet: name its folder with --dataset")
    names = camera_names or kept.get("cameras", "")
    if not site.invitation.exists():
        return examine_site(where, camera_names=names, full=full, scratch=site.scratch, key=site.key)
    invitation = accept(site, None)
    return examine_site(
        where,
        policy=invitation.expects.as_policy(),
        camera_names=names,
        full=full,
        scratch=site.scratch,
        key=site.key,
        ca=site.authority,
        superlink=invitation.superlink,
        gpu_bytes=invitation.expects.gpu_bytes,
    )
