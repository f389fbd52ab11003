import shutil
from pathlib import Path

import pytest

from federation import versions as module
from federation.errors import FederationError
from federation.versions import INSTALL_SIMULATOR, check_versions, versions
from tests import REPOSITORY


def test_the_code_of_the_app_is_part_of_it_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = versions()["app"]
    for package in ("client", "federation"):
        shutil.copytree(REPOSITORY / package, tmp_path / package)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "federation" / "versions.py"))
    assert versions()["app"] == here
    (tmp_path / "client" / "app.py").write_text("changed = True\n")
    assert versions()["app"] != here


def test_a_patch_release_may_differ_another_release_or_other_code_may_not() -> None:
    ours = {"app": "abc", "flwr": "1.42.0", "lerobot": "0.6.1", "transformers": "5.5.4"}
    check_versions(ours | {"lerobot": "0.6.9", "flwr": "1.42.3"}, ours)
    with pytest.raises(FederationError, match=r"it has flwr 1\.41\.0, the server 1\.42\.0: install"):
        check_versions(ours | {"flwr": "1.41.0"}, ours)
    with pytest.raises(FederationError, match=r"it has lerobot 0\.7\.0, the server 0\.6\.1"):
        check_versions(ours | {"lerobot": "0.7.0"}, ours)
    with pytest.raises(FederationError, match="it runs app xyz, the server abc: install"):
        check_versions(ours | {"app": "xyz"}, ours)


def test_the_simulator_is_installed_in_the_versions_of_the_lock() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    pinned = INSTALL_SIMULATOR.removeprefix("pip install ").split()
    assert len(pinned) == 2
    assert all(f"\n{package} " in lock for package in pinned)
