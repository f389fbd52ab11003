"""Who is not let in."""

from pathlib import Path

import pytest

from certs.issue import issue_all
from tests.container.cluster import Cluster

pytestmark = pytest.mark.container
_LET_IN = "SuperNode ID"
_NOT_REGISTERED = "code: 2004"


def test_a_registered_key_is_let_in_until_it_is_revoked(cluster: Cluster, finished_run: str) -> None:
    key = (cluster.certs / "sites" / "site-c" / "node.key.pub").read_text()
    cluster.control("register_supernode", key, "site-c")
    assert _LET_IN in cluster.knock(site="site-c")
    assert cluster.control("unregister_supernode", key)
    assert _NOT_REGISTERED in cluster.knock(site="site-c")


def test_a_key_that_nobody_registered_is_refused(cluster: Cluster, finished_run: str) -> None:
    assert _NOT_REGISTERED in cluster.knock(site="stranger")


def test_a_site_without_a_key_is_refused(cluster: Cluster, finished_run: str) -> None:
    assert "code: 2001" in cluster.knock(site=None)


def test_a_site_does_not_talk_to_a_gateway_of_another_authority(
    cluster: Cluster, finished_run: str, tmp_path: Path
) -> None:
    issue_all(tmp_path / "other", hosts=[], sites=[])
    ca = tmp_path / "ca.crt"
    ca.write_bytes((tmp_path / "other" / "superlink" / "ca.crt").read_bytes())
    output = cluster.knock(site="site-c", ca=ca)
    assert _LET_IN not in output
    assert "CERTIFICATE_VERIFY_FAILED" in output


def test_plaintext_is_refused(cluster: Cluster, finished_run: str) -> None:
    output = cluster.knock("--insecure", site=None)
    assert "Starting insecure channel" in output
    assert _LET_IN not in output
    script = """
import http.client
connection = http.client.HTTPConnection("gateway", 8443, timeout=5)
try:
    connection.request("GET", "/health")
    print(connection.getresponse().status)
except (http.client.HTTPException, OSError):
    print("no answer")
"""
    assert cluster.execute("supernode-a", "python", "-c", script).strip() == "no answer"


def test_tls_older_than_1_2_is_refused(cluster: Cluster) -> None:
    script = """
import socket, ssl, sys
context = ssl.create_default_context(cafile="/run/secrets/ca.crt")
context.set_ciphers("ALL:@SECLEVEL=0")
context.minimum_version = ssl.TLSVersion.TLSv1
context.maximum_version = getattr(ssl.TLSVersion, sys.argv[1])
with socket.create_connection(("gateway", 8443), timeout=5) as connection:
    try:
        print(context.wrap_socket(connection, server_hostname="gateway").version())
    except ssl.SSLError:
        print("refused")
"""
    versions = ("TLSv1_1", "TLSv1_2", "TLSv1_3")
    answers = [
        cluster.execute("supernode-a", "python", "-Wignore", "-c", script, v).strip() for v in versions
    ]
    assert answers == ["refused", "TLSv1.2", "TLSv1.3"]
