"""The operator ends a run that waits, and has it go on with other settings."""

import json
from pathlib import Path

import pytest

from federation.errors import FederationError
from server.deploy.local_cluster import LocalCluster
from server.deploy.submit import stop_active_run, submit
from server.run.recorded import is_finished, read_events, recorded_config, recorded_runs
from server.superlink.control import active_run
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.membership import wait_for

pytestmark = pytest.mark.integration


def _write(file: Path, min_nodes: int) -> Path:
    settings = TINY | {
        "run.num_rounds": 1,
        "federation.min_nodes": min_nodes,
        "federation.join_timeout_seconds": 5.0,
    }
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return file


def test_a_run_that_waits_for_a_site_is_stopped_and_goes_on_without_it(
    certs: Path, data: Path, tmp_path: Path
) -> None:
    outputs, sites = tmp_path / "outputs", {"site-a": data / "site-a"}
    outputs.mkdir()
    config = _write(tmp_path / "patient.toml", min_nodes=2)
    with LocalCluster(sites, data / "holdout", outputs, certs, free_port(), tmp_path / "scratch") as cluster:
        link, log = cluster.superlink, cluster.logs / "superexec.log"
        submit(link, {}, outputs, config, detach=True)
        wait_for(lambda: bool(recorded_runs(outputs)), log)
        (folder,) = recorded_runs(outputs)
        wait_for(lambda: any(read_events(folder, ("waiting_for_nodes",))), log)
        _write(config, min_nodes=1)
        with pytest.raises(FederationError, match=r"is active, so other federation.min_nodes cannot begin"):
            submit(link, {}, outputs, config, resume=folder.name)
        stop_active_run(link)
        wait_for(lambda: active_run(link) is None, log)
        submit(link, {}, outputs, config, resume=folder.name)
    assert is_finished(folder)
    assert recorded_config(folder).federation.min_nodes == 1
