"""The cluster that the container tests share. Without an engine and the images they fail; none is skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.cluster import IMAGES, Cluster, docker


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
    with Cluster(tmp_path_factory.mktemp("cluster"), data).up() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def finished_run(cluster: Cluster) -> str:
    """The name of the run that `up` submitted, once it has finished."""
    name = cluster.wait_for_run()
    cluster.wait_for(name, lambda event: event["event"] == "run_finished", seconds=900)
    return name
