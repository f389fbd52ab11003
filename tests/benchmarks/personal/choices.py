"""How an owner's policy is best tuned: for how many steps, how fast, and on which of its weights.

    python -m tests.benchmarks.personal.choices [--episodes 60]

Starts from the federation of seed 0 that `python -m tests.benchmarks.personal` has trained, for a new owner
with ten and with a hundred demonstrations and for one of the federation's own. What is kept out, the order of
frames, the episodes driven and, of ten, the demonstrations are drawn from other seeds than those it reports.
"""

import argparse
import dataclasses
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from client.personal.split import split_episodes
from client.recordings.samples import open_recorded_samples
from client.training import run_training_loop, setup_with_processor
from federation.config import load_run_config
from federation.data.normalisation import merge_statistics
from federation.policy.build import build_processors, trainable_parameters
from federation.policy.folder import load_policy_folder, save_policy_folder
from server.evaluation.intervals import wilson_interval
from tests.benchmarks.closed_loop.drive import drive, open_scenes, policy_controller
from tests.benchmarks.closed_loop.train import FULL_RATE
from tests.benchmarks.personal.arms import FEDERATION, Arm, first_demonstrations, recorded

_SEED, _FIRST_SEED = 100, 2_130_000_000
_VLM = "vlm_with_expert.vlm"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to tune; a proximal term keeps the weights near those that came."""

    steps: int
    learning_rate: float = 1e-3
    proximal_mu: float = 0.0
    expert_only: bool = False
    own_normalisation: bool = False  # by the owner's demonstrations, as `lerobot-train` does


CHOICES = {
    ("middle", 10): [
        *(Choice(steps) for steps in (250, 500, 1000, 2000)),
        Choice(1000, learning_rate=3e-4),
        Choice(1000, proximal_mu=0.1),
        Choice(1000, expert_only=True),
        *(Choice(steps, own_normalisation=True) for steps in (250, 1000, 2000)),
    ],
    ("middle", 100): [Choice(1000), Choice(2400), Choice(1000, own_normalisation=True)],
    ("right", 100): [Choice(2400), Choice(4800)],
}


def tuned(choice: Choice, scene: str, demonstrations: int, work: Path) -> Path:
    """Return the folder of the policy tuned in this way, if it is not in `work` yet tuned first."""
    fields = "-".join(str(value) for value in dataclasses.astuple(choice))
    folder = work / f"choice-{scene}-{demonstrations}-{fields}"
    if (folder / "config.json").exists():
        return folder
    scratch = work / f".scratch-{folder.name}"
    training = load_run_config(Path("configs/arm.toml"), FULL_RATE).training
    policy, processors = load_policy_folder(work / Arm(FEDERATION, 0).name, torch.device("cpu"))
    if choice.expert_only:
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and _VLM not in name)
    arm = Arm("personal", _SEED, scene, demonstrations)
    held, _ = split_episodes(first_demonstrations(recorded(scene, Path("data/arm")), arm), _SEED)
    if choice.own_normalisation:
        processors = build_processors(policy, merge_statistics([held.statistics]))
    samples = open_recorded_samples(held, policy.config, scratch, 2 * 10**9)
    samples.fill(lambda: True)
    settings = dataclasses.replace(
        training,
        local_epochs=0.0,
        local_steps=choice.steps,
        learning_rate=choice.learning_rate,
        proximal_mu=choice.proximal_mu,
        schedule="cosine",
        warmup_steps=choice.steps // 10,
    )
    before = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
    components = setup_with_processor(settings, policy, before, processors[0], samples, _SEED)
    run_training_loop(components, 1, 1, lambda *_: None)
    shutil.rmtree(scratch)
    save_policy_folder(folder, policy.eval(), processors, "Benchmark of personal policies.\n")
    return folder


def found(choice: Choice, scene: str, demonstrations: int, episodes: int, work: Path) -> dict[str, Any]:
    """Return how often the policy tuned in this way picks up the cube of its scene."""
    torch.set_num_threads(1)
    folder = tuned(choice, scene, demonstrations, work)
    controller = policy_controller(folder, 50)
    successes = drive(controller, open_scenes([scene]), episodes, _FIRST_SEED)["successes"]
    return {
        "scene": scene,
        "demonstrations": demonstrations,
        **dataclasses.asdict(choice),
        "success_rate": sum(successes) / episodes,
        "interval": wilson_interval(sum(successes), episodes),
    }


def main() -> None:
    """Tune and drive each choice; print a line for each and write `choices.json` beside this file."""
    parser = argparse.ArgumentParser(description="How an owner's policy is best tuned.")
    parser.add_argument("--episodes", type=int, default=60, help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("outputs/personal"), help="(%(default)s)")
    arguments = parser.parse_args()
    wanted = [(choice, *whose) for whose, choices in CHOICES.items() for choice in choices]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(found, *each, arguments.episodes, arguments.work) for each in wanted]
        rows = []
        for future in futures:
            rows.append(future.result())
            print(json.dumps(rows[-1]), flush=True)
    result = {"seed": _SEED, "episodes": arguments.episodes, "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
