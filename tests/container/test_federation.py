"""A whole run in containers over TLS, and what each container may do."""

import json
import time
import urllib.parse
import urllib.request

import pytest

from tests.container.cluster import Cluster, docker

pytestmark = pytest.mark.container

# Prints one status for each "METHOD URL" argument; "closed" where nothing answers.
_REQUESTS = """
import ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile="/run/secrets/ca.crt")
context.check_hostname = False
for argument in sys.argv[1:]:
    method, url = argument.split(" ", 1)
    body = b"" if method == "POST" else None
    try:
        request = urllib.request.Request(url, body, method=method)
        with urllib.request.urlopen(request, timeout=4, context=context) as answer:
            print(answer.status)
    except urllib.error.HTTPError as error:
        print(error.code)
    except (urllib.error.URLError, TimeoutError):
        print("closed")
"""


def _statuses(cluster: Cluster, service: str, *requests: str) -> list[str]:
    return cluster.execute(service, "python", "-c", _REQUESTS, *requests).split()


def test_a_whole_run_is_recorded_on_the_volume(cluster: Cluster, finished_run: str) -> None:
    metrics = json.loads(cluster.read(finished_run, "federated_metrics.json"))
    assert metrics["status"] == "finished"
    assert [sorted(entry["clients"]) for entry in metrics["rounds"]] == [["site-a", "site-b"]] * 2
    assert all(entry["missing"] == [] and entry["refused"] == {} for entry in metrics["rounds"])
    assert cluster.read(finished_run, "pretrained_model/config.json")
    assert cluster.read(finished_run, "report.html")


def test_the_policy_drives_the_simulated_arm_in_the_server_container(
    cluster: Cluster, finished_run: str
) -> None:
    simulated = json.loads(cluster.read(finished_run, "federated_metrics.json"))["simulated"]
    assert [(entry["round"], entry["episodes"]) for entry in simulated] == [(0, 2), (2, 2)]
    assert cluster.read(finished_run, "sim_eval_round_2.json")


def test_prometheus_has_the_run(cluster: Cluster, finished_run: str) -> None:
    query = urllib.parse.urlencode({"query": "federation_round"})
    url = f"http://127.0.0.1:{cluster.prometheus_port}/api/v1/query?{query}"
    give_up_at = time.monotonic() + 240
    result: list[dict] = []
    while not result or result[0]["value"][1] != "2":
        assert time.monotonic() < give_up_at, result
        time.sleep(1)
        with urllib.request.urlopen(url, timeout=5) as answer:
            result = json.load(answer)["data"]["result"]


def test_starting_the_run_service_again_registers_nothing_twice_and_refuses_a_bad_configuration(
    cluster: Cluster, finished_run: str
) -> None:
    cluster.write_config("bad", "[training]\nlocal_step = 3\n")
    with pytest.raises(AssertionError, match=r"error: .*unknown key 'training.local_step'"):
        cluster.submit("bad")
    assert cluster.control("online_sites") == ["site-a", "site-b"]


