"""A site elsewhere: what its owner has and does, and the operator of a cluster for it."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import REPOSITORY
from tests.container.cluster import Cluster, docker, image_named
from tests.synthetic import as_format_2, record_dataset

__all__ = ["compose_site", "operate", "site_elsewhere", "wait_for_logs"]

_OVERRIDE = """
services:
  supernode:
    networks: [federation]
networks:
  federation: {{name: {network}, external: true}}
"""


def operate(cluster: Cluster, *arguments: str) -> str:
    """Run a command of `so100-server` as the operator of `cluster`; return what it printed."""
    environment = os.environ | {
        "COMPOSE_FILE": os.pathsep.join(map(str, cluster.files)),
        "COMPOSE_PROJECT_NAME": cluster.project,
        "COMPOSE_ENV_FILES": str(cluster.folder / ".env"),
    }
    command = [sys.executable, "-m", "server.cli", *arguments, "--certs", str(cluster.certs)]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextmanager
def site_elsewhere(cluster: Cluster, data: Path, place: Path) -> Iterator[Path]:
    """What the owner of lab-b has in `place` with two recordings, a key and the invitation."""
    folder, recordings = place / "so100", place / "recordings"
    folder.mkdir()
    shutil.copytree(data / "site-a", recordings / "pick-cube")
    as_format_2(
        record_dataset(recordings / "kitchen", episodes=2, cameras=("phone", "hand"), seed=7, size=(48, 48))
    )
    command = ["docker", "run", "--rm", image_named("client"), "tar", "-c", "-C", "/app/docker/site", "."]
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
    invited = cluster.certs / "invited" / "lab-b"
    try:
        line = compose_site(folder, "run", "--rm", "-T", "supernode", "key", "lab-b")
        said = operate(cluster, "invite", "lab-b", "--key", line, "--superlink", "gateway:8443")
        assert "SuperLink: lab-b may join" in said
        shutil.copy(invited / "lab-b.invitation.json", folder / "site" / "invitation.json")
        shutil.chown(folder / "site" / "invitation.json", user)
        yield folder
    finally:
        compose_site(folder, "down", "--volumes")
        if invited.exists():
            operate(cluster, "revoke", "lab-b")


def compose_site(folder: Path, *arguments: str) -> str:
    """Run `docker compose` in the folder of a site; see `docker`."""
    return docker("compose", "--project-directory", str(folder), *arguments)


def wait_for_logs(folder: Path, text: str, seconds: float) -> str:
    """Return what a site's containers have printed, once `text` is in it."""
    give_up_at = time.monotonic() + seconds
    while text not in (logs := compose_site(folder, "logs", "--no-log-prefix")):
        assert time.monotonic() < give_up_at, logs
        time.sleep(1)
    return logs
