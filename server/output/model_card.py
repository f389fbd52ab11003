"""The model card of an exported policy: the README.md that the Hub shows, made from the run's record.

It names sites by the aliases they joined under, and nothing else of them but what they reported.
"""

from collections.abc import Mapping
from typing import Any

from federation.data.joint_units import DEGREES, RANGE
from server.run.accountant import format_max_epsilon
from server.run.recorded import evaluations_behind

__all__ = ["model_card"]

_SHOWN = (
    "training.local_steps",
    "training.local_epochs",
    "training.batch_size",
    "training.learning_rate",
    "training.schedule",
    "training.proximal_mu",
    "training.keep_optimizer",
    "aggregation.strategy",
    "aggregation.method",
    "federation.fraction_fit",
    "wire.download",
    "wire.upload",
    "policy.size",
    "policy.chunk_size",
    "run.seed",
)

_MAX_ROWS = 12  # of sites
_STRATEGIES = {"fedprox": "FedProx", "fedavg": "FedAvg", "fedavgm": "FedAvgM", "fedadam": "FedAdam"}


def model_card(metrics: Mapping[str, Any], round_: int) -> str:
    """Markdown with the Hub's front matter.

    Args:
        metrics: the run's record, as in `federated_metrics.json`.
        round_: after which the weights were taken.
    """
    config = metrics["config"]
    base = config["policy.pretrained"]
    is_hub_id = config["policy.size"] == "pretrained" and base.count("/") == 1 and base[0] not in "./~"
    front = [
        "---",
        "license: apache-2.0",
        "library_name: lerobot",
        "pipeline_tag: robotics",
        *([f"base_model: {base}"] if is_hub_id else []),
        "tags: [lerobot, robotics, smolvla, so100, so101, federated-learning, flower]",
        "---",
    ]
    cameras = ", ".join(
        f"`observation.images.{name.strip()}`" for name in config["policy.cameras"].split(",")
    )
    units = config.get("policy.joint_units", DEGREES)
    fps = config.get("policy.fps", 30)
    start = "the pretrained policy" if config["policy.size"] == "pretrained" else "random weights"
    sections = [
        "\n".join(front),
        f"# SmolVLA, trained by {len(metrics['nodes'])} sites together\n\n"
        f"A SmolVLA policy for SO-100/SO-101 arms, trained from {start} by federated learning: "
        f"demonstrations stayed at the sites, only model updates left them. Run `{metrics['run']}`, "
        f"weights after round {round_} of {config['run.num_rounds']}.",
        f"- in: `observation.state` (6), {cameras}, a task in words\n"
        f"- out: {config['policy.chunk_size']} actions (6): {_UNITS[units]} for each of the five joints, "
        f"0 to 100 for the gripper; {fps} a second, as recorded\n"
        "- the normalisation of the whole federation is in the processors",
        "## Run it\n\n" + _run_it(config, units, fps),
        "## Data\n\n" + _sites(metrics["nodes"]),
        "## Evaluation\n\n" + _evaluation(metrics, round_),
        f"## Training\n\nStrategy: {_STRATEGIES[config['aggregation.strategy']]}, aggregated by "
        f"{config['aggregation.method']}.\n\n"
        + _table(("setting", "value"), [(f"`{key}`", config[key]) for key in _SHOWN if key in config])
        + _privacy(metrics),
        "## Licence and limits\n\nApache-2.0. Trained on the sites' tasks, cameras and arms only: expect it "
        "to fail elsewhere. Keep a hand at the power switch while it drives a real arm.",
    ]
    return "\n\n".join(sections) + "\n"


_UNITS = {DEGREES: "degrees", RANGE: "-100 to 100 of its range"}


def _run_it(config: Mapping[str, Any], units: str, fps: int) -> str:
    """LeRobot's commands for an arm, with this policy's cameras, units and rate."""
    cameras = ", ".join(
        f"{name.strip()}: {{type: opencv, index_or_path: {index}, width: 640, height: 480, fps: {fps}}}"
        for index, name in enumerate(config["policy.cameras"].split(","))
    )
    arm = f"""  --robot.type=so101_follower --robot.port=/dev/ttyACM0 --robot.id=my_arm \\
  --robot.use_degrees={str(units == DEGREES).lower()} --fps={fps} \\
  --robot.cameras="{{{cameras}}}" \\
  --task="what the arm is to do, in the words of the demonstrations\""""
    return f"""With the policy and the arm at one computer:

```
pip install "lerobot[smolvla,async,feetech]"
cd this-folder
lerobot-rollout --policy.path=. --duration=60 \\
{arm}
```

With the policy on another computer, reached over `ssh -L 8080:localhost:8080` (LeRobot's server asks nobody
for a password):

```
python -m lerobot.async_inference.policy_server --host=127.0.0.1 --port=8080
python -m lerobot.async_inference.robot_client --server_address=127.0.0.1:8080 \\
  --policy_type=smolvla --pretrained_name_or_path=. --policy_device=cuda \\
  --actions_per_chunk={config["policy.chunk_size"]} \\
{arm}
```

Cameras bear the names they had in training, their numbers are yours (`lerobot-find-cameras`); the arm is
calibrated as for the demonstrations (`lerobot-calibrate`). If `config.json` names the VLM `./vlm`, start
LeRobot's tools inside this folder, as above. In simulation: `lerobot-eval --policy.path=. --env.type=...`."""


def _sites(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table with a row for each site; of many only their sum and their range."""
    rows = {name: (facts.get("episodes", 0), facts.get("frames", 0)) for name, facts in sorted(nodes.items())}
    if len(rows) > _MAX_ROWS:
        episodes, frames = zip(*rows.values(), strict=True)
        words = (("smallest", min), ("largest", max), (f"all {len(nodes)}", sum))
        rows = {word: (choose(episodes), choose(frames)) for word, choose in words}
    return _table(("site", "episodes", "frames"), [(name, *counts) for name, counts in rows.items()])


def _privacy(metrics: Mapping[str, Any]) -> str:
    """Of the whole run, also of rounds after the card's: the sites have paid for all of them."""
    if "privacy" not in metrics:
        return ""
    privacy = metrics["privacy"]
    return f"\n\nDifferential privacy of each site: {format_max_epsilon(privacy)}. {privacy['not_covered']}"


def _evaluation(metrics: Mapping[str, Any], round_: int) -> str:
    """Held-out figures before training and at the newest evaluation that tells of the weights."""
    found = evaluations_behind(metrics, round_)
    rows = [
        (
            f"round {n}" if n else "before training",
            f"{found[n]['policy_loss']:.4f}",
            f"{found[n]['action_mse']:.3f}",
            found[n]["frames"],
        )
        for n in sorted({0, max(found, default=0)} & found.keys())
    ]
    text = "On data that no site trained on.\n\n" + _table(
        ("weights", "flow-matching loss", "action MSE (squares of the units above)", "frames"), rows
    )
    simulated = [s for s in metrics.get("simulated", []) if s["round"] <= round_]
    if simulated:
        text += "\n\nIn closed loop on a simulated SO-101:\n\n" + _table(
            ("weights", "success rate", "95 % interval", "episodes"),
            [
                (
                    f"round {s['round']}",
                    f"{s['success_rate']:.0%}",
                    f"{s['interval'][0]:.0%} to {s['interval'][1]:.0%}",
                    s["episodes"],
                )
                for s in simulated
            ],
        )
    return text


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
