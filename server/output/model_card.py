"""The model card of an exported policy: the README.md that the Hub shows, made from the run's record.

It names sites by the aliases they joined under, and nothing else of them but what they reported. HTML in a
value is escaped: the Hub shows the card as a web page.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, StrictUndefined

from federation.data.joint_units import DEGREES
from federation.privacy_budget import NOT_COVERED
from server.run.accountant import format_max_epsilon
from server.run.recorded import evaluations_behind

__all__ = ["model_card"]

_MAX_ROWS = 12  # of sites
_STRATEGIES = {"fedprox": "FedProx", "fedavg": "FedAvg", "fedavgm": "FedAvgM", "fedadam": "FedAdam"}

_CARD = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
_TEMPLATE = _CARD.from_string("""\
{% set arm %}
  --robot.type=so101_follower --robot.port=/dev/ttyACM0 --robot.id=my_arm \\
  --robot.use_degrees={{ "true" if in_degrees else "false" }} --fps={{ fps }} \\
  --robot.cameras="{
{%- for name in cameras -%}
{{ name }}: {type: opencv, index_or_path: {{ loop.index0 }}, width: 640, height: 480, fps: {{ fps }}}
{%- if not loop.last %}, {% endif %}
{%- endfor -%}
}" \\
  --task="what the arm is to do, in the words of the demonstrations"
{%- endset %}
---
license: apache-2.0
library_name: lerobot
pipeline_tag: robotics
{% if is_hub_id %}
base_model: {{ config["policy.pretrained"] }}
{% if alone %}
base_model_relation: adapter
{% endif %}
{% endif %}
tags: [lerobot, robotics, smolvla, so100, so101, federated-learning, flower{{ ", lora, peft" if adapter }}]
---

# SmolVLA, trained by {{ metrics.nodes | length }} sites together

A SmolVLA policy for SO-100/SO-101 arms, trained from
{{- " the pretrained policy" if config["policy.size"] == "pretrained" else " random weights" }} by federated \
learning: demonstrations stayed at the sites, only model updates left them. Run `{{ metrics.run }}`, weights \
after round {{ round }} of {{ config["run.num_rounds"] }}.
{% if adapter %}

Trained was {{ adapter }}.
{% if alone %}
This folder holds it alone, and LeRobot loads it over its base: `base_model_name_or_path` in \
`adapter_config.json` names that. If it is a folder, give its path on your machine there.
{% else %}
It is merged into these weights: whoever loads them needs nothing of it.
{% endif %}
{% endif %}

- in: `observation.state` (6), {% for name in cameras %}`observation.images.{{ name }}`, {% endfor %}a task \
in words
- out: {{ config["policy.chunk_size"] }} actions (6):
{{- " degrees" if in_degrees else " -100 to 100 of its range" }} for each of the five joints, 0 to 100 for \
the gripper; {{ fps }} a second, as recorded
- the normalisation of the whole federation is in the processors

## Run it

With the policy and the arm at one computer:

```
pip install "lerobot[smolvla,dataset,{{ "peft" if alone else "async" }},feetech]=={{ lerobot }}"
cd this-folder
lerobot-rollout --policy.path=. --duration=60 \\
{{ arm }}
```
{% if alone %}

LeRobot's server for a policy on another computer loads whole policies only: give it `pretrained_model`, \
which stands beside this folder.
{% else %}

With the policy on another computer, reached over `ssh -L 8080:localhost:8080` (LeRobot's server asks nobody
for a password):

```
python -m lerobot.async_inference.policy_server --host=127.0.0.1 --port=8080
python -m lerobot.async_inference.robot_client --server_address=127.0.0.1:8080 \\
  --policy_type=smolvla --pretrained_name_or_path=. --policy_device=cuda \\
  --actions_per_chunk={{ config["policy.chunk_size"] }} \\
{{ arm }}
```
{% endif %}

Cameras bear the names they had in training, their numbers are yours (`lerobot-find-cameras`), and so is the
arm's port (`lerobot-find-port`); the arm is calibrated as for the demonstrations (`lerobot-calibrate`).
If `config.json` names the VLM `./vlm`, start
LeRobot's tools inside this folder, as above. In simulation: `lerobot-eval --policy.path=. --env.type=...`.

## Data

| site | episodes | frames |
| --- | --- | --- |
{% for site, episodes, frames in sites %}
| {{ site }} | {{ episodes }} | {{ frames }} |
{% endfor %}

## Evaluation

On data that no site trained on.

