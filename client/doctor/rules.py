"""The doctor's look at the owner's rules."""

from pathlib import Path

from client.doctor.check import Check
from client.rules.owner import read_rules
from federation.errors import ConfigError

__all__ = ["check_owner_rules"]


def check_owner_rules(file: Path, round_bytes: int | None) -> list[Check]:
    """Look whether the rules in `file` can be read, and leave room for one round of `round_bytes` a day."""
    try:
        rules = read_rules(file)
    except ConfigError as error:
        return [Check("error", "rules", str(error))]
    limit = rules.gigabytes_a_day
    if limit is not None and round_bytes is not None and round_bytes > limit * 1e9:
        text = f"gigabytes-a-day = {limit:g}: one round takes {round_bytes / 1e9:.2f}; raise it in {file}"
        return [Check("error", "rules", text)]
    return [Check("ok", "rules", rules.spell())]
