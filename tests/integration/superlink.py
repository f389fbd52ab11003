"""Flower's `flower-superlink` with a database, also where the path of the environment holds a blank.

Flower 1.42 hands Alembic the folder of its migrations as a list that blanks divide, and so finds none of them
in such a place. Outside of containers, whose paths are fixed, only tests give SuperLink a database.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from alembic.config import Config
from flwr.supercore.state.alembic import utils
from flwr.superlink.cli import flower_superlink
from sqlalchemy import Engine

__all__ = ["with_database"]


def with_database(command: Sequence[str], database: Path) -> list[str]:
    """The command that starts the same SuperLink on `database`."""
    return [sys.executable, __file__, *command[1:], "--database", str(database)]


def _main() -> None:
    build = utils.build_alembic_config

    def build_with_lines(engine: Engine) -> Config:
        config = build(engine)
        config.set_main_option("path_separator", "newline")
        return config

    utils.build_alembic_config = build_with_lines
    flower_superlink()


if __name__ == "__main__":
    _main()