| weights | flow-matching loss | action MSE (squares of the units above) | frames |
| --- | --- | --- | --- |
{% for n, found in evaluations %}
| {{ "round %d" | format(n) if n else "before training" }} | {{ "%.4f" | format(found.policy_loss) }} \
| {{ "%.3f" | format(found.action_mse) }} | {{ found.frames }} |
{% endfor %}
{% if plot %}

![Recorded and predicted actions of one held-out episode]({{ plot }})
{% endif %}
{% if simulated %}

In closed loop on a simulated SO-101:

| weights | success rate | 95 % interval | episodes |
| --- | --- | --- | --- |
{% for found in simulated %}
| round {{ found.round }} | {{ "{:.0%}".format(found.success_rate) }} \
| {{ "{:.0%} to {:.0%}".format(*found.interval) }} | {{ found.episodes }} |
{% endfor %}
{% endif %}

## Training

Strategy: {{ strategy }}, aggregated by {{ config["aggregation.method"] }}.

| setting | value |
| --- | --- |
{% for key in [
  "training.local_steps", "training.local_epochs", "training.batch_size", "training.learning_rate",
  "training.schedule", "training.proximal_mu", "training.keep_optimizer", "aggregation.strategy",
  "aggregation.method", "federation.fraction_fit", "wire.download", "wire.upload", "policy.size",
  "policy.chunk_size", "run.seed",
] + lora_settings if key in config %}
| `{{ key }}` | {{ config[key] }} |
{% endfor %}
{% if epsilon %}

Differential privacy of each site: {{ epsilon }}. {{ not_covered | safe }}
{% endif %}

## Licence and limits

Apache-2.0. Trained on the sites' tasks, cameras and arms only: expect it to fail elsewhere. Keep a hand at \
the power switch while it drives a real arm.
""")


def model_card(metrics: Mapping[str, Any], round_: int, *, alone: bool = False, plot: str = "") -> str:
    """Return the card as Markdown with the Hub's front matter.

    Args:
        metrics: the run's record, as in `federated_metrics.json`.
        round_: after which the weights were taken.
        alone: the folder holds the adapter and not what it is merged into.
        plot: file beside the card that shows predicted and recorded actions; "": there is none.
    """
    config = metrics["config"]
    base = config["policy.pretrained"]
    # The newest evaluation that tells of the weights, and that before training.
    found = evaluations_behind(metrics, round_)
    adapter = _describe_adapter(config)
    return _TEMPLATE.render(
        metrics=metrics,
        config=config,
        round=round_,
        alone=alone,
        plot=plot,
        adapter=adapter,
        lora_settings=[key for key in config if key.startswith("policy.lora_")] if adapter else [],
        is_hub_id=config["policy.size"] == "pretrained" and base.count("/") == 1 and base[0] not in "./~",
        cameras=[name.strip() for name in config["policy.cameras"].split(",")],
        in_degrees=config.get("policy.joint_units", DEGREES) == DEGREES,
        fps=config.get("policy.fps", 30),
        sites=_sites(metrics["nodes"]),
        evaluations=[(n, found[n]) for n in sorted({0, max(found, default=0)} & found.keys())],
        simulated=[entry for entry in metrics.get("simulated", []) if entry["round"] <= round_],
        strategy=_STRATEGIES[config["aggregation.strategy"]],
        # Of the whole run, also of rounds after the card's: the sites have paid for all of them.
        epsilon=format_max_epsilon(metrics["privacy"]) if "privacy" in metrics else "",
        not_covered=NOT_COVERED,
        lerobot=version("lerobot"),
    )


def _describe_adapter(config: Mapping[str, Any]) -> str:
    """Return what was trained in the place of the policy's own weights; nothing if these were."""
    if config.get("policy.adapter", "none") == "none":
        return ""
    rank = config["policy.lora_rank"]
    alpha = config["policy.lora_alpha"] or rank
    frozen = ", of whose two factors one stayed as it was drawn" if config["policy.lora_train"] == "b" else ""
    return f"a LoRA adapter of rank {rank} and alpha {alpha}{frozen}"


def _sites(nodes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Return name, episodes and frames of each site; of many only their sum and their range."""
    rows = [(name, facts.get("episodes", 0), facts.get("frames", 0)) for name, facts in sorted(nodes.items())]
    if len(rows) <= _MAX_ROWS:
        return rows
    _, episodes, frames = zip(*rows, strict=True)
    words = (("smallest", min), ("largest", max), (f"all {len(nodes)}", sum))
    return [(word, choose(episodes), choose(frames)) for word, choose in words]
