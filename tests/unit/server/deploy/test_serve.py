import os
import sys
from pathlib import Path

import pytest

from federation.errors import PolicyError
from server.deploy.serve import serve_policy


def test_lerobots_server_starts_inside_the_folder_and_listens_to_this_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, list[str], Path]] = []
    monkeypatch.setattr(os, "execv", lambda program, line: started.append((program, line, Path.cwd())))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my policy").mkdir()
    serve_policy(Path("my policy"), 9000)
    ((program, line, folder),) = started
    assert (program, folder) == (sys.executable, tmp_path / "my policy")
    assert line[1:] == ["-m", "lerobot.async_inference.policy_server", "--host=127.0.0.1", "--port=9000"]


def test_a_run_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="nothing: no such folder; name a run that has finished"):
        serve_policy(tmp_path / "nothing", 9000)
