"""The owner's rules of privacy, and this site's own count of what it released.

`min-noise` is the least noise multiplier, `max-epsilon` the most that all releases in this site's ledger may
cost together. Only noise that the site adds itself can be insisted on (`privacy.mode = "local"`): of the
server's it has nothing but the operator's word. Checked at the join, before training and before a reply
leaves.
"""

from pathlib import Path

from client.rules.owner import OwnerRules, RuleError
from federation.logs import get_logger
from federation.privacy_budget import NOT_COVERED, epsilon
from federation.release_ledger import LEDGER_FILE, Ledger, Release, append_release, read_ledger
from federation.settings import PrivacyConfig

__all__ = ["check_budget", "check_noise", "check_privacy", "count_release"]

_MAX_DELTA = 1e-5  # the operator must not make an epsilon small by a large delta
_log = get_logger("client.rules.privacy")


def check_privacy(rules: OwnerRules, privacy: PrivacyConfig, scratch: Path) -> None:
    """Raise a `RuleError` before anything is trained or sent that the owner's rules of privacy forbid."""
    check_budget(rules, privacy, read_ledger(scratch / LEDGER_FILE))


def check_noise(rules: OwnerRules, privacy: PrivacyConfig) -> None:
    """Raise a `RuleError` if a run with these settings adds less noise than a rule asks for."""
    for key, value in {"min-noise": rules.min_noise, "max-epsilon": rules.max_epsilon}.items():
        if value is not None and privacy.mode != "local":
            raise RuleError(
                f"rule {key} = {value:g}: the run has privacy.mode = {privacy.mode!r}, "
                "and this site takes part under its own noise only; set privacy.mode = 'local'"
            )
    if rules.min_noise is not None and privacy.noise_multiplier < rules.min_noise:
        raise RuleError(
            f"rule min-noise = {rules.min_noise:g}: the run has privacy.noise_multiplier = "
            f"{privacy.noise_multiplier:g}; raise that to {rules.min_noise:g} at least"
        )


def check_budget(rules: OwnerRules, privacy: PrivacyConfig, ledger: Ledger) -> None:
    """Raise a `RuleError` if a run with these settings, or its next release, breaks a rule."""
    check_noise(rules, privacy)
    if rules.max_epsilon is None:
        return
    counted = ledger.count(privacy.noise_multiplier)
    counted[privacy.noise_multiplier] += 1
    delta = min(privacy.delta, _MAX_DELTA)
    spent = epsilon(counted, delta)
    if spent > rules.max_epsilon:
        raise RuleError(
            f"rule max-epsilon = {rules.max_epsilon:g}: one more release with "
            f"privacy.noise_multiplier = {privacy.noise_multiplier:g} brings this site to {spent:.2f} at "
            f"delta {delta:g} over {counted.total()} releases; raise the noise, or leave the site out"
        )


def count_release(
    rules: OwnerRules, privacy: PrivacyConfig, scratch: Path, site: str, run: str, round_: int
) -> None:
    """Write down in this site's ledger that an update with its own noise is about to leave.

    Raises:
        FederationError: the owner's rules forbid it, or it cannot be written: the update must stay.
    """
    noise = privacy.noise_multiplier
    release = Release(run, round_, (site,), noise)
    ledger = append_release(
        scratch / LEDGER_FILE, release, check=lambda ledger: check_budget(rules, privacy, ledger)
    )
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
