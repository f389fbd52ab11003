from pathlib import Path

import pytest

from client.base import locate_base
from client.recordings.sources import Source
from client.site import Site
from client.state.delivered_policy import note_delivered_policy
from federation.config import parse_run_config
from federation.errors import FederationError, RejectionCode

CONFIG = parse_run_config({"policy.pretrained": "run:demo-1"}, "tests")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "policy").mkdir()
    return Site("site-a", (Source(str(tmp_path / "data")),), tmp_path, 1.0)


def test_a_delivered_policy_is_started_from(site: Site) -> None:
    note_delivered_policy(site.policy_folder, "demo-1", 6, "0" * 64)
    assert locate_base(CONFIG, site).policy.pretrained == str(site.policy_folder)
    other = parse_run_config({"policy.pretrained": "lab/so101"}, "tests")
    assert locate_base(other, site) is other


@pytest.mark.parametrize("held", ["none", "demo-2"])
def test_a_site_without_it_says_which_it_has_and_what_helps(held: str, site: Site) -> None:
    if held != "none":
        note_delivered_policy(site.policy_folder, held, 6, "0" * 64)
    with pytest.raises(FederationError) as error:
        locate_base(CONFIG, site)
    assert error.value.code == RejectionCode.FROZEN_WEIGHTS
    assert f"this site has the policy of {held}; so100-server deliver demo-1 sends it" in str(error.value)
