"""The owner's command line, `so100-site`."""

from collections.abc import Sequence

from client.cli.commands import app
from federation.command_line import run

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, by default those of the process; return its exit code."""
    return run(app, "so100-site", arguments)
