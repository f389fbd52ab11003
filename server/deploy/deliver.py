"""`so100-server deliver`: a short run that only sends the policy of a finished one to its sites."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from federation.errors import FederationError
from server.deploy.run_container import run_container
from server.deploy.supervise import find_active_run
from server.run.deliveries import read_deliveries
from server.run.recorded import is_finished, joined_sites, recorded_config
from server.superlink.control import SuperLink, run_status, submit_run

__all__ = ["deliver_policy", "deliver_run"]

_POLL_INTERVAL_SECONDS = 1.0


def deliver_run(superlink: SuperLink, outputs: Path, run: str, say: Callable[[str], None]) -> None:
    """Have the sites of `run` that are online get its policy, also again; print what came of each.

    Args:
        outputs: where the ServerApp records runs; only read here.
        say: takes lines for the operator.

    Raises:
        FederationError: `run` has not finished, another is active, or the delivery as a whole failed.
    """
    folder = outputs / run
    config = recorded_config(folder)
    if not is_finished(folder):
        raise FederationError(f"run {run} has not finished: resume it, its end delivers the policy")
    if active := find_active_run(superlink, outputs, say):
        raise FederationError(
            f"run {active[1].run.name} is active: wait for its end, or end it with docker compose run --rm "
            "run --stop"
        )
    before = read_deliveries(folder)
    asked = replace(config, run=replace(config.run, name=run, resume=False, deliver="only"))
    flower_run = submit_run(superlink, asked)
    while not (status := run_status(superlink, flower_run)).startswith("finished"):
        time.sleep(_POLL_INTERVAL_SECONDS)
    if status != "finished:completed":
        raise FederationError(
            f"the policy of {run} was not delivered ({status}): {folder / 'server.log'}, or the log of the "
            "server, has the reason"
        )
    after = read_deliveries(folder)
    for site in sorted(joined_sites(folder)):
        say(f"{site}: {_outcome(before.get(site), after.get(site))}")


def deliver_policy(run: str, outputs: Path, certs: Path, control: str | None) -> int:
    """Do what `deliver_run` does and print it, in the `run` container or here; return the exit code.

    Args:
        certs: the folder written by `make certs`.
        control: "host:port" of SuperLink's Control API; None: through the `run` container.

    Raises:
        FederationError: as `deliver_run`; or Docker cannot be started here.
    """
    if control is not None:
        deliver_run(SuperLink(control, certs / "superlink" / "ca.crt"), outputs, run, print)
        return 0
    return run_container(["run", "--deliver", run]).returncode


def _outcome(before: dict[str, object] | None, after: dict[str, object] | None) -> str:
    if after is None or (after == before and after["error"]):
        return "is not online; it gets the policy when it joins the next run"
    if after["error"]:
        return f"not delivered: {after['error']}"
    return (
        "is not online; it got the policy before"
        if after == before
        else f"has the policy of round {after['round']} now"
    )
