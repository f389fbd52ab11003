"""docker-compose.yml as a file; tests/container starts it."""

import pytest
import yaml

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


def _command(file: str, service: str) -> str:
    services = yaml.safe_load((REPOSITORY / file).read_text(encoding="utf-8"))["services"]
    return " ".join(services[service]["command"])


@pytest.mark.parametrize(
    ("file", "service", "prefix"),
    [
        ("docker-compose.yml", "supernode-a", "SITE_A_"),
        ("docker-compose.yml", "supernode-b", "SITE_B_"),
        ("docker/site/docker-compose.yml", "supernode", ""),
    ],
)
def test_a_sites_rules_of_privacy_reach_its_supernode(file: str, service: str, prefix: str) -> None:
    command = _command(file, service)
    assert f'min-noise="${{{prefix}MIN_NOISE:-}}"' in command
    assert f'max-epsilon="${{{prefix}MAX_EPSILON:-}}"' in command
