"""The owner's rules against what a message asks, and against the time of the day."""

from pathlib import Path

from client.rules.hours import is_open, spell_hours
from client.rules.owner import NO_RULES, OwnerRules, RuleError, read_rules
from client.rules.privacy import check_privacy
from client.rules.traffic import check_traffic, is_used_up
from federation.errors import ConfigError
from federation.logs import get_logger
from federation.settings import PrivacyConfig

__all__ = ["check_day", "check_rules", "why_off"]

_log = get_logger("client.rules.check")


def check_rules(rules: OwnerRules, privacy: PrivacyConfig, scratch: Path) -> None:
    """Check, before anything is read or trained, that a run with `privacy` may be taken part in now.

    Raises:
        RuleError: a rule forbids it.
    """
    check_day(rules, scratch)
    check_privacy(rules, privacy, scratch)
    if rules != NO_RULES:  # a rule that did not get here is missed in this line
        _log.info("the run keeps this site's rules: %s", rules.spell())


def check_day(rules: OwnerRules, scratch: Path) -> None:
    """Raise a `RuleError` outside the owner's hours, or with the gigabytes of the day used up."""
    if not is_open(rules.hours, rules.now()):
        raise RuleError(f"{_spell_hours(rules)}: it is {rules.now():%H:%M} here; this site is back then")
    check_traffic(rules, scratch)


def why_off(file: Path, scratch: Path) -> str:
    """Return why a site with the rules in `file` is not to be connected at present; "" if it may be."""
    try:
        rules = read_rules(file)
        if not is_open(rules.hours, rules.now()):
            return _spell_hours(rules)
        if is_used_up(rules, scratch):
            return f"rule gigabytes-a-day = {rules.gigabytes_a_day:g} is used up for today"
    except (ConfigError, RuleError) as error:
        return str(error)
    return ""


def _spell_hours(rules: OwnerRules) -> str:
    return f"rule hours = {spell_hours(rules.hours)}"
