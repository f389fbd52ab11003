"""docker-compose.yml as a file; tests/container starts it."""

import os
import re
import subprocess
from typing import Any

import pytest
import yaml
from typer.main import get_command

from client.cli import app
from client.rules.owner import NO_RULES, RULES_VARIABLE, read_rules
from tests import REPOSITORY

SERVICES = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
DIRECT = {"localhost", "127.0.0.1", "::1", "superlink", "gateway", "prometheus"}


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_reaches_another_through_a_proxy(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert environment["NO_PROXY"] == environment["no_proxy"]
    *hosts, own = environment["NO_PROXY"].split(",")
    assert set(hosts) == DIRECT
    assert own == "${NO_PROXY:-}"


@pytest.mark.parametrize(
    "name", ["superlink", "gateway", "server", "exporter", "supernode-a", "supernode-b", "run"]
)
def test_every_host_that_a_service_names_is_direct(name: str) -> None:
    words = " ".join(map(str, [SERVICES[name].get("command"), SERVICES[name].get("entrypoint")]))
    for service in SERVICES:
        if f"={service}:" in words:
            assert service in DIRECT


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_sites_rules_reach_its_supernode(name: str) -> None:
    service = SERVICES[f"supernode-{name}"]
    (mount,) = (each for each in service["volumes"] if "RULES" in str(each))
    assert mount["target"] == service["environment"][RULES_VARIABLE]
    default = re.fullmatch(rf"\$\{{SITE_{name.upper()}_RULES:-(.+)\}}", mount["source"])
    assert default
    assert read_rules(REPOSITORY / default[1]) == NO_RULES


def test_where_all_sites_are_invited_none_is_here_and_nobody_waits_for_one() -> None:
    """Nor has `run` drifted from that of docker-compose.yml."""
    changed = yaml.safe_load((REPOSITORY / "docker" / "compose.invited.yml").read_text())["services"]
    entrypoint = changed.pop("run")["entrypoint"]
    assert "--config=${CONFIG:?name in .env the configuration that sites are invited to}" in entrypoint
    ours, here = (
        [part for part in parts if not part.startswith(("--site=", "--config="))]
        for parts in (entrypoint, SERVICES["run"]["entrypoint"])
    )
    assert ours == here
    image = SERVICES["supernode-a"]["image"]
    of_sites = {name for name, service in SERVICES.items() if service["image"] == image}
    assert changed == {name: {"profiles": ["sites-here"]} for name in of_sites}


SITE = REPOSITORY / "docker" / "site"


def _site_service(name: str = "docker-compose.yml") -> dict[str, Any]:
    (service,) = yaml.safe_load((SITE / name).read_text(encoding="utf-8"))["services"].values()
    return service


def test_the_settings_of_a_site_elsewhere_reach_its_join() -> None:
    service = _site_service()
    lines = (SITE / "env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    used = set(re.findall(r"\$\{(\w+)", (SITE / "docker-compose.yml").read_text()))
    assert used - settings.keys() == {"PULL_POLICY"}
    assert settings.keys() <= used
    assert settings["DATASET"] == ""
    assert settings["IMAGE"] == SERVICES["supernode-a"]["image"]
    (join,) = (command for name, command in get_command(app).commands.items() if name == "join")
    read = {option.envvar for option in join.params if option.envvar}
    assert read <= service["environment"].keys()


def test_the_container_of_a_site_is_locked_down_and_opens_no_port() -> None:
    service = _site_service()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "always"
    assert service["pull_policy"] == "${PULL_POLICY:-never}"
    assert "ports" not in service
    assert "privileged" not in service
    writable = [volume["target"] for volume in service["volumes"] if not volume.get("read_only")]
    assert writable == [service["environment"]["FEDERATION_SITE"]]


def test_the_gpu_is_a_second_file_for_the_same_service() -> None:
    devices = _site_service("docker-compose.gpu.yml")["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def test_the_readme_of_a_site_is_short_and_says_what_leaves_and_how_to_leave() -> None:
    text = (SITE / "README.md").read_text()
    assert len([line for line in text.splitlines() if line]) <= 20
    for words in ("supernode key", "doctor", "docker compose up -d", "logs -f", "What leaves", "site-revoke"):
        assert words in text
    names = {file.name for file in SITE.iterdir()}
    assert names == {"README.md", "env", "docker-compose.yml", "docker-compose.gpu.yml"}


def _merged_with_gpus() -> dict[str, Any]:
    """The services of both files: as Compose merges them, or where it is not installed, as files."""
    files = ["docker-compose.yml", "docker/compose.gpu.yml"]
    command = ["docker", "compose", "--project-directory", ".", *(f"--file={file}" for file in files)]
    try:
        installed = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    except FileNotFoundError:
        installed = None
    if installed is not None and installed.returncode == 0:
        done = subprocess.run(
            [*command, "config", "--no-interpolate"],
            cwd=REPOSITORY,
            env=os.environ | {"COMPOSE_FILE": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return yaml.safe_load(done.stdout)["services"]
    added = yaml.safe_load((REPOSITORY / files[1]).read_text())["services"]
    assert added.keys() <= SERVICES.keys()
    assert not [name for name in added if added[name].keys() & SERVICES[name].keys()]  # nothing to merge
    return {name: service | added.get(name, {}) for name, service in SERVICES.items()}


def test_what_trains_and_evaluates_gets_a_gpu_and_nothing_else_does() -> None:
    services = _merged_with_gpus()
    assert services.keys() == SERVICES.keys()
    devices = {
        name: service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
        for name, service in services.items()
    }
    gpu = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    with_gpu = {name for name, found in devices.items() if found}
    assert with_gpu == {"server", "supernode-a", "supernode-b"}
    assert all(devices[name] == gpu for name in with_gpu)
