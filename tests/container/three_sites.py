"""Three owners join by invitation, each in their own way, and each ends with the policy of the run.

    python -m tests.container.three_sites

`lab-native` joins from a Python environment, `lab-docker` with the Compose file of a site, and `lab-off` is
there for one half of the run only. Each has two recordings, whose cameras differ in name and size; one of
them is of format 2.1. It needs a Docker engine and the images. Printed are, for each site, the seconds from
its key to its join, the rounds that it took part in, and whether `lerobot-eval` drives the policy that came
to it. In the middle of the run `lab-native` gets one more recording. The private keys are then looked for in
all that the operator's side has.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from certs.issue import issue_all
from federation.config import parse_run_config
from federation.policy.folder import policy_digest
from server.cli import main as operate
from server.deploy.local_cluster import LocalCluster
from server.run.recorded import read_events, read_metrics
from server.superlink.control import online_sites, run_status, submit_run
from tests.conftest import TINY
from tests.container.cluster import IMAGES, docker
from tests.integration.conftest import free_port
from tests.integration.membership import Owner, find_secret
from tests.synthetic import as_format_2, record_dataset

_ROUNDS = 6
_RUN = TINY | {
    "run.name": "three",
    "run.num_rounds": _ROUNDS,
    "run.deliver": "end",
    "training.local_steps": 10,
    "federation.min_nodes": 3,
}
_CAMERAS = ["--camera-names", "", "--camera-names", "top=phone,wrist=hand"]
_PATIENCE_SECONDS = 600.0


class DockerOwner:
    """An owner with nothing but Docker: the folder of a site, and its Compose commands."""

    def __init__(self, folder: Path, recordings: Path) -> None:
        self.folder, self.recordings, self.said = folder, recordings, ""
        image = next(name for name in IMAGES if "/client:" in name)
        packed = docker_bytes("run", "--rm", image, "tar", "-c", "-C", "/app/docker/site", ".")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        settings = (folder / "env").read_text()
        for line, value in {
            "DATASET=\n": f"DATASET={recordings}\n",
            "RECORDINGS=\n": "RECORDINGS=/data/pick,/data/kitchen\n",
            "CAMERA_NAMES=\n": "CAMERA_NAMES=;top=phone,wrist=hand\n",
            "MEMORY=16g": "MEMORY=4g",
        }.items():
            settings = settings.replace(line, value)
        (folder / ".env").write_text(settings)
        # SuperLink is on this machine's loopback interface, not on the internet.
        override = "services:\n  supernode:\n    network_mode: host\n"
        (folder / "docker-compose.override.yml").write_text(override)
        self.own()

    def run(self, *arguments: str) -> str:
        """Run one of the owner's commands; return what it printed."""
        return self.compose("run", "--rm", "-T", "supernode", *arguments)

    def own(self) -> None:
        """Give the files to the user of the container."""
        for folder in (self.folder, self.recordings):
            for file in (folder, *folder.rglob("*")):
                shutil.chown(file, 1000)

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` in the folder; return what it printed."""
        printed = docker("compose", "--project-directory", str(self.folder), *arguments)
        self.said += printed
        return printed


def docker_bytes(*arguments: str) -> bytes:
    """Run `docker`; return what it wrote."""
    return subprocess.run(["docker", *arguments], capture_output=True, check=True).stdout


def record(folder: Path, seed: int) -> list[Path]:
    """Record the two recordings of an owner."""
    pick = record_dataset(folder / "pick", episodes=3, seed=seed)
    kitchen = record_dataset(
        folder / "kitchen", episodes=2, frames=20, cameras=("phone", "hand"), seed=seed + 1, size=(48, 64)
    )
    return [pick, as_format_2(kitchen)]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`; end the program if it takes too long."""
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > give_up_at:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.5)


def drive(policy: Path, folder: Path) -> None:
    """Let `lerobot-eval` drive the simulated arm with the policy in a folder; end the program if it fails."""
    command = [str(Path(sys.executable).with_name("lerobot-eval")), "--policy.path=.", "--policy.device=cpu"]
    command += ["--env.type=so101_pick", "--env.discover_packages_path=server.simulation.gym_so101"]
    command += ["--env.image_size_px=32", "--eval.n_episodes=1", "--eval.batch_size=1"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1"}
    command = [*command, f"--output_dir={folder}"]
    ended = subprocess.run(command, cwd=policy, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode or not (folder / "eval_info.json").is_file():
        raise SystemExit(f"lerobot-eval does not drive {policy}:\n{ended.stderr[-2000:]}")


def main() -> None:
    """Let the three take part in a run and report."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        demonstrate(Path(name), stack)


@dataclass
class Scene:
    """Who takes part, and where everything is; `folder` holds it all."""

    folder: Path
    control: list[str]  # the operator's options
    data: dict[str, list[Path]]  # of each site, its recordings
    native: dict[str, Owner]
    docker: DockerOwner

    @property
    def homes(self) -> dict[str, Path]:
        """Return the folder of each site, with its key and its policy."""
        native = {name: owner.folder for name, owner in self.native.items()}
        return native | {"lab-docker": self.docker.folder / "site"}


