"""A site elsewhere: its owner makes a key, is invited and starts it; the operator shuts it out."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.container.cluster import REPOSITORY, Cluster, docker
from tests.synthetic import as_format_2, record_dataset

pytestmark = pytest.mark.container
_OVERRIDE = """
services:
  supernode:
    networks: [federation]
networks:
  federation: {{name: {network}, external: true}}
"""


def _operate(cluster: Cluster, *arguments: str) -> str:
    """Run `so100-server invite` or `revoke` as the operator of the test's cluster."""
    files = [str(cluster.folder / name) for name in ("docker-compose.yml", "docker/compose.offline.yml")]
    environment = os.environ | {
        "COMPOSE_FILE": os.pathsep.join(files),
        "COMPOSE_PROJECT_NAME": cluster.project,
        "COMPOSE_ENV_FILES": str(cluster.folder / ".env"),
    }
    command = [sys.executable, "-m", "server.cli", *arguments, "--certs", str(cluster.certs)]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def site(cluster: Cluster, data: Path, tmp_path: Path) -> Iterator[Path]:
    """What the owner of lab-b has with two recordings, a key and the invitation."""
    folder, recordings = tmp_path / "so100", tmp_path / "recordings"
    folder.mkdir()
    shutil.copytree(data / "site-a", recordings / "pick-cube")
    as_format_2(
        record_dataset(recordings / "kitchen", episodes=2, cameras=("phone", "hand"), seed=7, size=(48, 48))
    )
    image = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["supernode-a"][
        "image"
    ]
    command = ["docker", "run", "--rm", image, "tar", "-c", "-C", "/app/docker/site", "."]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    settings = (
        (folder / "env")
        .rename(folder / ".env")
        .read_text()
        .replace("DATASET=\n", f"DATASET={recordings}\n")
        .replace("RECORDINGS=\n", "RECORDINGS=/data/pick-cube,/data/kitchen\n")
        .replace("CAMERA_NAMES=\n", "CAMERA_NAMES=;top=phone,wrist=hand\n")
    )
    user = cluster.certs.joinpath("superlink").stat().st_uid or 10001
    settings = settings.replace("SITE_UID=1000", f"SITE_UID={user}").replace("MEMORY=16g", "MEMORY=4g")
    (folder / ".env").write_text(settings)
    for file in (folder, *folder.rglob("*")):
        shutil.chown(file, user)
    # The test's gateway is on a network of this machine, not on the internet.
    override = _OVERRIDE.format(network=f"{cluster.project}_sites")
    (folder / "docker-compose.override.yml").write_text(override)
    line = _compose(folder, "run", "--rm", "-T", "supernode", "key", "lab-b")
    said = _operate(cluster, "invite", "lab-b", "--key", line, "--superlink", "gateway:8443")
    assert "SuperLink: lab-b may join" in said
    sent = cluster.certs / "invited" / "lab-b" / "lab-b.invitation.json"
    shutil.copy(sent, folder / "site" / "invitation.json")
    shutil.chown(folder / "site" / "invitation.json", user)
    yield folder
    _compose(folder, "down", "--volumes")
    if (cluster.certs / "invited" / "lab-b").exists():
        _operate(cluster, "revoke", "lab-b")


def _compose(folder: Path, *arguments: str) -> str:
    return docker("compose", "--project-directory", str(folder), *arguments)


def _logs_with(folder: Path, text: str, seconds: float) -> str:
    give_up_at = time.monotonic() + seconds
    while text not in (logs := _compose(folder, "logs", "--no-log-prefix")):
        assert time.monotonic() < give_up_at, logs
        time.sleep(1)
    return logs


def test_a_site_elsewhere_checks_joins_and_is_shut_out(
    cluster: Cluster, finished_run: str, site: Path
) -> None:
    doctor = _compose(site, "run", "--rm", "-T", "supernode", "doctor")
    assert "this site is ready" in doctor
    assert "/data/kitchen" in doctor

    _compose(site, "up", "--detach")
    _logs_with(site, "SuperNode ID", 60)
    _operate(cluster, "revoke", "lab-b")
    assert not (cluster.certs / "invited" / "lab-b").exists()
    assert (site / "site" / "node.key").stat().st_mode & 0o777 == 0o600
    _compose(site, "restart")
    _logs_with(site, "code: 2004", 60)


def test_the_doctor_of_a_site_says_what_is_wrong(cluster: Cluster, site: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = (site / ".env").read_text().splitlines()
    settings = [f"DATASET={empty}" if line.startswith("DATASET=") else line for line in settings]
    (site / ".env").write_text("\n".join(settings) + "\n")
    with pytest.raises(AssertionError, match=r"meta/info\.json"):
        _compose(site, "run", "--rm", "-T", "supernode", "doctor")
