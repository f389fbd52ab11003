"""docker/env.sh reads .env as Compose does where Compose is not installed. Needs Compose and no engine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.container.cluster import REPOSITORY

pytestmark = pytest.mark.container

# What env.sh's head takes out is not tried: `$`, backslashes, quotes that do not hold all of the value.
_PLAIN = st.text("ab/.~ #=:\t", max_size=8)
_SINGLE = st.text('ab "#=', max_size=6).map("'{}'".format)
_DOUBLE = st.text("ab '#=", max_size=6).map('"{}"'.format)
_LINE = st.builds(
    lambda *parts: "".join(parts),
    st.sampled_from(["", " ", "export ", "#"]),
    st.sampled_from(["A", "B", "AB"]),
    st.sampled_from(["=", " = ", ": ", "= "]),
    st.one_of(_PLAIN, _SINGLE, _DOUBLE),
    st.sampled_from(["", " ", " # x", "\t"]),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docker").mkdir()
    shutil.copy(REPOSITORY / "docker" / "env.sh", tmp_path / "docker")
    none = tmp_path / "bin" / "docker"
    none.parent.mkdir()
    none.write_text("#!/bin/sh\nexit 1\n")
    none.chmod(0o755)
    return tmp_path


def _read(folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("A", "B", "AB")}
    command = [str(folder / "docker" / "env.sh"), "A"]
    return subprocess.run(
        command, env=environment | {"PATH": path}, capture_output=True, text=True, check=False
    )


@example(lines=["A=x", "A="], end="\n", last=False)
@given(lines=st.lists(_LINE, min_size=1, max_size=3), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_env_is_read_as_compose_reads_it(folder: Path, lines: list[str], end: str, last: bool) -> None:
    (folder / ".env").write_text(end.join(lines) + (end if last else ""), newline="")
    asked = _read(folder, os.environ["PATH"])
    if asked.returncode == 0:
        assert _read(folder, f"{folder / 'bin'}:{os.environ['PATH']}").stdout == asked.stdout
    else:
        assert asked.stderr.count("\n") == 1
        assert asked.stderr.startswith("error: failed to read ")
