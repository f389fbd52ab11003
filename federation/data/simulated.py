"""Which datasets were recorded on a simulated arm, and that they are not mixed with an arm's.

`server/simulation/recording.py` marks what it records, by a robot type of its own: LeRobot keeps that through
every edit and merges no two datasets of different types. A site says at the join which kind it holds, and
the server takes only the kind it evaluates on: the best round is chosen, and a bad one undone, by that.
"""

from collections.abc import Mapping
from typing import Any

from federation.errors import DatasetError

__all__ = ["SIMULATED_ROBOT", "UNMARKED_ROBOT", "check_one_kind", "is_simulated"]

SIMULATED_ROBOT = "so101_follower_simulated"
UNMARKED_ROBOT = "so101_follower"  # what sample data said of itself before it was marked
_VARIABLES = "SITE_A_DATA, SITE_B_DATA and EVALUATION_DATA (without containers: the folder in DATA)"


def is_simulated(info: Mapping[str, Any]) -> bool:
    """Whether `info`, the content of a dataset's meta/info.json, says that a simulator recorded it."""
    return info.get("robot_type") == SIMULATED_ROBOT


def check_one_kind(simulated: Mapping[str, bool], held_out: Mapping[str, bool]) -> None:
    """Raise a `DatasetError`, one line, unless all of these are simulated or none is.

    Args:
        simulated: of each site, by name, whether its dataset is.
        held_out: the same of each dataset that the server evaluates on.
    """
    named = [*simulated.items(), *((f"held-out dataset {name}", is_) for name, is_ in held_out.items())]
    recorded = [name for name, is_ in named if not is_]
    from_simulator = [name for name, is_ in named if is_]
    if recorded and from_simulator:
        raise DatasetError(
            f"recorded on an arm: {', '.join(recorded)}; on a simulated one: {', '.join(from_simulator)}; "
            f"they are never mixed: name your own data in all of {_VARIABLES}, or in none"
        )
