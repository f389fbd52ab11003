"""`so100-server rollback`: take a run back to one of its checkpoints; resuming it goes on from there.

Later checkpoints are moved to `checkpoints/set_aside`, later rounds leave the record and stay in its events.
"""

from pathlib import Path

from server.run.recorded import config_to_resume
from server.run.records import RunRecord

__all__ = ["roll_back"]


def roll_back(folder: Path, round_: int) -> None:
    """Take the run in `folder` back to the checkpoint of `round_`.

    Raises:
        FederationError: there is no such run or checkpoint, or the run is active.
    """
    config = config_to_resume(folder)
    record = RunRecord(folder.parent, folder.name, config)
    from server.run.checkpoints import set_checkpoints_back

    set_checkpoints_back(folder / "checkpoints", round_)
    record.roll_back(round_)
    print(
        f"{folder.name} is back at round {round_}; make resume RUN={folder.name} goes on from there, in "
        "containers docker compose up --detach run"
    )
