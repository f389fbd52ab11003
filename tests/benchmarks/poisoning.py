"""What do dishonest sites of five, three or two cost? Progress that is left, by attack and rule.

    python -m tests.benchmarks.poisoning [--out tests/benchmarks/poisoning.json]

The tiny policy on small synthetic datasets; training, wire, verification and aggregation are the project's
own, `run_round` included. Only Flower's transport is left out. A poisoned site trains as the others do and
then spoils its update, with a valid hash: it is a member that cheats. "flip" turns it round, "flip x9" does
so at nine times its norm, below `aggregation.max_norm_ratio` and often beyond what training can make; "count"
turns it round and claims 1e9 frames under `local_epochs`. `default` is the configuration as it comes.

`progress` is what the held-out policy loss fell by, over what it fell by in the honest run of as many sites:
1 costs nothing, at 0 the policy learnt nothing, below 0 it is worse than the untrained one.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 12
SITES = ("site-a", "site-b", "site-c", "site-d", "site-e")
ATTACKS = ("none", "flip", "flip x9", "x1000", "noise", "tiny", "count")
RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "median": {"aggregation.method": "median"},
    "trimmed_mean": {"aggregation.method": "trimmed_mean"},
    "krum": {"aggregation.method": "krum", "aggregation.byzantine": 1},
}
# (Sites, poisoned ones of them) -> rule -> attacks. Of two sites every rule is the mean; krum needs five.
CASES: dict[tuple[int, int], dict[str, tuple[str, ...]]] = {
    (5, 1): {"default": ATTACKS, **dict.fromkeys(("median", "trimmed_mean", "krum"), ("flip", "flip x9"))},
    (5, 2): dict.fromkeys(("default", "median", "trimmed_mean"), ("flip x9",)),
    (3, 1): {"default": ("none", "flip", "flip x9", "count"), "median": ("flip", "flip x9")},
    (2, 1): {"default": ("none", "flip", "count")},
}
SETTINGS = {
    "policy.size": "tiny",
    "run.num_rounds": ROUNDS,
    "training.local_steps": 16,
    "training.batch_size": 8,
    "training.num_workers": 0,
    "training.learning_rate": 2e-3,
    "training.warmup_steps": 0,
    "evaluation.frame_stride": 5,
}
_FRAMES_IN_ROUND = 128  # sixteen steps of eight
_FACTORS = {"flip": -1.0, "flip x9": -9.0, "x1000": 1000.0, "count": -1.0}  # of the update, by attack
_NOISE_RATIO = 5.0  # norm of the noise over that of the honest update: too small to be refused for it


def run_federation(job: tuple[tuple[int, int], str, str, Path]) -> dict[str, Any]:
    """Train `ROUNDS` rounds with one rule under one attack; the held-out policy loss after each."""
    import torch
    from flwr.app import Message, MetricRecord, RecordDict

    from client.state.feedback import add_residual, keep_residual
    from client.training import run_training_loop, setup_training_components
    from federation.config import parse_run_config
    from federation.data.description import describe_dataset
    from federation.data.normalisation import merge_statistics
    from federation.data.sample_cache import open_samples
    from federation.messages import HEADER, METRICS, UPDATE, WEIGHTS
    from federation.policy.build import build_policy, trainable_parameters
    from federation.wire.payload import Header, open_payload, pack_tensors
    from server.evaluation.held_out import Evaluator
    from server.join_answer import Node
    from server.model import GlobalModel
    from server.rounds import run_round
    from server.run.records import RunRecord
    from tests.fake_grid import FakeGrid

    (count, bad), rule, attack, data = job
    sites = SITES[:count]
    poisoned = sites[count - bad :]
    torch.set_num_threads(1)
    frames = {name: describe_dataset(data / name).frames for name in sites}
    settings = SETTINGS | RULES[rule]
    if attack == "count":  # as many steps as without
        settings |= {"training.local_epochs": _FRAMES_IN_ROUND / min(frames.values())}
        frames |= dict.fromkeys(poisoned, 10**9)
    config = parse_run_config(settings, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        policy = build_policy(config.policy, seed=0, device=torch.device("cpu"), cache=scratch)
        weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        statistics = merge_statistics([describe_dataset(data / name).statistics for name in sites])
        evaluator = Evaluator(policy, statistics, {"holdout": data / "holdout"}, config.evaluation)
        record = RunRecord(scratch / "outputs", "benchmark", config)
        model = GlobalModel(weights, statistics, "fingerprint")
        round_ = 0

        def reply(site: str, message: Message) -> RecordDict:
            received = open_payload(
                message.content.array_records[WEIGHTS],
                message.content.config_records[HEADER],
                shapes,
                Header(config.wire.download, "benchmark", round_, ""),
            )
            seed = 1000 * round_ + sites.index(site)
            samples = open_samples(data / site, policy.config, scratch / site / "samples", 10**9)
            components = setup_training_components(
                config, policy, dict(received.tensors()), statistics, samples, seed
            )
            result = run_training_loop(components, round_, ROUNDS, lambda *_: None)
            add_residual(scratch / site, "benchmark", round_, result.update)
            update = spoil(result.update, seed) if site in poisoned else result.update
            header = Header(config.wire.upload, "benchmark", round_, received.header.sha256)
            arrays, header_record, sealed = pack_tensors(update.items(), header)
            sent = open_payload(arrays, header_record, shapes, sealed)
            residual = {name: update[name] - decoded for name, decoded in sent.tensors()}
            keep_residual(scratch / site, "benchmark", round_, residual)
            metrics = {k: v for k, v in vars(result).items() if k != "update"}
            if attack == "count" and site in poisoned:
                training = config.training
                metrics["num_examples"] = training.steps_in_round(10**9) * training.frames_in_step
            metrics |= {"setup_seconds": 0.0, "download_bytes": received.size_bytes}
            metrics |= {"device_memory_bytes": 0, "received_at": time.time(), "answered_at": time.time()}
            return RecordDict({UPDATE: arrays, HEADER: header_record, METRICS: MetricRecord(metrics)})

        def spoil(update: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
            if attack in _FACTORS:
                return {name: _FACTORS[attack] * tensor for name, tensor in update.items()}
            if attack == "tiny":
                norm = torch.stack([tensor.norm() for tensor in update.values()]).norm()
                return {name: 1e-6 / norm * tensor for name, tensor in update.items()}
            if attack == "noise":
                generator = torch.Generator().manual_seed(seed)
                return {
                    name: torch.randn(tensor.shape, generator=generator)
                    * (_NOISE_RATIO * tensor.norm() / tensor.numel() ** 0.5)
                    for name, tensor in update.items()
                }
            return update

        nodes = [Node(i, site, 30, 3, frames[site], ("top",), {}) for i, site in enumerate(sites, start=10)]
        losses, refused = [evaluator.evaluate(model.weights)["policy_loss"]], 0
        for round_ in range(1, ROUNDS + 1):
            answers = {node.node_id: (lambda message, site=node.name: reply(site, message)) for node in nodes}
            entry = run_round(FakeGrid(answers), model, nodes, round_, config, record)  # type: ignore[arg-type]
            refused += len(entry.rejected)
            losses.append(evaluator.evaluate(model.weights)["policy_loss"])
        print(
            f"{bad} of {count} sites, {rule}, {attack}: policy loss {losses[-1]:.4f}, {refused} rejected",
            flush=True,
        )
    return {
        "sites": count,
        "poisoned": bad,
        "rule": rule,
        "attack": attack,
        "policy_loss": losses,
        "refused": refused,
    }


def main() -> None:
    """Run every rule under every attack, print the table, write the JSON."""
    from tests.synthetic import record_dataset

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/poisoning.json"))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        for seed, name in enumerate((*SITES, "holdout")):
            record_dataset(data / name, seed=seed)
        jobs = [
            (sites, rule, attack, data)
            for sites, rules in CASES.items()
            for rule in rules
            for attack in rules[rule]
        ]
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            runs = pool.map(run_federation, jobs, chunksize=1)
    fell = {}
    for run in runs:
        case = run["sites"], run["poisoned"], run["rule"], run["attack"]
        fell[case] = run["policy_loss"][0] - run["policy_loss"][-1]
    honest = {count: fell[count, 1, "default", "none"] for count, _ in CASES}
    progress = {
        f"{bad} of {count}": {
            rule: {attack: fell[count, bad, rule, attack] / honest[count] for attack in attacks}
            for rule, attacks in rules.items()
        }
        for (count, bad), rules in CASES.items()
    }
    print(f"{'progress that is left':22}" + "".join(f"{attack:>9}" for attack in ATTACKS[1:]))
    for sites, by_rule in progress.items():
        for rule, by_attack in by_rule.items():
            cells = (f"{by_attack[attack]:.2f}" if attack in by_attack else "" for attack in ATTACKS[1:])
            print(f"{f'{sites}, {rule}':22}" + "".join(f"{cell:>9}" for cell in cells))
    result = {"rounds": ROUNDS, "progress": progress, "runs": runs}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
