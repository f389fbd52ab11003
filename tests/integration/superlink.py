"""Our `flower-superlink` with a database, also where the path of the environment holds a blank.

Flower 1.42 hands Alembic the folder of its migrations as a list that blanks divide, and so finds none of them
in such a place. Outside of containers, whose paths are fixed, only tests give SuperLink a database.

A test can have it killed at a moment that no signal from outside hits: see `kill_before_answer`.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alembic.config import Config
from flwr.supercore.state.alembic import utils
from flwr.superlink.servicer.fleet import fleet_handlers
from sqlalchemy import Engine

from server.superlink.wrapper import main

__all__ = ["kill_before_answer", "with_database"]


def with_database(command: Sequence[str], database: Path) -> list[str]:
    """The command that starts the same SuperLink on `database`."""
    return [sys.executable, __file__, *command[1:], "--database", str(database)]


def kill_before_answer(database: Path, request: str) -> None:
    """Have the SuperLink on `database` killed once it has done what a SuperNode asks, before it says so.

    Args:
        request: `pull_messages`, one that brings a message, or `push_object`.
    """
    _killing_file(database).write_text(request)


def _killing_file(database: Path) -> Path:
    return database.with_suffix(".kill")


def _watch(request: str, file: Path) -> None:
    do = getattr(fleet_handlers, request)

    def do_and_be_killed(*arguments: Any, **others: Any) -> Any:
        answer = do(*arguments, **others)
        is_empty = request == "pull_messages" and not answer.messages_list
        if not is_empty and file.exists() and file.read_text() == request:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(fleet_handlers, request, do_and_be_killed)


def _main() -> None:
    database = Path(sys.argv[sys.argv.index("--database") + 1])
    for request in ("pull_messages", "push_object"):
        _watch(request, _killing_file(database))
    build = utils.build_alembic_config

    def build_with_lines(engine: Engine) -> Config:
        config = build(engine)
        config.set_main_option("path_separator", "newline")
        return config

    utils.build_alembic_config = build_with_lines
    main()


if __name__ == "__main__":
    _main()
