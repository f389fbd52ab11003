import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server import control
from server.control import ControlError, RefusedError, active_run

UNREACHABLE = (
    "Using SuperLink: federation (127.0.0.1:8443)\nListing all runs...\n"
    "Connection to the SuperLink is unavailable. Please check your network connection."
)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], ControlError]:
    """Asks a command line that fails with the message it is given; returns the error."""

    def ask(message: str) -> ControlError:
        answer = json.dumps({"success": False, "error-message": message})
        program = tmp_path / "flwr"
        program.write_text(f"#!/bin/sh\nprintf %s '{answer}'\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setattr(control.sys, "executable", str(tmp_path / "python"))
        with pytest.raises(ControlError) as raised:
            active_run(tmp_path)
        return raised.value

    return ask


def test_the_reason_is_said_without_what_the_command_line_was_about_to_do(
    ask: Callable[[str], ControlError],
) -> None:
    reason = "Connection to the SuperLink is unavailable. Please check your network connection."
    assert str(ask(UNREACHABLE)) == f"flwr ls: {reason}"


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ("Listing all runs...\n[code: 15] Invalid run configuration.", True),
        ("[code: 9] You do not have permission to perform this action.", True),
        ("[code: 1005] LinkState is not initialized.", False),  # it is just starting
        ("[code: 14] Failed to create or initialize the run.", False),  # its disk may be full
        ("[code: 987654] Of a newer version.", False),
        ("Internal server error.", False),
        (UNREACHABLE, False),
    ],
)
def test_what_would_be_answered_again_is_told_from_what_passes(
    ask: Callable[[str], ControlError], message: str, refused: bool
) -> None:
    assert isinstance(ask(message), RefusedError) == refused
