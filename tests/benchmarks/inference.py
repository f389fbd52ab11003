"""Latency of asynchronous inference: `python -m tests.benchmarks.inference [FOLDER]`.

The real policy server of `make serve`, as a process, asked over gRPC with LeRobot's own messages, as its
robot client asks. An action chunk must arrive before the one before it is used up: a chunk of N actions at
30 Hz lasts N/30 s, and what remains of it when the next one comes is the overlap. Without a folder, a policy
of the demo's size and one of full size are drawn and exported (latency does not depend on the weights), and
`inference.json` is written beside this file.
"""

import argparse
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import torch
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks

from federation.data.description import describe_dataset
from federation.data.joint_names import JOINTS
from federation.data.normalisation import merge_statistics
from federation.policy.build import build_policy, build_processors
from federation.policy.folder import save_policy_folder
from federation.settings import PolicyConfig
from server.simulation.so101 import FPS

IMAGE_PIXELS = 128


def _observation(rng: np.random.Generator, step: int) -> TimedObservation:
    size = (IMAGE_PIXELS, IMAGE_PIXELS, 3)
    content: dict[str, Any] = {f"{name}.pos": float(rng.uniform(-20, 20)) for name in JOINTS}
    content |= {name: rng.integers(0, 256, size, np.uint8) for name in ("top", "wrist")}
    content["task"] = "Pick up the red cube."
    return TimedObservation(timestamp=time.time(), timestep=step, observation=content, must_go=True)


def measure(folder: Path, chunks: int) -> dict[str, Any]:
    """Ask for `chunks` action chunks; the median and 95th percentile of the time to each, after the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lerobot.async_inference.policy_server", f"--port={port}"]
    server = subprocess.Popen(
        [*command, "--host=127.0.0.1", "--inference_latency=0"],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        grpc.channel_ready_future(channel).result(timeout=180)
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        config = json.loads((folder / "config.json").read_text())
        joints = [f"{name}.pos" for name in JOINTS]
        image = {
            "dtype": "image",
            "shape": (IMAGE_PIXELS, IMAGE_PIXELS, 3),
            "names": ["height", "width", "channels"],
        }
        features = {
            "observation.state": {"dtype": "float32", "shape": (6,), "names": joints},
            **{f"observation.images.{name}": image for name in ("top", "wrist")},
        }
        wanted = RemotePolicyConfig("smolvla", ".", features, config["chunk_size"], "cpu")
        started = time.monotonic()
        stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(wanted)))
        load_seconds = time.monotonic() - started
        rng, seconds, actions = np.random.default_rng(0), [], []
        for step in range(chunks + 1):
            started = time.monotonic()
            packed = pickle.dumps(_observation(rng, step))
            stub.SendObservations(send_bytes_in_chunks(packed, services_pb2.Observation))
            reply = stub.GetActions(services_pb2.Empty()).data
            seconds.append(time.monotonic() - started)
            assert reply, "the server failed: run it by hand to see why"
            actions = pickle.loads(reply)  # from our own process
        peak = psutil.Process(server.pid).memory_info().rss
    finally:
        server.terminate()
        server.wait()
    lasts = len(actions) / FPS
    median, late = np.percentile(seconds[1:], (50, 95))
    return {
        "actions_per_chunk": len(actions),
        "chunk_seconds": lasts,
        "load_seconds": load_seconds,
        "first_chunk_seconds": seconds[0],
        "median_seconds": float(median),
        "p95_seconds": float(late),
        "overlap_actions": int(max(0, lasts - late) * FPS),
        "memory_mb": peak / 1e6,
    }


def _export(size: str, folder: Path) -> Path:
    """A policy folder of `size`, its weights as they are drawn, with the processors of the sample data."""
    policy = build_policy(
        PolicyConfig(size=size), seed=0, device=torch.device("cpu"), cache=folder.with_name("vlm")
    )
    statistics = merge_statistics([describe_dataset(Path("data/sample/site-a")).statistics])
    save_policy_folder(folder, policy, build_processors(policy, statistics), "Benchmark of inference.\n")
    return folder


def main() -> None:
    """Measure the folder that is named, or draw both sizes and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a pretrained_model folder")
    parser.add_argument("--chunks", type=int, default=20, help="(%(default)s)")
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(arguments.folder.resolve(), arguments.chunks), indent=1))
        return
    found = {}
    for size in ("tiny", "smolvla"):
        with tempfile.TemporaryDirectory() as scratch:
            found[size] = measure(_export(size, Path(scratch) / size), arguments.chunks)
        print(size, json.dumps(found[size]), flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
