import json
from pathlib import Path

import pytest

from server import control
from server.control import ControlError, active_run

UNREACHABLE = (
    "Using SuperLink: federation (127.0.0.1:8443)\nListing all runs...\n"
    "Connection to the SuperLink is unavailable. Please check your network connection."
)


def test_the_reason_is_said_without_what_the_command_line_was_about_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = json.dumps({"success": False, "error-message": UNREACHABLE})
    program = tmp_path / "flwr"
    program.write_text(f"#!/bin/sh\nprintf %s '{answer}'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(control.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ControlError) as raised:
        active_run(tmp_path)
    reason = "Connection to the SuperLink is unavailable. Please check your network connection."
    assert str(raised.value) == f"flwr ls: {reason}"
