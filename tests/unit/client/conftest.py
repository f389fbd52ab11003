"""A site's folder with a key, and the invitation for it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs.authority import issue_ca
from client.membership.folder import SiteFolder
from client.membership.key import print_key, read_own_key
from federation.invitation import Expectations, Invitation
from federation.site_key import new_key


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    print_key(tmp_path / "site")
    return SiteFolder((tmp_path / "site").resolve())


@pytest.fixture
def invitation(site: SiteFolder) -> Invitation:
    return Invitation(
        so100_invitation=1,
        site="lab-b",
        superlink="localhost:9",
        key=read_own_key(site).fingerprint,
        authority=issue_ca(new_key(), 100, datetime.now(UTC)).decode(),
        expects=Expectations(
            cameras="top,wrist", empty_cameras=0, joint_units="degrees", fps=15, policy="tiny"
        ),
    )


@pytest.fixture
def file(invitation: Invitation, tmp_path: Path) -> Path:
    """The invitation as it came by mail."""
    (tmp_path / "lab-b.invitation.json").write_bytes(invitation.write())
    return tmp_path / "lab-b.invitation.json"
