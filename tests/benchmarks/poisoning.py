"""What does one poisoned site of five, three or two cost? Held-out policy loss by attack and rule.

    python -m tests.benchmarks.poisoning [--out tests/benchmarks/poisoning.json]

The tiny policy on small synthetic datasets; training, wire, verification and aggregation are the project's
own, `run_round` included. Only Flower's transport is left out. The poisoned site trains as the others do and
then spoils its update, with a valid hash: it is a member that cheats. "false count" turns its update round
and claims 1e9 frames under `local_epochs`. `default` is the configuration as it comes; `ratio` is the final
loss over that of the honest run of as many sites with it. The goal is at most 1.05 for the robust rules from
three sites on.

2026-11-27, six minutes on two cores: with five sites every rule, the default included, stays within 1.01 of
the honest run under every attack. With three and two sites a turned update costs 1.10 to 1.16 under any rule,
and so does one with a false count: a site counts for the median of the sites at most.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 4
SITES = ("site-a", "site-b", "site-c", "site-d", "site-e")
ATTACKS = ("none", "sign flip", "times 1000", "noise", "tiny", "false count")
RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "median": {"aggregation.method": "median"},
    "trimmed_mean": {"aggregation.method": "trimmed_mean"},
    "krum": {"aggregation.method": "krum", "aggregation.byzantine": 1},
}
# Number of sites -> rule -> attacks. Below five krum takes the median, of two every rule is the mean.
CASES: dict[int, dict[str, tuple[str, ...]]] = {
    5: {"default": ATTACKS, **dict.fromkeys(("median", "trimmed_mean", "krum"), ATTACKS[1:4])},
    3: {"default": ATTACKS, **dict.fromkeys(("median", "trimmed_mean"), ATTACKS[1:3])},
    2: {"default": ATTACKS},
}
SETTINGS = {
    "policy.size": "tiny",
    "run.num_rounds": ROUNDS,
    "training.local_steps": 8,
    "training.batch_size": 4,
    "training.num_workers": 0,
    "training.learning_rate": 2e-3,
    "training.warmup_steps": 0,
    "evaluation.frame_stride": 5,
}
_FRAMES_IN_ROUND = 32  # eight steps of four
_NOISE_RATIO = 5.0  # norm of the noise over that of the honest update: too small to be refused for it


def run_federation(job: tuple[int, str, str, Path]) -> dict[str, Any]:
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

    count, rule, attack, data = job
    sites = SITES[:count]
    poisoned = sites[-1]
    torch.set_num_threads(1)
    frames = {name: describe_dataset(data / name).frames for name in sites}
    settings = SETTINGS | RULES[rule]
    if attack == "false count":  # as many steps as without
        settings |= {"training.local_epochs": _FRAMES_IN_ROUND / min(frames.values())}
        frames[poisoned] = 10**9
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
            update = spoil(result.update, seed) if site == poisoned else result.update
            header = Header(config.wire.upload, "benchmark", round_, received.header.sha256)
            arrays, header_record, sealed = pack_tensors(update.items(), header)
            sent = open_payload(arrays, header_record, shapes, sealed)
            residual = {name: update[name] - decoded for name, decoded in sent.tensors()}
            keep_residual(scratch / site, "benchmark", round_, residual)
            metrics = {k: v for k, v in vars(result).items() if k != "update"}
            if attack == "false count" and site == poisoned:
                training = config.training
                metrics["num_examples"] = training.steps_in_round(10**9) * training.frames_in_step
            metrics |= {"setup_seconds": 0.0, "download_bytes": received.size_bytes}
            metrics |= {"device_memory_bytes": 0, "received_at": time.time(), "answered_at": time.time()}
            return RecordDict({UPDATE: arrays, HEADER: header_record, METRICS: MetricRecord(metrics)})

        def spoil(update: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
            if attack in ("sign flip", "false count"):
                return {name: -tensor for name, tensor in update.items()}
            if attack == "tiny":
                norm = torch.stack([tensor.norm() for tensor in update.values()]).norm()
                return {name: 1e-6 / norm * tensor for name, tensor in update.items()}
            if attack == "times 1000":
                return {name: 1000 * tensor for name, tensor in update.items()}
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
            f"{count} sites, {rule}, {attack}: policy loss {losses[-1]:.4f}, {refused} updates rejected",
            flush=True,
        )
    return {"sites": count, "rule": rule, "attack": attack, "policy_loss": losses, "refused": refused}


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
            (n, rule, attack, data) for n, rules in CASES.items() for rule in rules for attack in rules[rule]
        ]
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            runs = pool.map(run_federation, jobs, chunksize=1)
    final = {(run["sites"], run["rule"], run["attack"]): run["policy_loss"][-1] for run in runs}
    honest = {count: final[count, "default", "none"] for count in CASES}
    ratios = {
        str(count): {
            rule: {attack: final[count, rule, attack] / honest[count] for attack in attacks}
            for rule, attacks in rules.items()
        }
        for count, rules in CASES.items()
    }
    print(f"{'ratio to the honest run':24}" + "".join(f"{attack:>13}" for attack in ATTACKS))
    for count, by_rule in ratios.items():
        for rule, by_attack in by_rule.items():
            cells = (f"{by_attack[attack]:.3f}" if attack in by_attack else "" for attack in ATTACKS)
            print(f"{f'{count} sites, {rule}':24}" + "".join(f"{cell:>13}" for cell in cells))
    result = {"rounds": ROUNDS, "honest_policy_loss": honest, "ratio_to_honest": ratios, "runs": runs}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
