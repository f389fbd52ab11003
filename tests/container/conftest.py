"""The cluster that the container tests share. Without an engine and the images they fail; none is skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.cluster import IMAGES, Cluster, docker, run_name


@pytest.fixture(scope="session")
def images() -> tuple[str, ...]:
    """The images that `make images` built."""
    docker("compose", "version")
    docker("image", "inspect", *IMAGES)
    return IMAGES


@pytest.fixture(scope="session")
def cluster(
    images: tuple[str, ...], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """All containers, from `up` to `down`; the run of two rounds is submitted."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), data)
    try:
        cluster.compose("up", "--detach", "--no-build")
        yield cluster
    finally:
        cluster.compose("down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="session")
def finished_run(cluster: Cluster) -> str:
    """The name of the run that `up` submitted, once it has finished."""
    docker("wait", cluster.compose("ps", "--all", "--quiet", "run").strip(), timeout=420)
    name = run_name(cluster.compose("logs", "--no-log-prefix", "run"))
    cluster.wait_for(name, lambda event: event["event"] == "run_finished", seconds=420)
    return name
