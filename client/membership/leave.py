"""`so100-site pause`, `resume` and `leave`: what the owner wants, also while a round is under way."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from client.membership.folder import SiteFolder
from client.membership.runner import LEFT, PAUSED, is_running
from client.membership.unit import unit_file
from federation.errors import FederationError
from federation.files import read_json_object
from federation.invitation import read_invitation
from federation.release_ledger import LEDGER_FILE

__all__ = ["leave_federation", "pause_site", "resume_site"]

_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.2


def pause_site(site: SiteFolder) -> None:
    """Take no part until `resume`, also after a reboot; a round under way goes on without this site.

    Raises:
        FederationError: the folder is no member's, or the SuperNode does not end.
    """
    site.require_member()
    site.wish.write_text(PAUSED, encoding="utf-8")
    _wait(site, lambda: not is_running(site) or read_json_object(site.state).get("state") == PAUSED)
    print("paused; so100-site resume takes part again")


def resume_site(site: SiteFolder) -> None:
    """Take part again.

    Raises:
        FederationError: the folder is no member's.
    """
    site.require_member()
    site.wish.unlink(missing_ok=True)
    print("takes part again" if is_running(site) else "not paused any more; so100-site join starts it")


def leave_federation(site: SiteFolder) -> None:
    """End the SuperNode and remove key, invitation and scratch; the count of privacy stays.

    Raises:
        FederationError: the folder is no member's, or the SuperNode does not end.
    """
    site.require_member()
    try:
        name = read_invitation(site.invitation).site
    except FederationError:
        name = "NAME"
    site.wish.write_text(LEFT, encoding="utf-8")
    _wait(site, lambda: not is_running(site))
    for path in site.scratch.glob("*"):
        if path.name != LEDGER_FILE:
            _remove(path)
    shutil.rmtree(site.path / "flower", ignore_errors=True)
    member = (site.invitation, site.authority, site.settings, site.recordings, site.state, site.refusal)
    for file in (*member, site.wish, site.key):  # without the key it is no member's, and cannot leave again
        file.unlink(missing_ok=True)
    unit = unit_file(name)
    if unit.exists():
        unit.unlink()
        print(f"removed {unit}; systemctl --user daemon-reload forgets it")
    print("left: key, invitation and scratch are gone, your recordings are as they were")
    print(f"the operator shuts the key out for good with so100-server revoke {name}")


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise FederationError(
            f"{error.filename or path} cannot be removed ({error.strerror}): remove it and leave again"
        ) from None


def _wait(site: SiteFolder, condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > give_up_at:
            raise FederationError(f"the site in {site.path} does not end; stop so100-site join")
        time.sleep(_POLL_SECONDS)
