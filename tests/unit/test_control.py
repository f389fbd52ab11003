from pathlib import Path

import pytest

from certs.issue import issue_all
from server.control import ControlError, active_run, write_connection


def test_an_unreachable_superlink_is_said_without_what_the_command_line_was_about_to_do(
    tmp_path: Path,
) -> None:
    issue_all(tmp_path / "certs", hosts=[], sites=[])
    write_connection(tmp_path, "127.0.0.1:9", tmp_path / "certs" / "superlink" / "ca.crt")
    with pytest.raises(ControlError, match=r"^flwr ls: Connection to the SuperLink is unavailable\."):
        active_run(tmp_path)
