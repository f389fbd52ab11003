"""How long a round waits for whom, and how many steps it asks of each site.

A site that did not answer when it was asked last makes up no quorum: of two or three sites one that is always
silent would else hold up every round until its deadline.

With `federation.partial_work` a slow site does fewer steps. Each is asked for as many as it gets done in the
time that the middle site takes for all of them, by the speed that its newest update reported (FedCompass, Li
et al., ICLR 2024). So a slow site is in every round, and no round waits for it but the one in which its speed
is found. The mean takes the steps out again (`WeightedMean`). All of it comes from the record, so a run that
was resumed asks for the same.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from federation.config import RunConfig
from federation.settings import TrainingConfig
from server.run.round_record import RoundRecord

__all__ = ["Pace", "asked_steps", "pace_of_round", "was_kept"]

_MIN_STEP_SECONDS = 1e-6
_ROUNDING = 1e-3  # of a step: the site that sets the time takes all of them
_PROBE_SHARE = 0.25  # of the steps, of a site whose speed nobody knows


@dataclass(frozen=True)
class _Speed:
    """What an update took."""

    step_seconds: float
    other_seconds: float  # of the round trip: transfers, set-up, Flower

    def seconds(self, steps: int) -> float:
        return self.other_seconds + steps * self.step_seconds


@dataclass(frozen=True)
class Pace:
    """What a round asks of its sites."""

    doubted: frozenset[str] = frozenset()  # makes up no quorum
    steps: Mapping[str, int] | None = None  # by name; None: all that the configuration names
    waited_for: frozenset[str] = frozenset()  # until the deadline: the round finds out how fast they are


def pace_of_round(names: Sequence[str], rounds: Sequence[RoundRecord], config: RunConfig) -> Pace:
    """Return what a round asks of the sites `names`, each of which it waits for once at most.

    Args:
        rounds: those that are complete, in their order.
    """
    answered = {name: name not in e.missing for e in rounds for name in (*e.clients, *e.rejected, *e.missing)}
    doubted = frozenset(name for name in names if not answered.get(name, True))
    if not config.federation.partial_work:
        return Pace(doubted)
    return Pace(doubted, asked_steps(names, rounds, config.training), frozenset(names) - answered.keys())


def asked_steps(
    names: Sequence[str], rounds: Sequence[RoundRecord], training: TrainingConfig
) -> dict[str, int]:
    """Return the steps that each of the sites `names` is asked for, from 1 to `training.local_steps`.

    Args:
        rounds: those that are complete, in their order.
    """
    most = training.local_steps
    probe = max(1, int(_PROBE_SHARE * most))
    speeds = {name: speed for name in names if (speed := _speed(name, rounds, training))}
    if not speeds:
        return dict.fromkeys(names, probe)
    seconds = statistics.median_low(speed.seconds(most) for speed in speeds.values())
    return {name: _fitting(speeds[name], seconds, most) if name in speeds else probe for name in names}


def _fitting(speed: _Speed, seconds: float, most: int) -> int:
    """Return how many steps fit into `seconds`: one at least."""
    steps = (seconds - speed.other_seconds) / speed.step_seconds
    return max(1, int(min(steps + _ROUNDING, most)))


def _speed(name: str, rounds: Sequence[RoundRecord], training: TrainingConfig) -> _Speed | None:
    """Return what the newest update of a site took that it did not only send again; None if there is none."""
    for entry in reversed(rounds):
        if (told := entry.clients.get(name)) and not was_kept(told):
            return _read(told, training)
    return None


def was_kept(told: Mapping[str, float]) -> bool:
    """Return whether a site sent an update that it had trained when it was asked before.

    It comes seconds after it was asked for, so its time tells nothing of how long training takes.

    Args:
        told: the metrics of the update.
    """
    return told["train_seconds"] > told["reply_seconds"]


def _read(told: Mapping[str, float], training: TrainingConfig) -> _Speed:
    steps = max(1, training.steps_taken(int(told["num_examples"])))
    trained = told["train_seconds"]
    return _Speed(max(trained / steps, _MIN_STEP_SECONDS), told["reply_seconds"] - trained)
