"""`make rollback RUN=... ROUND=7`: take a run back to one of its checkpoints; resuming it goes on from there.

    python -m server.deploy.rollback outputs/<run> 7

Later checkpoints are moved to `checkpoints/set_aside`, later rounds leave the record and stay in its events.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from federation.errors import FederationError
from server.run.recorded import config_to_resume
from server.run.records import RunRecord

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2 with one line if there is no such run or checkpoint, or the run is active."""
    parser = argparse.ArgumentParser(description="Take a run back to the checkpoint of a round.")
    parser.add_argument("folder", type=Path, help="outputs/<run>")
    parser.add_argument("round", type=int)
    options = parser.parse_args(arguments)
    try:
        config = config_to_resume(options.folder)
        record = RunRecord(options.folder.parent, options.folder.name, config)
        from server.run.checkpoints import set_checkpoints_back

        set_checkpoints_back(options.folder / "checkpoints", options.round)
        record.roll_back(options.round)
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    name = options.folder.name
    print(f"{name} is back at round {options.round}; make resume RUN={name} goes on from there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
