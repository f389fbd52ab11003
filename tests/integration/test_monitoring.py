"""Every panel of every dashboard has data: a real run, the real exporters, a real Prometheus."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.issue import issue_all
from federation.config import parse_run_config
from server.deploy.local_cluster import LocalCluster
from server.superlink.control import run_status, submit_run
from tests import REPOSITORY
from tests.conftest import TINY
from tests.integration.conftest import free_port

pytestmark = pytest.mark.integration
SITES = ("site-a", "site-b")


def _wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    give_up_at = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < give_up_at, what
        time.sleep(0.5)
    return result


class _Monitoring:
    """Prometheus with the repository's rules, and what it scrapes, around a cluster."""

    def __init__(self, folder: Path, outputs: Path, certs: Path, superlink: int) -> None:
        self.folder, self.outputs, self.superlink = folder, outputs, superlink
        self.tls = certs / "superlink"
        self.ports = {name: free_port() for name in ("exporter", "prometheus", *SITES)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_exporter(self) -> None:
        self._start(
            "exporter",
            *(sys.executable, "-m", "server.cli", "exporter", "--host", "127.0.0.1"),
            *("--port", str(self.ports["exporter"]), "--outputs", str(self.outputs)),
            *("--superlink", f"127.0.0.1:{self.superlink}", "--ca", str(self.tls / "ca.crt")),
            *(f"--certificate={self.tls / name}" for name in ("ca.crt", "server.crt")),
        )
        _wait_until(self.scrape, 180, "the exporter does not answer")

    def start_site_exporter(self, site: str, scratch: Path) -> None:
        arguments = ("--node", site, "--scratch", str(scratch), "--port", str(self.ports[site]))
        self._start(site, sys.executable, "-m", "client.cli", "exporter", "--host", "127.0.0.1", *arguments)

    def start_prometheus(self) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.fail("prometheus is not installed: apt-get install prometheus")
        config = yaml.safe_load((REPOSITORY / "docker/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        targets = {
            "federation": ["exporter"],
            "sites": list(SITES),
            "prometheus": ["prometheus"],
        }
        for job in config["scrape_configs"]:
            addresses = [f"127.0.0.1:{self.ports[name]}" for name in targets[job["job_name"]]]
            job["static_configs"] = [{"targets": addresses}]
        for name in config["rule_files"]:
            rules = yaml.safe_load((REPOSITORY / "docker/prometheus" / name).read_text())
            for group in rules["groups"]:
                group["interval"] = "1s"
            (self.folder / name).write_text(yaml.safe_dump(rules))
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._start(
            "prometheus",
            binary,
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}",
        )

    def scrape(self) -> str:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.ports['exporter']}/metrics", timeout=10
            ) as page:
                return page.read().decode()
        except (urllib.error.URLError, OSError):
            return ""

    def query(self, expression: str) -> list[dict]:
        address = f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/query?"
        try:
            with urllib.request.urlopen(
                address + urllib.parse.urlencode({"query": expression}), timeout=10
            ) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{expression}: {error.read().decode()}")
        except (urllib.error.URLError, OSError):
            return []

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes.pop(name).wait()

    def stop(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@pytest.fixture(scope="module")
def monitoring(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Monitoring]:
    """After a run of two rounds of two sites that was watched from its start; the cluster is still up."""
    folder = tmp_path_factory.mktemp("monitoring")
    certs, outputs = folder / "certs", folder / "outputs"
    outputs.mkdir()
    issue_all(certs, hosts=[], sites=list(SITES))
    config = parse_run_config(TINY | {"run.name": "watched"}, "tests")
    port = free_port()
    cluster = LocalCluster(
        {site: data / site for site in SITES}, data / "holdout", outputs, certs, port, folder / "scratch"
    )
    with cluster, contextlib.ExitStack() as stack:
        watched = _Monitoring(folder, outputs, certs, port)
        stack.callback(watched.stop)
        for site in SITES:
            watched.start_site_exporter(site, cluster.progress_file(site).parent)
        watched.start_exporter()
        watched.start_prometheus()
        run_id = submit_run(cluster.superlink, config)
        _wait_until(
            lambda: run_status(cluster.superlink, run_id).startswith("finished"), 400, "the run does not end"
        )
        _wait_until(
            lambda: watched.query('federation_run_state{state="finished"} == 1'), 180, "Prometheus has no end"
        )
        yield watched


def _panels() -> Iterator[tuple[str, str]]:
    for file in sorted((REPOSITORY / "docker/grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{file.stem}: {panel['title']}", target["expr"].replace("$node", "site-a")


def test_every_query_of_every_panel_returns_data(monitoring: _Monitoring) -> None:
    panels = list(_panels())
    assert len(panels) > 40
    empty = panels

    def all_have_data() -> bool:
        empty[:] = [(title, expression) for title, expression in empty if not monitoring.query(expression)]
        return not empty

    # The newest rule evaluation is a moment behind the newest scrape.
    give_up_at = time.monotonic() + 180
    while not all_have_data():
        assert time.monotonic() < give_up_at, empty
        time.sleep(0.5)


def test_what_prometheus_has_is_what_the_run_recorded(monitoring: _Monitoring) -> None:
    record = json.loads((monitoring.outputs / "watched" / "federated_metrics.json").read_text())
    last = record["rounds"][-1]

    def value(expression: str) -> float:
        (result,) = monitoring.query(expression)
        return float(result["value"][1])

    assert value("federation_round") == 2
    assert value('federation_policy_loss{dataset="all"}') == last["evaluation"]["policy_loss"]
    assert value("federation_policy_loss_baseline") == record["baseline"]["policy_loss"]
    assert value("federation_examples_total") == sum(entry["num_examples"] for entry in record["rounds"])
    for direction in ("down", "up"):
        total = sum(entry["bytes"][direction] for entry in record["rounds"])
        assert value(f'federation_transferred_bytes_total{{direction="{direction}"}}') == total
    assert value('sum(federation_superlink_nodes{status="online"})') == 2
    duration = sum(sum(entry["seconds"].values()) for entry in record["rounds"])
    assert value("sum(federation_phase_seconds_total)") == pytest.approx(duration)
    for client in last["clients"].values():
        parts = sum(client[f"{phase}_seconds"] for phase in ("download", "setup", "train", "upload"))
        # The rest is packing and writing, which a busy machine draws out.
        assert 0.5 * client["reply_seconds"] < parts < client["reply_seconds"] + 0.1
    assert monitoring.query('ALERTS{alertstate="firing"}') == []


def test_sites_are_seen_inside_the_round(monitoring: _Monitoring) -> None:
    steps = {
        series["metric"]["node"]: [float(value) for _, value in series["values"]]
        for series in monitoring.query("federation_site_local_step[10m]")
    }
    assert set(steps) == set(SITES)
    assert all(max(values) == TINY["training.local_steps"] for values in steps.values())


def test_a_killed_exporter_comes_back_with_the_same_counters(monitoring: _Monitoring) -> None:
    def counters() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in monitoring.scrape().splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines if "_total" in name and "process_" not in name}

    before = counters()
    assert before['federation_node_updates_total{node="site-a"}'] == 2
    monitoring.kill("exporter")
    _wait_until(lambda: monitoring.query('up{job="federation"} == 0'), 30, "Prometheus saw no gap")
    monitoring.start_exporter()
    assert counters() == before
    _wait_until(lambda: monitoring.query('up{job="federation"} == 1'), 30, "it is not scraped again")
    # No counter was ever seen to fall: to Prometheus nothing happened.
    for name in {counter.partition("{")[0] for counter in before}:
        assert monitoring.query(f"sum(resets({name}[10m])) == 0"), name
