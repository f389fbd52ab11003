"""What a site's owner insists on: `rules.toml`, which is stronger than any run's configuration.

Every message is checked against it before anything is trained or sent, so a change counts from the next one
on. A file that cannot be read is never taken for no rules: the site takes no part until it can be.
"""

import contextlib
import difflib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from tomllib import loads
from typing import Any
from zoneinfo import ZoneInfo

from client.rules.hours import Hours, parse_hours, spell_hours
from federation.errors import ConfigError, FederationError, RejectionCode, one_line

__all__ = ["NO_RULES", "RULES_VARIABLE", "TEMPLATE", "OwnerRules", "RuleError", "read_rules", "rules_file"]

RULES_VARIABLE = "FEDERATION_RULES"  # names the file to every process of a site
_DIGEST_CHARACTERS = 64
TEMPLATE = """\
# The rules of this site. They are stronger than any run: one that breaks a rule is denied here, by name,
# before anything is trained or sent. Take the # away from those that you want; a change counts at once.

# The least noise multiplier of a run, and the most epsilon that all runs together may spend of this site.
# With either it takes part under privacy.mode = "local" only: it cannot verify noise that the server adds.
#min-noise = 1.0
#max-epsilon = 8.0

# When this site may be connected, in the time of this machine or of a place. Over midnight is fine.
#hours = ["20:00-07:00", "12:30-13:30"]
#time-zone = "Europe/Berlin"

# The most that this site receives and sends in a day, in gigabytes of 10^9 bytes. Then it is off until
# midnight.
#gigabytes-a-day = 5

# Other apps than the installed one that may run here: the SHA-256 of each, once you have read it. The log
# of a refused one says what to write. "any" lets the operator run any code on your data, unseen.
#allow-app = []
"""


class RuleError(FederationError):
    """What is asked of this site breaks a rule of its owner."""

    code = RejectionCode.OWNER_RULE


@dataclass(frozen=True)
class OwnerRules:
    """The owner's rules; None or empty: no such rule."""

    min_noise: float | None = None
    max_epsilon: float | None = None
    hours: Hours = ()
    time_zone: ZoneInfo | None = None  # None: this machine's
    gigabytes_a_day: float | None = None
    allow_app: tuple[str, ...] = ()  # SHA-256 of app bundles, or "any"

    def now(self) -> datetime:
        """Return the owner's time."""
        return datetime.now(self.time_zone)

    def spell(self) -> str:
        """Return the rules as they are written in the file, on one line."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        texts = {
            "hours": spell_hours(self.hours),
            "allow_app": ", ".join(self.allow_app),
        }
        lines = [
            f"{name.replace('_', '-')} = {texts.get(name) or _format(value)}"
            for name, value in given.items()
            if value not in (None, ())
        ]
        return "; ".join(lines) or "none"


NO_RULES = OwnerRules()


def _format(value: object) -> str:
    """Return a number without needless digits, and anything else as it prints."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def rules_file() -> Path | None:
    """Return the file that this site's processes are told of; None if they are told of none."""
    name = os.environ.get(RULES_VARIABLE, "")
    return Path(name) if name else None


def read_rules(file: Path | None) -> OwnerRules:
    """Return the rules in `file`; none if there is no such file.

    Raises:
        ConfigError: it cannot be read, names an unknown rule, or a value is at fault.
    """
    try:
        content = loads(file.read_text(encoding="utf-8-sig")) if file else {}
    except FileNotFoundError:
        return NO_RULES
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: the rules cannot be read ({one_line(error)}); correct the file") from None
    rules: dict[str, Any] = {}
    for key, value in content.items():
        if key not in _READERS:
            close = difflib.get_close_matches(key.lower().replace("_", "-"), _READERS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(_READERS)}"
            raise ConfigError(f"{file}: unknown rule {one_line(repr(key))}: {hint}")
        try:
            rules[key.replace("-", "_")] = _READERS[key](value)
        except ValueError as error:
            raise ConfigError(f"{file}: {key} = {one_line(repr(value))}: {error}") from None
    return OwnerRules(**rules)


def _read_amount(value: object) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # TOML's whole numbers have no bound
            number = float(value)
    if not 0 < number < math.inf:
        raise ValueError("must be a number above 0; take the line out for no such rule")
    return number


def _read_hours(value: object) -> Hours:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError('must be hours such as "20:00-07:00", or a list of such')
    return parse_hours(texts)


def _read_time_zone(value: object) -> ZoneInfo:
    try:
        return ZoneInfo(value)  # type: ignore[arg-type]
    except Exception:  # it raises KeyError, ValueError, TypeError, OSError and its own
        raise ValueError('must be a place of the time zone database, such as "Europe/Berlin"') from None


def _read_apps(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("must be a list of SHA-256 digests")
    apps = tuple(text.strip().lower() for text in texts)
    for app in apps:
        if app != "any" and (len(app) != _DIGEST_CHARACTERS or set(app) - set("0123456789abcdef")):
            raise ValueError(f"{one_line(app)!r} is no SHA-256 of {_DIGEST_CHARACTERS} hexadecimal digits")
    return apps


_READERS: dict[str, Callable[[object], object]] = {
    "min-noise": _read_amount,
    "max-epsilon": _read_amount,
    "hours": _read_hours,
    "time-zone": _read_time_zone,
    "gigabytes-a-day": _read_amount,
    "allow-app": _read_apps,
}