def test_no_container_runs_as_root_or_writes_its_root_file_system(
    cluster: Cluster, finished_run: str
) -> None:
    for service in cluster.services():
        facts = cluster.container(service)
        assert facts["Config"]["User"].split(":")[0] not in ("", "0", "root"), service
        assert facts["HostConfig"]["ReadonlyRootfs"], service
        assert facts["HostConfig"]["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in facts["HostConfig"]["SecurityOpt"], service
        assert facts["HostConfig"]["Memory"] > 0, service
        if service == "run":  # it has ended
            continue
        assert cluster.execute(service, "id", "-u").strip() != "0"
        for folder in ("/", "/usr/bin", "/etc"):
            attempt = f"touch {folder}/probe 2>&1; test ! -e {folder}/probe"
            assert "Read-only file system" in cluster.execute(service, "sh", "-c", attempt), service


def test_data_sets_are_read_only(cluster: Cluster) -> None:
    attempt = "touch /data/probe 2>&1; test ! -e /data/probe"
    assert "Read-only file system" in cluster.execute("supernode-a", "sh", "-c", attempt)


def test_the_gateway_is_the_only_port_for_others(cluster: Cluster, finished_run: str) -> None:
    published = {
        service: [port["HostIp"] for ports in bindings.values() for port in ports or []]
        for service in cluster.services()
        if (bindings := cluster.container(service)["NetworkSettings"]["Ports"])
    }
    assert {service: addresses for service, addresses in published.items() if addresses} == {
        "gateway": ["127.0.0.1"],  # the tests' own setting
        "prometheus": ["127.0.0.1"],
    }


def test_a_site_reaches_the_fleet_api_and_nothing_else(cluster: Cluster, finished_run: str) -> None:
    gateway = "https://gateway:8443"
    closed = [
        f"POST {gateway}/v1/control/list-runs",
        f"POST {gateway}/v1/control/start-run",
        f"POST {gateway}/v1/runtime/acquire-task",
        f"GET {gateway}/docs",
        f"GET {gateway}/openapi.json",
        f"GET {gateway}/",
        f"POST {gateway}/v1/fleet",
        f"POST {gateway}/v1/fleet/../control/list-runs",
        f"POST {gateway}/v1/fleet/%2e%2e/control/list-runs",
        f"POST {gateway}//v1/control/list-runs",
        f"POST {gateway}/v1/fleet//../control/list-runs",
        f"POST {gateway}/V1/CONTROL/list-runs",
    ]
    assert set(_statuses(cluster, "supernode-a", *closed)) <= {"400", "404"}
    assert _statuses(cluster, "supernode-a", f"GET {gateway}/health") == ["200"]
    # The Fleet API answers, though not to a request without a signature.
    (fleet,) = _statuses(cluster, "supernode-a", f"POST {gateway}/v1/fleet/pull-messages")
    assert fleet not in ("closed", "200", "400", "404")


def test_superlink_itself_is_out_of_a_sites_reach(cluster: Cluster, finished_run: str) -> None:
    networks = cluster.container("superlink")["NetworkSettings"]["Networks"]
    address = networks[f"{cluster.project}_control"]["IPAddress"]
    request = "POST https://{}:8000/v1/control/list-runs"
    assert _statuses(cluster, "supernode-a", request.format("superlink"), request.format(address)) == [
        "closed",
        "closed",
    ]
    # The same requests where they are allowed: what was closed does exist.
    (status,) = _statuses(cluster, "server", request.format("superlink"))
    assert status not in ("closed", "404")


@pytest.mark.parametrize(("path", "size"), [("push-object", 64 * 2**20), ("push-messages", 2**18)])
def test_a_request_larger_than_a_chunk_or_a_tree_of_objects_is_refused(
    cluster: Cluster, path: str, size: int
) -> None:
    script = f"""
import http.client, ssl
context = ssl.create_default_context(cafile="/run/secrets/ca.crt")
connection = http.client.HTTPSConnection("gateway", 8443, context=context, timeout=5)
connection.putrequest("POST", "/v1/fleet/{path}")
connection.putheader("Content-Length", "{size}")
connection.endheaders()
print(connection.getresponse().status)
"""
    assert cluster.execute("supernode-a", "python", "-c", script).strip() == "413"


def test_no_private_key_is_in_an_environment_or_a_log(cluster: Cluster, finished_run: str) -> None:
    secret = (cluster.certs / "superlink" / "superexec.secret").read_text()
    key = (cluster.certs / "superlink" / "server.key").read_text().splitlines()[1]
    facts = docker("inspect", *cluster.compose("ps", "--all", "--quiet").split())
    for text in (facts, cluster.compose("logs")):
        assert secret not in text
        assert key not in text
        assert "PRIVATE KEY" not in text
