"""`so100-site status`: what goes on at this site, from what its own processes wrote down."""

import time
from pathlib import Path
from typing import Any

from client.membership.folder import SiteFolder
from client.membership.runner import is_running, wish_of
from client.rules.owner import OwnerRules, read_rules
from client.rules.traffic import read_traffic
from client.state.contact import read_contact
from client.state.delivered_policy import read_delivered_policy
from client.state.progress import PROGRESS_FILE
from client.supernode.refusal import read_refusal
from federation.errors import FederationError
from federation.files import read_json_object
from federation.invitation import read_invitation

__all__ = ["print_status"]


def print_status(site: SiteFolder) -> None:
    """Print one line each: site, SuperNode, last contact, last update, round, bytes of today, rules, policy.

    Raises:
        ConfigError: the folder holds no site, or its rules cannot be read.
    """
    site.require_member()
    contact, rules = read_contact(site.scratch), read_rules(site.rules)
    lines = {
        "site": _site(site),
        "SuperNode": _supernode(site),
        "server": _server(contact),
        "update": str(contact.get("update") or "nothing known of the last one"),
        "round": _round(site.scratch / PROGRESS_FILE),
        "today": _today(rules, site.scratch),
        "rules": rules.spell(),
        "policy": _policy(site.policy),
    }
    for what, text in lines.items():
        print(f"{what:<10} {text}")


def _site(site: SiteFolder) -> str:
    try:
        invitation = read_invitation(site.invitation)
    except FederationError:
        return "has a key and no invitation yet; send the operator the line of so100-site key"
    return f"{invitation.site} at {invitation.superlink}"


def _supernode(site: SiteFolder) -> str:
    wish = wish_of(site)
    if not is_running(site):
        return f"off{', paused' if wish else ''}; so100-site join starts it"
    state = read_json_object(site.state)
    reason = read_refusal(site.refusal) or state.get("why")
    why = f" ({reason})" if reason else ""
    return f"{state.get('state', 'starting')} since {state.get('since', '?')}{why}"


def _server(contact: dict[str, Any]) -> str:
    if not contact:
        return "no run has asked this site for anything yet"
    return f"{contact.get('verdict')}; last heard {contact.get('at')}, run {contact.get('run') or '-'}"


def _round(file: Path) -> str:
    progress = read_json_object(file)
    if not progress:
        return "none trained yet"
    age = time.time() - file.stat().st_mtime
    steps = f"step {progress.get('step')} of {progress.get('local_steps')}"
    return f"{progress.get('round')}, {steps}, policy loss {progress.get('policy_loss')}, {age:.0f} s ago"


def _today(rules: OwnerRules, scratch: Path) -> str:
    try:
        traffic = read_traffic(rules, scratch)
    except FederationError as error:
        return str(error)
    down, up = traffic.received / 1e6, traffic.sent / 1e6
    return f"{down:.1f} MB received, {up:.1f} MB sent"


def _policy(folder: Path) -> str:
    facts = read_delivered_policy(folder)
    if not facts:
        return "none yet; it comes at the end of a run"
    return f"round {facts.get('round')} of {facts.get('run')}, in {folder}, since {facts.get('at')}"
