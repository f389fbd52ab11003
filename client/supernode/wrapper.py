"""Flower's SuperNode, made to outlast days and bad networks.

`client/supernode/bin`, first on the PATH of a SuperNode, holds this module under the name of Flower's
program. It runs Flower's own with eleven weaknesses of Flower 1.42 fixed:

- a TLS handshake that times out or is broken off, as when SuperLink or the network is away, counted as a
  wrong certificate, and the SuperNode gave up for good;
- a SuperNode that had given up did not end: its process stayed, so that nothing restarted it;
- a SuperLink that failed for a moment (HTTP 500), as while an upload of another site locks its database,
  ended every SuperNode that asked it something just then;
- one whose signature is refused, as with a wrong clock, ended without a word;
- it waited for ever for a ClientApp that was told to end, or died at the wrong moment
  (`client/supernode/lost_apps.py`);
- a message that SuperLink had handed out as it went away, or a reply that it did not take, was lost without
  the server's knowing (`client/supernode/lost_messages.py`);
- where the environment names a proxy, the programs at the site spoke to each other through it;
- it slept for seconds between two messages of a round (`client/supernode/polling.py`);
- it read an app's bundle before the site had looked into it (`client/supernode/received.py`, which counts
  the owner's traffic too);
- it gave its tasks, with the global weights and the site's settings in them, to any program of this machine
  that asked: the secret that SuperExec shows it was for SuperExecs that others start;
- httpx ties every response to itself: its stream holds the response, which holds the stream. What came and
  went stayed in memory until Python's collector looked at all objects, in this process once in thirty
  rounds. At full size a round is 300 MB.
"""

import dataclasses
import gc
import importlib
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from client.supernode.polling import shorten_waits
from client.supernode.refusal import note_refusal
from federation import logs
from federation.errors import FederationError
from federation.proxies import bypass_loopback, check_proxies

__all__ = ["RUNNER_VARIABLE", "SUPEREXEC_VARIABLE", "collect", "end_with", "gives_up_on", "main"]

RUNNER_VARIABLE = "FEDERATION_RUNNER"  # the process without which this one must not be (so100-site join)
_SECONDS_BETWEEN_LOOKS = 1.0
SUPEREXEC_VARIABLE = "FEDERATION_SUPEREXEC_SECRET"  # of this SuperNode's own SuperExec (warm_start.py)
_SECRET_BYTES = 32
_SECONDS_BETWEEN_COLLECTIONS = 2.0
_AHEAD_SECONDS, _BEHIND_SECONDS = 5.0, 300.0  # by which a site's clock may differ from SuperLink's
_log = logs.get_logger("client.supernode.wrapper")


def main() -> None:
    """Run Flower's `flower-supernode`, and the collector beside it."""
    from flwr.supercore.exit import ExitCode, flwr_exit
    from flwr.supercore.retry import RetryInvoker
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.cli import flower_supernode
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    from client.supernode.lost_apps import answer_for_lost_apps
    from client.supernode.lost_messages import report_losses
    from client.supernode.received import check_bundles, count_received

    logs.configure()
    os.environ.update(bypass_loopback(os.environ))
    try:
        check_proxies()
    except FederationError as error:
        _log.error("%s", error)
        sys.exit(2)
    make_invoker = fleet_http_connection.make_simple_http_retry_invoker  # type: ignore[attr-defined]

    def make_patient_invoker() -> RetryInvoker:
        invoker = make_invoker()
        invoker.should_giveup = gives_up_on(invoker.should_giveup)
        return invoker

    fleet_http_connection.make_simple_http_retry_invoker = make_patient_invoker  # type: ignore[attr-defined]
    shorten_waits(start_client_internal)
    _require_secret(importlib.import_module("flwr.supernode.cli.flower_supernode"))
    report_losses(start_client_internal, FleetHttpClient)
    count_received(start_client_internal)
    check_bundles(start_client_internal)
    answer_for_lost_apps(InMemoryNodeState)
    gc.collect()
    gc.freeze()  # what is imported stays anyway; to look at it each time takes 0.2 s
    ended = threading.Event()
    collector = threading.Thread(target=collect, args=(_SECONDS_BETWEEN_COLLECTIONS, ended), daemon=True)
    collector.start()
    if runner := os.environ.pop(RUNNER_VARIABLE, ""):
        threading.Thread(target=end_with, args=(int(runner),), daemon=True).start()
    flower_supernode()
    # It returns when it has given up; its own API's thread would keep the process.
    flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "The SuperNode has given up; see the error above.")


def _require_secret(flower: Any) -> None:
    """Have the SuperNode give its tasks to nobody but the SuperExec that it starts.

    Args:
        flower: the module of Flower's command.
    """
    start, secret = flower._start_supernode_http_api, secrets.token_hex(_SECRET_BYTES)

    def start_with_secret(config: Any, state_factory: Any) -> Any:
        if config.isolation == "subprocess":
            os.environ[SUPEREXEC_VARIABLE] = secret  # the SuperExec is started next, and inherits it
            config = dataclasses.replace(config, superexec_auth_secret=secret.encode())
        return start(config, state_factory)

    flower._start_supernode_http_api = start_with_secret


def gives_up_on(given_up: Callable[[Exception], bool] | None) -> Callable[[Exception], bool]:
    """Return `given_up` (None: never) but for handshakes that nobody refused and a SuperLink that fails.

    Before Flower ends this process for a refused signature, the log says so, and why.
    """

    def gives_up(error: Exception) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            if error.response.status_code >= 500:
                return False
            if error.response.status_code == 401:
                reason = f"SuperLink refuses this site's signature: {_why_refused(error.response)}"
                _log.error("%s", reason)
                note_refusal(reason)
        broken_off = isinstance(error, httpx.TimeoutException) or "EOF occurred" in str(error)
        return not broken_off and given_up is not None and given_up(error)

    return gives_up


def _why_refused(answer: httpx.Response) -> str:
    try:
        ahead = (datetime.now(UTC) - parsedate_to_datetime(answer.headers["date"])).total_seconds()
    except (KeyError, ValueError):
        ahead = 0.0
    if not -_BEHIND_SECONDS < ahead < _AHEAD_SECONDS:
        return f"the clock here is {ahead:+.0f} s off SuperLink's; turn on time synchronisation"
    return "its key is not registered, or was revoked; ask the operator"


def end_with(runner: int) -> None:
    """End this process, and all that it started, once `runner`, which started it, is gone.

    A runner that was killed cannot end it: it would go on training for an owner who believes it is off.
    """
    while os.getppid() == runner:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    _log.warning("the program that started this SuperNode is gone: it ends")
    os.killpg(0, signal.SIGTERM)


def collect(seconds: float, ended: threading.Event) -> None:
    """Free what nothing but itself refers to, every so many `seconds`, until `ended` is set."""
    while not ended.wait(seconds):
        gc.collect()
