"""Does a lossy codec cost accuracy? Held-out policy loss after 20 demo rounds, by codec, over three seeds.

    python -m tests.benchmarks.codec_accuracy [--out tests/benchmarks/codec_accuracy.json]

The demo's configuration and data with the project's own training, wire and aggregation code; only Flower's
transport is left out, which moves bytes and changes none. All codecs run in the same call, two processes at
a time with one thread each. About 20 minutes on two cores. Needs `make sample-data`.
"""

import argparse
import hashlib
import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = (0, 1, 2)
CODECS = ("fp32", "bf16", "int8", "int4")  # of the updates; the weights go down as bf16, but for fp32 as fp32
ROUNDS = 20


def run_federation(job: tuple[str, int, Path]) -> dict[str, Any]:
    """Train `ROUNDS` rounds of two sites with one codec and seed; the policy loss after each round."""
    import torch

    from client.state.feedback import add_residual, keep_residual
    from client.training import run_training_loop, setup_training_components
    from federation.config import load_run_config
    from federation.data.description import describe_dataset
    from federation.data.normalisation import merge_statistics
    from federation.data.sample_cache import open_samples
    from federation.policy.build import build_policy, trainable_parameters
    from federation.wire.payload import Header
    from server.aggregation.collector import WeightedMean, apply_update
    from server.evaluation.held_out import Evaluator

    codec, seed, data = job
    torch.set_num_threads(1)
    overrides = {"run.seed": seed, "run.num_rounds": ROUNDS}
    config = load_run_config(Path("configs/demo.toml"), overrides)
    sites = {name: data / name for name in ("site-a", "site-b")}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        policy = build_policy(config.policy, seed=seed, device=torch.device("cpu"), cache=scratch)
        weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        statistics = merge_statistics([describe_dataset(root).statistics for root in sites.values()])
        evaluator = Evaluator(policy, statistics, {"holdout": data / "holdout"}, config.evaluation)
        losses = [evaluator.evaluate(weights)["policy_loss"]]
        for round_ in range(1, ROUNDS + 1):
            mean = WeightedMean(shapes)
            down = Header("fp32" if codec == "fp32" else "bf16", "benchmark", round_, "")
            received = dict(_send(weights, down, shapes).tensors())
            for name, root in sites.items():
                digest = hashlib.sha256(f"{seed}/{name}/{round_}".encode()).digest()
                samples = open_samples(root, policy.config, scratch / name / "samples", 10**9)
                components = setup_training_components(
                    config, policy, received, statistics, samples, int.from_bytes(digest[:7], "big")
                )
                result = run_training_loop(components, round_, ROUNDS, lambda *_: None)
                site_scratch = scratch / name
                add_residual(site_scratch, "benchmark", round_, result.update)
                arrived = _send(result.update, Header(codec, "benchmark", round_, "x"), shapes)
                residual = {n: result.update[n] - tensor for n, tensor in arrived.tensors()}
                keep_residual(site_scratch, "benchmark", round_, residual)
                mean.add(arrived, result.num_examples)
            apply_update(mean, weights, None)
            losses.append(evaluator.evaluate(weights)["policy_loss"])
            print(f"{codec} seed {seed} round {round_}: policy loss {losses[-1]:.4f}", flush=True)
    return {"codec": codec, "seed": seed, "policy_loss": losses}


def _send(tensors: dict, header: Any, shapes: dict) -> Any:
    """What arrives at the other end: the encoded payload."""
    from federation.wire.payload import open_payload, pack_tensors

    record, header_record, sealed = pack_tensors(tensors.items(), header)
    return open_payload(record, header_record, shapes, sealed)


def main() -> None:
    """Run all codecs and seeds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/codec_accuracy.json"))
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    arguments = parser.parse_args()
    jobs = [(codec, seed, arguments.data) for seed in SEEDS for codec in CODECS]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        runs = pool.map(run_federation, jobs, chunksize=1)
    final = {
        codec: float(np.mean([run["policy_loss"][-1] for run in runs if run["codec"] == codec]))
        for codec in CODECS
    }
    result = {
        "rounds": ROUNDS,
        "seeds": SEEDS,
        "final_policy_loss_mean": final,
        "ratio_to_fp32": {codec: final[codec] / final["fp32"] for codec in CODECS},
        "runs": runs,
    }
    for codec in CODECS:
        print(f"{codec}: {final[codec]:.4f}, {result['ratio_to_fp32'][codec]:.4f} of fp32")
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
