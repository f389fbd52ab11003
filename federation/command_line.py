"""What `so100-server` and `so100-site` share: how their help looks, and how they end.

Bad input and whatever else a person can put right is one line on stderr and exit code 2; a traceback is a
fault of the program.
"""

import sys
from collections.abc import Sequence

import typer
from click import ClickException, UsageError

from federation.errors import FederationError, one_line, printable

__all__ = ["make_app", "run"]


def make_app(purpose: str, examples: Sequence[str]) -> typer.Typer:
    """Return an app without commands, whose help ends with `examples`."""
    return typer.Typer(
        help=purpose,
        epilog="\n\n".join(["Examples:", *examples]),
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        suggest_commands=False,  # click does, once
    )


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None) -> int:
    """Run the command that `arguments` (None: those of the process) name; return the exit code.

    That is what the command returns (None: 0), 2 after an error, 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = typer.main.get_command(app)
    try:
        return int(command.main(given or ["--help"], prog_name=program, standalone_mode=False) or 0)
    except ClickException as error:
        path = error.ctx.command_path if isinstance(error, UsageError) and error.ctx else program
        message = f"{one_line(error.format_message()).rstrip('.')}; {path} --help lists what there is"
    except FederationError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
    print(f"error: {printable(message)}", file=sys.stderr)
    return 2
