"""How the two commands end: one line on stderr for whatever a person can put right."""

from collections.abc import Callable

import pytest
import typer

from federation.command_line import make_app, run
from federation.errors import FederationError


def _app(work: Callable[[], int | None]) -> typer.Typer:
    app = make_app("Do two things.", ["tool work"])

    @app.command()
    def do(rounds: int = 1) -> int | None:
        """Do it."""
        return work()

    @app.command()
    def rest() -> None:
        """Do nothing."""

    return app


def _raise(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (130, 130)])
def test_the_exit_code_is_what_the_command_returns(returned: int | None, code: int) -> None:
    assert run(_app(lambda: returned), "tool", ["do"]) == code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            FederationError("run.toml: rounds = 0: must be at least 1"),
            "run.toml: rounds = 0: must be at least 1",
        ),
        (FileNotFoundError(2, "No such file or directory", "a b"), "a b: No such file or directory"),
        (OSError("odd"), "odd"),
    ],
)
def test_what_a_person_can_put_right_is_one_line_and_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(_app(lambda: _raise(error)), "tool", ["do"]) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["do", "--round=2"], "No such option '--round'. Did you mean '--rounds'?; tool do --help"),
        (["do", "--rounds=x"], "Invalid value for '--rounds': 'x' is not a valid integer; tool do --help"),
        (["do", "more"], "Got unexpected extra argument (more); tool do --help"),
        (["doo"], "No such command 'doo'. Did you mean 'do'?; tool --help"),
    ],
)
def test_a_wrong_command_line_names_what_is_wrong_and_where_to_read(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(_app(lambda: 0), "tool", arguments) == 2
    assert capsys.readouterr() == ("", f"error: {line} lists what there is\n")


def test_ctrl_c_is_130_and_a_fault_of_ours_a_traceback() -> None:
    assert run(_app(lambda: _raise(KeyboardInterrupt())), "tool", ["do"]) == 130
    with pytest.raises(ZeroDivisionError):
        run(_app(lambda: 1 // 0), "tool", ["do"])


def test_alone_it_shows_its_help_with_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_app(lambda: 0), "tool", []) == 0
    printed = capsys.readouterr().out
    for text in ("Usage: tool", "Do two things.", "Do nothing.", "Examples:", "tool work"):
        assert text in printed


def test_a_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TOOL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "tool re")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit, match="0"):
        run(_app(lambda: 0), "tool", [])
    assert capsys.readouterr().out.split() == ["rest"]
