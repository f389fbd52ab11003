"""What is in the images, and what is not."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.cluster import IMAGES, REPOSITORY, docker, image_named

pytestmark = pytest.mark.container


def _as_root(image: str, script: str) -> list[str]:
    return docker(
        "run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", script, timeout=300
    ).splitlines()


@pytest.mark.parametrize("image", IMAGES)
def test_no_key_is_in_an_image(images, image: str) -> None:
    search = (
        r'grep -rIlE --exclude-dir=proc --exclude-dir=sys -e "-----BEGIN [A-Z ]*PRIVATE KEY-----" / || true'
    )
    # Crypto libraries carry the marker in their code, and the keys of their own published tests.
    found = [file for file in _as_root(image, search) if "/site-packages/" not in file]
    assert found == []
    assert _as_root(image, "find / -xdev -name '*.key' -o -xdev -name '*.secret' -o -xdev -name '.env'") == []
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert not re.search(r"PRIVATE KEY|secret|password|_token\b", history, re.IGNORECASE)


@pytest.mark.parametrize("name", ["server", "client"])
def test_only_source_files_are_in_the_app(images, name: str) -> None:
    files = _as_root(image_named(name), "find /app -type f")
    others = {
        file
        for file in files
        if not file.endswith(".py")
        and not file.startswith(("/app/client/supernode/bin/", "/app/server/superlink/bin/"))
    }
    # What a site's owner takes out of the image; an `.env` in it would be somebody's.
    site = {f"/app/docker/site/{file.name}" for file in (REPOSITORY / "docker/site").iterdir()}
    assert others == {"/app/pyproject.toml"} | (site if name == "client" else set())


def test_a_site_holds_its_part_of_the_servers_app_and_what_is_large_is_shared(images) -> None:
    apps, layers = [], []
    for name in ("server", "client"):
        image = image_named(name)
        apps.append(_as_root(image, "cd /app && find . -type f | sort | xargs sha256sum"))
        layers.append(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
    at_site = [line for line in apps[1] if "./docker/site/" not in line]
    assert at_site == [line for line in apps[0] if "./server/" not in line]
    shared = [layer for layer in layers[0].split(",") if layer in layers[1].split(",")]
    assert len(shared) >= 4  # base, user, Python, torch and LeRobot


@pytest.mark.parametrize("name", ["superlink", "gateway"])
def test_no_torch_where_nothing_is_trained(images, name: str) -> None:
    assert _as_root(image_named(name), "find / -xdev -type d -name torch") == []


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_names_itself_and_an_ordinary_user(images, image: str) -> None:
    title = '{{index .Config.Labels "org.opencontainers.image.description"}}'
    description, user = (
        docker("image", "inspect", "--format", title + "|{{.Config.User}}", image).strip().split("|")
    )
    assert description
    assert user not in ("", "0", "root", "0:0")


@pytest.fixture
def strict_checkout(tmp_path: Path) -> Path:
    """What a clone under umask 077 is like, as far as images are made of it.

    Its lock files keep their modes: the layers of their packages are those of the images that are there.
    """
    for name in ("docker", "federation", "client", "server"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".dockerignore"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for path in (tmp_path, *tmp_path.rglob("*")):
        if path.suffix != ".lock":
            path.chmod(path.stat().st_mode & 0o700)
    return tmp_path


@pytest.fixture
def tag() -> Iterator[str]:
    tag = "so100-test/strict"
    yield tag
    docker("image", "rm", "--force", tag)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("client", ["doctor", "--help"]),
        ("server", ["python", "-m", "server.cli", "submit", "--help"]),
        ("gateway", ["cat", "/etc/haproxy/haproxy.cfg"]),
    ],
)
def test_any_user_reads_an_image_made_of_a_checkout_under_a_strict_umask(
    images, strict_checkout: Path, tag: str, target: str, command: list[str]
) -> None:
    build = {"context": str(strict_checkout), "dockerfile": "docker/Dockerfile", "target": target}
    file = strict_checkout / "strict.yml"
    file.write_text(json.dumps({"services": {"strict": {"image": tag, "build": build}}}))
    docker("compose", "--file", str(file), "build", timeout=600)
    assert docker("run", "--rm", "--user", "12345:12345", tag, *command)
