"""What every command of so100-server and so100-site shows and refuses."""

from collections.abc import Callable, Sequence

import pytest
import typer
from typer.testing import CliRunner

__all__ = ["check_command"]


def check_command(
    app: typer.Typer,
    main: Callable[[Sequence[str]], int],
    program: str,
    example: str,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Assert that command `name` has a line of help and an example, and refuses unknown options."""
    shown = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert f"Example: {example}" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    assert "\x1b" not in shown.output
    assert main([name, "--no-such-option"]) == 2
    error = capsys.readouterr().err
    assert "No such option '--no-such-option'" in error
    assert f"{program} {name} --help" in error
    assert error.count("\n") == 1
