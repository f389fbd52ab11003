"""The operator's command line, `so100-server`."""

from collections.abc import Sequence

from federation.command_line import run
from server.cli.commands import app
from server.cli.results import results
from server.cli.services import services

__all__ = ["app", "main"]

app.add_typer(results)
app.add_typer(services)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, by default those of the process; return its exit code."""
    return run(app, "so100-server", arguments)