def demonstrate(folder: Path, stack: ExitStack) -> None:
    """Everything above, in `folder`."""
    certs, port = folder / "certs", free_port()
    issue_all(certs, hosts=[], sites=["site-a"])
    holdout = record_dataset(folder / "holdout" / "pick", episodes=2, seed=90).parent
    own = record_dataset(folder / "site-a", seed=80)
    names = ("lab-native", "lab-off", "lab-docker")
    data = {name: record(folder / "of" / name, 10 * i) for i, name in enumerate(names)}
    native = {name: Owner(folder / "home" / name, data[name][0]) for name in names[:2]}
    (folder / "docker").mkdir()
    with_docker = DockerOwner(folder / "docker", folder / "of" / "lab-docker")
    control = ["--control", f"127.0.0.1:{port}", "--certs", str(certs)]
    scene = Scene(folder, control, data, native, with_docker)
    stack.callback(with_docker.compose, "down", "--volumes")
    for owner in native.values():
        stack.callback(owner.stop)
    arguments = (holdout, folder / "outputs", certs, port, folder / "scratch")
    with LocalCluster({"site-a": own}, *arguments) as cluster:
        wait_until(lambda: len(online_sites(cluster.superlink)) == 1, "the operator's own site")
        joined = {name: join(scene, name, cluster, port) for name in names}
        train(scene, cluster)
        search_keys(scene, [cluster.logs, certs, folder / "outputs"])
    report(scene, joined)


def join(scene: Scene, name: str, cluster: LocalCluster, port: int) -> float:
    """Let a site make its key, be invited and join; return the seconds that took."""
    started, before = time.monotonic(), len(online_sites(cluster.superlink))
    owner = scene.native.get(name)
    line = owner.run("key", name) if owner else scene.docker.run("key", name)
    assert operate(["invite", name, "--key", line, "--superlink", f"localhost:{port}", *scene.control]) == 0
    invitation = scene.folder / "certs" / "invited" / name / f"{name}.invitation.json"
    if owner:
        both = [part for path in scene.data[name] for part in ("--data", str(path))]
        owner.start(scene.folder / f"{name}.log", "join", str(invitation), *both, *_CAMERAS)
    else:
        shutil.copy(invitation, scene.homes[name] / "invitation.json")
        scene.docker.own()
        assert "this site is ready" in scene.docker.run("doctor")
        scene.docker.compose("up", "--detach")
    wait_until(lambda: len(online_sites(cluster.superlink)) > before, f"{name} to join")
    return time.monotonic() - started


def train(scene: Scene, cluster: LocalCluster) -> None:
    """Run the rounds, `lab-off` only the first half of them, and see that all three get the policy."""
    outputs, off = scene.folder / "outputs", scene.native["lab-off"]
    run = submit_run(cluster.superlink, parse_run_config(_RUN, "three_sites"))
    finished = ("round_finished",)
    wait_until(
        lambda: len(list(read_events(outputs / "three", finished))) >= _ROUNDS // 2, "half of the rounds"
    )
    off.run("pause")
    later = record_dataset(scene.folder / "of" / "later", episodes=4, seed=70)
    scene.native["lab-native"].run("data", "--add", str(later))
    wait_until(lambda: run_status(cluster.superlink, run).startswith("finished"), "the run's end")
    policies = {name: home / "policy" for name, home in scene.homes.items()}
    assert [name for name, policy in policies.items() if not policy.exists()] == ["lab-off"]
    off.run("resume")
    wait_until(lambda: len(online_sites(cluster.superlink)) == len(policies) + 1, "lab-off to be back")
    assert operate(["deliver", "three", "--outputs", str(outputs), *scene.control]) == 0
    frames = [each["clients"]["lab-native"]["frames"] for each in read_metrics(outputs / "three")["rounds"]]
    assert frames[0] == 160, frames
    assert frames[-1] == 160 + 4 * 40, frames
    exported = policy_digest(outputs / "three" / "pretrained_model")
    assert {policy_digest(policy) for policy in policies.values()} == {exported}


def search_keys(scene: Scene, of_the_operator: Sequence[Path]) -> None:
    """See that no private key is anywhere but in its site's folder."""
    logs = [scene.folder / f"{name}.log" for name in scene.native]
    said = [*(owner.said for owner in scene.native.values()), scene.docker.said, scene.docker.compose("logs")]
    for name, home in scene.homes.items():
        assert find_secret(home / "node.key", [home]) == [str(home / "node.key")]
        assert find_secret(home / "node.key", [*of_the_operator, *logs, *said]) == [], name


def report(scene: Scene, joined: dict[str, float]) -> None:
    """Print a line for each site."""
    rounds = read_metrics(scene.folder / "outputs" / "three")["rounds"]
    table = Table("site", "key to join", "rounds", "policy", "lerobot-eval")
    for name, home in scene.homes.items():
        taken = [str(entry["round"]) for entry in rounds if name in entry["clients"]]
        drive(home / "policy", scene.folder / f"eval-{name}")
        table.add_row(name, f"{joined[name]:.0f} s", " ".join(taken), "as exported", "drives the arm")
    Console().print(table)
    print("no private key is in a log, an invitation, a record or another file of the operator")


if __name__ == "__main__":
    main()
