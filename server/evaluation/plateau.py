"""Whether a run still learns: early stopping by patience (Prechelt, "Early Stopping - But When?", 1998)."""

import math
from collections.abc import Iterable

from federation.settings import EvaluationConfig

__all__ = ["describe_plateau"]


def describe_plateau(policy_losses: Iterable[float], config: EvaluationConfig) -> str:
    """Return why a run ends after these evaluations, "" if it goes on.

    An evaluation gains if its loss is below that of the last one that gained, by `min_gain` of that; so small
    gains count once they add up. `patience` evaluations in a row without gain are a plateau.

    Args:
        policy_losses: of all evaluations in their order, the one before training first. NaN and infinity gain
            nothing.
    """
    gained, waited = math.inf, 0
    for loss in policy_losses:
        if loss < gained * (1 - config.min_gain) or math.isinf(gained):
            gained, waited = loss, 0
        else:
            waited += 1
    if not 0 < config.patience <= waited:
        return ""
    which = "the last evaluation" if waited == 1 else f"{waited} evaluations in a row"
    return f"a plateau: {which} gained less than {config.min_gain:.1%} on a policy loss of {gained:.4f}"
