"""`so100-site key`: the key is made at the site and stays there; its public half is one line."""

import sys
from pathlib import Path

from client.membership.folder import SiteFolder
from federation.errors import CertificateError, FederationError
from federation.invitation import read_invitation
from federation.key_files import locked, replace, write_new
from federation.site_key import (
    PublicKey,
    check_site_name,
    load_site_key,
    new_key,
    public_key,
    site_private_key,
)

__all__ = ["print_key", "read_own_key"]


def print_key(folder: Path, name: str = "", *, new: bool = False) -> None:
    """Make the key of the site in `folder` and print its public line, or print that of the key it has.

    Args:
        name: what the site is to be called; "": as it is invited already, or as the operator likes.
        new: put another key in the place of the one that is there, of which nothing is kept. What it was
            invited with goes too: the operator has to revoke the old one and invite the new one.

    Raises:
        CertificateError: the name or the key that is there is at fault.
        OSError: `folder` cannot be written.
    """
    site = SiteFolder(folder)
    if name:
        check_site_name(name)
    with locked(folder):
        name = name or _invited_as(site)
        if new:
            replace(site.key, site_private_key(new_key()), private=True)
            for file in (site.invitation, site.authority):
                file.unlink(missing_ok=True)
        elif not site.key.exists():
            write_new(site.key, site_private_key(new_key()), private=True)
        else:
            print(f"{site.key} was made before and stays; --new makes another", file=sys.stderr)
    print(read_own_key(site).spell(name))


def read_own_key(site: SiteFolder) -> PublicKey:
    """Return the public half of the site's key.

    Raises:
        CertificateError: there is none, or it cannot be read.
    """
    if not site.key.exists():
        raise CertificateError(
            f"{site.key} is missing: so100-site key makes it and prints the line that the operator needs"
        )
    return public_key(load_site_key(site.key, "so100-site key --new makes another"))


def _invited_as(site: SiteFolder) -> str:
    try:
        return read_invitation(site.invitation).site
    except FederationError:
        return ""
