"""The containers of docker-compose.yml in a project of their own, with keys, data and ports of their own."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certs.issue import issue_all
from tests import REPOSITORY

__all__ = ["IMAGES", "SITES", "Cluster", "docker", "image_named", "run_name"]

_VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
_BUILT = ("superlink", "gateway", "server", "client", "prometheus")
IMAGES = tuple(f"so100-federation/{name}:{_VERSION}" for name in _BUILT)
SITES = ("site-a", "site-b")
CONFIG = """
[run]
num_rounds = {rounds}
[federation]
min_nodes = 2
join_timeout_seconds = 180
round_deadline_seconds = {deadline}
[policy]
size = "tiny"
[training]
local_steps = 3
batch_size = 4
learning_rate = 2e-3
warmup_steps = 0
num_workers = 0
[evaluation]
frame_stride = 20
"""
_CONTROL = """
import json, sys
from pathlib import Path
from server.superlink import control
superlink = control.SuperLink("superlink:8000", Path("/run/secrets/ca.crt"))
print(json.dumps(getattr(control, sys.argv[1])(superlink, *sys.argv[2:]), default=sorted))
"""


def image_named(name: str) -> str:
    """The image of this name, with its tag, as docker-compose.yml builds it."""
    (image,) = (image for image in IMAGES if image.startswith(f"so100-federation/{name}:"))
    return image


def docker(*arguments: str, timeout: float = 120) -> str:
    """Run `docker` and return what it printed, errors included; an exit code other than 0 fails the test."""
    result = subprocess.run(
        ["docker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"docker {' '.join(arguments)}: {result.stdout}"
    return result.stdout


class Cluster:
    """A copy in `folder` of what an operator has, with four runs to submit."""

    def __init__(self, folder: Path, data: Path, *, is_without_sites: bool = False) -> None:
        """With `is_without_sites` none is on this machine, and one that is invited makes up a run."""
        self.folder, self.project = folder, "so100-test"
        files = ["docker-compose.yml", "docker/compose.offline.yml"]
        if is_without_sites:
            files.append("docker/compose.invited.yml")
            self.project += "-invited"
        self.files = [folder / name for name in files]
        folder.chmod(0o755)
        shutil.copy(REPOSITORY / "docker-compose.yml", folder)
        shutil.copytree(REPOSITORY / "docker", folder / "docker")
        self.certs = folder / "certs" / "generated"
        issue_all(self.certs, hosts=[], sites=[*SITES, "site-c", "stranger"])
        (folder / "configs").mkdir()
        simulated = "sim_frequency = 2\nsim_episodes = 2\n"
        self.write_config("two-rounds", CONFIG.format(rounds=2, deadline=240) + simulated)
        self.write_config("one-round", CONFIG.format(rounds=1, deadline=240))
        one_site = CONFIG.format(rounds=1, deadline=240).replace("min_nodes = 2", "min_nodes = 1")
        self.write_config("one-site", one_site)
        self.write_config("faults", CONFIG.format(rounds=5, deadline=240))
        for file in data.rglob("*"):  # LeRobot's videos may be read by their owner alone
            file.chmod(0o755 if file.is_dir() else 0o644)
        self.prometheus_port, self.gateway_port = _free_port(), _free_port()
        settings = {
            "CONFIG": f"configs/{'one-site' if is_without_sites else 'two-rounds'}.toml",
            "EVALUATION_DATA": data / "holdout",
            "GATEWAY_ADDRESS": "127.0.0.1",
            "GATEWAY_PORT": self.gateway_port,
            "PROMETHEUS_PORT": self.prometheus_port,
            "COMPOSE_FILE": os.pathsep.join(files),
        }
        if not is_without_sites:
            settings |= {"SITE_A_DATA": data / "site-a", "SITE_B_DATA": data / "site-b"}
        (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        subprocess.run([folder / "docker" / "prepare.sh"], check=True)

    def write_config(self, name: str, content: str) -> None:
        """Write `configs/NAME.toml`."""
        (self.folder / "configs" / f"{name}.toml").write_text(content)

    def compose(self, *arguments: str, timeout: float = 240) -> str:
        """Run `docker compose`; see `docker`."""
        return docker(*self._compose_of_this(), *arguments, timeout=timeout)

    def pack(self, archive: Path, *arguments: str) -> None:
        """Write what `docker compose` prints into `archive`."""
        command = ["docker", *self._compose_of_this(), *arguments]
        with archive.open("wb") as file:
            subprocess.run(command, stdout=file, check=True, timeout=120)

    def unpack(self, archive: Path, *arguments: str) -> None:
        """Have `docker compose` read `archive`."""
        command = ["docker", *self._compose_of_this(), *arguments]
        with archive.open("rb") as file:
            subprocess.run(command, stdin=file, check=True, timeout=120)

    def _compose_of_this(self) -> list[str]:
        location = ["--project-directory", str(self.folder), "--project-name", self.project]
        return ["compose", *location, *(f"--file={file}" for file in self.files)]

    @contextmanager
    def up(self) -> Iterator["Cluster"]:
        """Have all containers up, and the run submitted; everything of them is gone afterwards."""
        try:
            self.compose("up", "--detach", "--no-build")
            yield self
        finally:
            self.compose("down", "--volumes", "--remove-orphans")

    def wait_for_run(self) -> str:
        """Wait until the `run` service has ended; return the name of its run."""
        return run_name(self.end_of_run_service())

    def end_of_run_service(self, timeout: float = 900) -> str:
        """Wait until the `run` service has ended; return what it said."""
        docker("wait", self.compose("ps", "--all", "--quiet", "run").strip(), timeout=timeout)
        return self.compose("logs", "--no-log-prefix", "run")

    def execute(self, service: str, *command: str) -> str:
        """Run a command in a service's container."""
        return self.compose("exec", "-T", service, *command)

    def container(self, service: str) -> dict:
        """What the engine says of a service's container."""
        return json.loads(docker("inspect", self.compose("ps", "--all", "--quiet", service).strip()))[0]

    def services(self) -> list[str]:
        """The services that have a container, the finished `run` included."""
        return self.compose("ps", "--all", "--services").split()

    def submit(self, config: str) -> str:
        """Submit `configs/CONFIG.toml` with the `run` service's program and return the run's name."""
        command = [f"--config=configs/{config}.toml", "--new", "--detach"]
        return run_name(self.compose("run", "--rm", "-T", "run", *command))

    def control(self, function: str, *arguments: str) -> Any:
        """What this function of `server/superlink/control.py` returns inside the control network."""
        python = ["--entrypoint", "python", "run", "-c", _CONTROL]
        output = self.compose("run", "--rm", "-T", *python, function, *arguments)
        return json.loads(output.splitlines()[-1])

    def knock(self, *arguments: str, site: str | None, ca: Path | None = None) -> str:
        """Start one more SuperNode for a while, where the sites are, and return what it printed."""
        keys = self.certs / "sites" / (site or "site-c")
        hardening = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
        user = str(keys.stat().st_uid or 10001)
        mounts = ["--volume", f"{keys}:/keys:ro", "--volume", f"{ca or keys / 'ca.crt'}:/ca.crt:ro"]
        command = ["timeout", "25", "flower-supernode", "--superlink", "gateway:8443", *arguments]
        if "--insecure" not in arguments:
            command += ["--root-certificates", "/ca.crt"]
        if site:
            command += ["--auth-supernode-private-key", "/keys/node.key"]
        network = f"{self.project}_sites"
        place = ["--network", network, "--user", user]
        result = subprocess.run(
            ["docker", "run", "--rm", *place, *hardening, *mounts, image_named("client"), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        return result.stdout

    def read(self, run: str, file: str) -> str:
        """A file of a run, from the volume; empty if there is none yet."""
        return self.execute("server", "sh", "-c", f"cat /outputs/{run}/{file} 2>/dev/null || true")

    def sites_by_round(self, run: str) -> list[list[str]]:
        """The sites whose updates are in each round of a run."""
        rounds = json.loads(self.read(run, "federated_metrics.json"))["rounds"]
        return [sorted(entry["clients"]) for entry in rounds]

    def events(self, run: str) -> list[dict]:
        """The run's events so far."""
        lines = self.read(run, "events.jsonl").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for(self, run: str, seen: Callable[[dict], bool], seconds: float) -> None:
        """Wait until the run has an event for which `seen` is true; fail if the run ends or time does."""
        give_up_at = time.monotonic() + seconds
        while True:
            events = self.events(run)
            if any(seen(event) for event in events):
                return
            ended = [event for event in events if event["event"] in ("run_failed", "run_finished")]
            logs = "" if not ended and time.monotonic() < give_up_at else self.compose("logs", "--tail", "40")
            assert not ended, f"{ended}\n{logs}"
            assert time.monotonic() < give_up_at, f"not seen in {seconds} s: {events[-5:]}\n{logs}"
            time.sleep(1)


def run_name(output: str) -> str:
    """The run's name in what the `run` service printed."""
    found = re.search(r"run (\S+) submitted as \d+", output)
    assert found, output
    return found.group(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
