"""What a site insists on whatever the run's configuration says, and its own count of what it released.

`client/app.py` calls this at the join, before training and before a reply leaves. The owner's rules stand in
the node configuration: `min-noise` is the least noise multiplier, `max-epsilon` the most that all releases in
this site's ledger may cost together. Only noise that the site adds itself can be insisted on (`privacy.mode =
"local"`): of the server's it has nothing but the operator's word.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from federation.errors import ConfigError, FederationError, RejectionCode
from federation.logs import get_logger
from federation.privacy_budget import NOT_COVERED, epsilon
from federation.release_ledger import LEDGER_FILE, Ledger, Release, append_release, read_ledger
from federation.settings import PrivacyConfig

__all__ = ["PrivacyRules", "check_privacy", "count_release", "parse_privacy_rules"]

_KEYS = ("min-noise", "max-epsilon")
_MAX_DELTA = 1e-5  # the operator must not make an epsilon small by a large delta
_log = get_logger("client.privacy_rules")


class PrivacyRuleError(FederationError):
    """What is asked of this site breaks a rule of its owner."""

    code = RejectionCode.PRIVACY


@dataclass(frozen=True)
class PrivacyRules:
    """The owner's rules; None: no such rule."""

    min_noise: float | None = None
    max_epsilon: float | None = None

    def check(self, privacy: PrivacyConfig, ledger: Ledger) -> None:
        """Raise a `PrivacyRuleError` if a run with these settings, or its next release, breaks a rule."""
        for key, value in zip(_KEYS, (self.min_noise, self.max_epsilon), strict=True):
            if value is not None and privacy.mode != "local":
                raise PrivacyRuleError(
                    f"node configuration: {key} = {value:g}: the run has privacy.mode = {privacy.mode!r}, "
                    "and this site takes part under its own noise only; set privacy.mode = 'local'"
                )
        if self.min_noise is not None and privacy.noise_multiplier < self.min_noise:
            raise PrivacyRuleError(
                f"node configuration: min-noise = {self.min_noise:g}: the run has privacy.noise_multiplier = "
                f"{privacy.noise_multiplier:g}; raise that to {self.min_noise:g} at least"
            )
        if self.max_epsilon is None:
            return
        counted = ledger.count(privacy.noise_multiplier)
        counted[privacy.noise_multiplier] += 1
        delta = min(privacy.delta, _MAX_DELTA)
        spent = epsilon(counted, delta)
        if spent > self.max_epsilon:
            raise PrivacyRuleError(
                f"node configuration: max-epsilon = {self.max_epsilon:g}: one more release with "
                f"privacy.noise_multiplier = {privacy.noise_multiplier:g} brings this site to {spent:.2f} at "
                f"delta {delta:g} over {counted.total()} releases; raise the noise, or leave the site out"
            )


def parse_privacy_rules(settings: Mapping[str, object]) -> PrivacyRules:
    """Return the rules in the node configuration `settings`; an empty text is no rule.

    Raises:
        ConfigError: a value is no number above 0, or a key is all but one of these: a rule that is misspelt
            must not be taken for none.
    """
    for key in settings:
        close = difflib.get_close_matches(key.lower().replace("_", "-"), _KEYS, n=1, cutoff=0.8)
        if close and key not in _KEYS:
            raise ConfigError(f"node configuration: unknown key {key!r}: did you mean {close[0]}?")
    return PrivacyRules(*(_number(key, settings.get(key, "")) for key in _KEYS))


def check_privacy(rules: PrivacyRules, privacy: PrivacyConfig, scratch: Path) -> None:
    """Raise a `PrivacyRuleError` before anything is trained or sent that the owner's rules forbid."""
    rules.check(privacy, read_ledger(scratch / LEDGER_FILE))
    if rules != PrivacyRules():  # a rule that did not get here is missed in this line
        _log.info("the run keeps this site's rules: %s", rules)


def count_release(
    rules: PrivacyRules, privacy: PrivacyConfig, scratch: Path, site: str, run: str, round_: int
) -> None:
    """Write down in this site's ledger that an update with its own noise is about to leave.

    Raises:
        FederationError: the owner's rules forbid it, or it cannot be written: the update must stay.
    """
    noise = privacy.noise_multiplier
    release = Release(run, round_, (site,), noise)
    ledger = append_release(scratch / LEDGER_FILE, release, check=lambda ledger: rules.check(privacy, ledger))
    own, all_runs = ledger.count(noise, run=run), ledger.count(noise)
    _log.info(
        "releases of this site: %d in this run, epsilon %.2f; %d in all runs, epsilon %.2f; at delta %g. %s",
        own.total(),
        epsilon(own, privacy.delta),
        all_runs.total(),
        epsilon(all_runs, privacy.delta),
        privacy.delta,
        NOT_COVERED,
    )


def _number(key: str, value: object) -> float | None:
    if isinstance(value, str) and not value.strip():
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"node configuration: {key} = {value!r}: must be a number above 0, or left out")
    return number
