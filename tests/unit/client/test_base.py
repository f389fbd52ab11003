from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app
from client.base import locate_base
from client.recordings.sources import Source
from client.site import Site
from client.state.contact import read_contact
from client.state.delivered_policy import note_delivered_policy
from federation.config import flatten, parse_run_config
from federation.errors import FederationError, RejectionCode
from federation.messages import REASON

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


def test_a_run_that_goes_on_after_it_was_delivered_starts_from_itself(site: Site) -> None:
    note_delivered_policy(site.policy_folder, "demo-2", 6, "0" * 64)
    settings = {"run.name": "demo-2", "policy.pretrained": "run:demo-1"}
    assert locate_base(parse_run_config(settings, "tests"), site).policy.pretrained == str(site.policy_folder)
    with pytest.raises(FederationError, match="this site has the policy of demo-2"):
        locate_base(parse_run_config(settings | {"policy.adapter": "lora"}, "tests"), site)


@pytest.mark.parametrize("held", ["none", "demo-2"])
def test_a_site_without_it_says_which_it_has_and_what_helps(held: str, site: Site) -> None:
    if held != "none":
        note_delivered_policy(site.policy_folder, held, 6, "0" * 64)
    with pytest.raises(FederationError) as error:
        locate_base(CONFIG, site)
    assert error.value.code == RejectionCode.FROZEN_WEIGHTS
    assert f"this site has the policy of {held}; so100-server deliver demo-1 sends it" in str(error.value)


def test_a_site_without_it_still_hears_why_it_takes_no_part(site: Site) -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower stamps a message with them
    content = RecordDict({REASON: ConfigRecord({"text": "until round 7"})})
    node = {"name": "site-a", "dataset": "/data", "scratch": str(site.scratch)}
    context: Any = SimpleNamespace(node_config=node, run_config=flatten(CONFIG))
    reply = app._answer(Message(content, 1, "query"), context, app._shut_out)
    assert not reply.has_error()
    assert read_contact(site.scratch)["verdict"] == "takes nothing from this site until round 7"
