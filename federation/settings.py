"""Every setting of a run: its section, type, default, limits and meaning, and nothing else.

The single source of what `federation/config.py` accepts, of `docs/configuration.md` and of the defaults in
pyproject.toml (`federation/config_document.py`). Pydantic checks a section when it is made, also by
`replace`, by the types of `federation/setting_types.py`.
"""

import math
from typing import Literal

from pydantic.dataclasses import dataclass

from federation.setting_types import STRICT, Real, Whole, setting

__all__ = [
    "AggregationConfig",
    "CheckpointConfig",
    "EvaluationConfig",
    "FederationConfig",
    "HubConfig",
    "PolicyConfig",
    "PrivacyConfig",
    "RunConfig",
    "RunSection",
    "TrackingConfig",
    "TrainingConfig",
    "WireConfig",
]


@dataclass(frozen=True, config=STRICT)
class RunSection:
    """Identity and length of a run."""

    name: str = setting("", "folder in `outputs/`; by `make` and `up` made of file name, date and time")
    seed: Whole = setting(0, "draws initial weights, sampled nodes and the order of frames", ge=0)
    num_rounds: Whole = setting(20, "rounds of the whole run, those before a continuation included", ge=1)
    resume: bool = setting(False, "continue `outputs/NAME` after its newest checkpoint")
    deliver: Literal["end", "never", "only"] = setting(
        "end",
        "when the sites of the run get its exported policy: `end` of the run, or later where a site was off; "
        "`never`; `only`: train nothing, send that of `outputs/NAME` (`so100-server deliver`)",
    )


@dataclass(frozen=True, config=STRICT)
class FederationConfig:
    """Who takes part in a round and how long it may take."""

    fraction_fit: Real = setting(1.0, "share of the online nodes sampled each round", gt=0, le=1)
    min_nodes: Whole = setting(2, "nodes that must be online before a round starts", ge=1)
    min_updates: Whole = setting(1, "with fewer good updates a round does not change the weights", ge=1)
    round_deadline_seconds: Real = setting(1800.0, "longest time that a round may take", gt=0)
    quorum: Real = setting(
        0.75, "share of nodes after whose replies the others have limited time", gt=0, le=1
    )
    straggler_factor: Real = setting(4.0, "their time limit, in median reply times", ge=1)
    partial_work: bool = setting(
        False,
        "a slow site takes as many `local_steps` as fit into the middle one's time, and weighs the same",
    )
    join_timeout_seconds: Real = setting(300.0, "then the log names missing sites; the run waits on", gt=0)


@dataclass(frozen=True, config=STRICT)
class PolicyConfig:
    """Which SmolVLA is trained, and on what recordings."""

    size: Literal["tiny", "small", "smolvla", "pretrained"] = setting(
        "pretrained",
        "`tiny` (demo), `small` (trained whole, `make arm`), `smolvla` (full size, random weights) or the "
        "policy that `pretrained` names",
    )
    pretrained: str = setting(
        "lerobot/smolvla_base",
        "Hub id or folder of the policy to fine-tune, or `run:NAME`, an earlier run's that the sites have",
    )
    vlm: str = setting("", "Hub id or folder that overrides the pretrained policy's `vlm_model_name`")
    cameras: str = setting("top,wrist", "what the policy sees, as `observation.images.<each of these>`")
    empty_cameras: Whole = setting(0, "how many of them a site may lack", ge=0)
    chunk_size: Whole = setting(50, "actions predicted at once", ge=1)
    joint_units: Literal["degrees", "range"] = setting(
        "degrees",
        "what all sites record joints in: `degrees`, as LeRobot does by default, or `range` (-100 to 100, "
        "`--robot.use_degrees=false`). No dataset states its units, so its numbers are compared with them: "
        "an arm driven in the wrong ones moves wrongly",
    )
    fps: Whole = setting(30, "frames per second of all recordings: how long an action lasts", ge=1)
    normalisation: Literal["federated", "pretrained"] = setting(
        "federated",
        "whose statistics normalise states and actions: all nodes' merged, or the pretrained policy's",
    )
    adapter: Literal["none", "lora"] = setting(
        "none",
        "`lora`: the policy that `pretrained` names stays as it is, and an adapter of low rank is trained "
        "and travels: 3 MB a round in the place of 100. Wants about ten times the learning rate",
    )
    lora_rank: Whole = setting(64, "of the adapter's matrices; its size goes with it", ge=1, le=1024)
    lora_alpha: Whole = setting(
        0, "the adapter counts by `lora_alpha / lora_rank`; 0: as much as the rank, so by 1", ge=0
    )
    lora_targets: str = setting(
        "",
        "regular expression of the whole names of the layers that get an adapter; empty: LeRobot's choice, "
        "the action expert's queries and values and the five projections",
    )
    lora_train: Literal["both", "b"] = setting(
        "both",
        "`both` factors of the adapter, or `b` alone (FFA-LoRA): the other stays as the seed drew it. Half "
        "the bytes, and the mean over the sites is exact",
    )

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The configured cameras in order, e.g. `("top", "wrist")`."""
        return tuple(name.strip() for name in self.cameras.split(","))


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """What a SuperNode does in one round. Defaults follow LeRobot's SmolVLA presets."""

    local_steps: Whole = setting(200, "optimizer steps of a site in a round", ge=1)
    local_epochs: Real = setting(
        0.0,
        "passes over a site's own frames instead: more data, more steps; 0: `local_steps`. The schedule "
        "then counts a site's steps as their share of `local_steps`, so that all sites are equally far. No "
        "site weighs more than the lower median of the round's sites, whatever it claims",
        ge=0,
    )
    batch_size: Whole = setting(16, "frames of one batch", ge=1)
    gradient_accumulation_steps: Whole = setting(1, "batches of one optimizer step, for small GPUs", ge=1)
    proximal_mu: Real = setting(0.001, "FedProx's mu; 0 is FedAvg", ge=0)
    adapt_proximal_mu: bool = setting(False, "double mu while the sites' losses lie far apart")
    learning_rate: Real = setting(1e-4, "the highest one, after warm-up", gt=0)
    min_learning_rate: Real = setting(2.5e-6, "where the cosine ends", ge=0)
    schedule: Literal["cosine", "warm_restarts", "constant"] = setting(
        "cosine", "of the learning rate, over the whole run"
    )
    restart_rounds: Whole = setting(10, "rounds of one cycle of `warm_restarts`", ge=1)
    warmup_steps: Whole = setting(100, "counted over the whole run, not each round", ge=0)
    weight_decay: Real = setting(1e-10, "of AdamW", ge=0)
    grad_clip_norm: Real = setting(10.0, "norm to which a larger gradient is scaled down", gt=0)
    keep_optimizer: bool = setting(
        True, "AdamW's moments stay at the site from round to round (1.6 GB of its disk at full size)"
    )
    num_workers: Whole = setting(2, "data loading processes on a SuperNode", ge=0)

    def steps_in_round(self, num_frames: int) -> int:
        """Return the optimizer steps of a site with so many frames: `local_steps`, or for `local_epochs`."""
        if not self.local_epochs:
            return self.local_steps
        return math.ceil(self.local_epochs * num_frames / self.frames_in_step)

    def steps_taken(self, num_examples: int) -> int:
        """Return the optimizer steps that trained on so many frames."""
        return math.ceil(num_examples / self.frames_in_step)

    @property
    def frames_in_step(self) -> int:
        """Frames that go into one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True, config=STRICT)
class AggregationConfig:
    """How the updates of a round become a change of the global weights."""

    strategy: Literal["fedprox", "fedavg", "fedavgm", "fedadam"] = setting(
        "fedprox",
        "`fedprox`: the mean of the updates, trained with `proximal_mu`; `fedavg`: no proximal term; "
        "`fedavgm`: FedProx at the sites and momentum on the server, good for long runs; `fedadam`: moves "
        "every weight by up to `server_learning_rate` a round",
    )
    method: Literal["mean", "median", "trimmed_mean", "krum"] = setting(
        "mean",
        "`mean`, or against bad sites `median`, `trimmed_mean` (from three updates on; below, the median) "
        "or `krum`. Of two sites nobody can know which one is bad: at least three",
    )
    max_norm_ratio: Real = setting(
        10.0,
        "from three updates on, norms beyond this many times the median are rejected, and with any number "
        "those that no training at this learning rate makes; with 0 or `privacy.mode` `central` none are",
        ge=0,
    )
    clip_norm: Real = setting(0.0, "`mean`: larger updates are scaled down to it; 0: never", ge=0)
    trim_fraction: Real = setting(
        0.2, "`trimmed_mean`: cut at either end, one update at least", ge=0, le=0.49
    )
    byzantine: Whole = setting(
        1,
        "`krum`: how many bad nodes to withstand; of fewer than 2 * byzantine + 3 updates it takes the "
        "median",
        ge=0,
    )
    server_learning_rate: Real = setting(
        1.0, "`fedavgm`, `fedadam`: for the latter 0.002 or so, above 0.1 is refused", gt=0
    )
    server_momentum: Real = setting(0.3, "`fedavgm`, `fedadam`", ge=0, le=0.999)


@dataclass(frozen=True, config=STRICT)
class PrivacyConfig:
    """Differential privacy of each site; the record has the epsilon spent over all releases."""

    mode: Literal["none", "central", "local"] = setting(
        "none", "who adds the noise: nobody, the server, or each site"
    )
    # With a smaller C the noise and what it hides would be numbers that fp32 cannot hold apart.
    clip_norm: Real = setting(1.0, "C: no update counts for more", ge=1e-6)
    noise_multiplier: Real = setting(1.0, "z: standard deviation of the noise over C", gt=0)
    delta: Real = setting(1e-5, "of the epsilon that is recorded", gt=0, le=0.1)


@dataclass(frozen=True, config=STRICT)
class WireConfig:
    """How what travels is encoded."""

    download: Literal["fp32", "bf16"] = setting("bf16", "global weights, server to node")
    upload: Literal["fp32", "bf16", "int8", "int4"] = setting(
        "int8", "updates, node to server; `int8`, `int4` with error feedback; `int4` costs some success"
    )


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """Server-side evaluation on held-out datasets, and in simulation."""

    eval_frequency: Whole = setting(1, "every how many rounds; the last round always", ge=1)
    eval_mode: Literal["quick", "full"] = setting("quick", "some or all episodes of each dataset")
    quick_episodes: Whole = setting(4, "first N episodes of each dataset in `quick`", ge=1)
    frame_stride: Whole = setting(15, "every n-th frame is evaluated: neighbours are near copies", ge=1)
    batch_size: Whole = setting(16, "frames of one batch", ge=1)
    ema_decay: Real = setting(
        0.0,
        "evaluate and export the average d * average + (1 - d) * weights over the rounds; 0: off",
        ge=0,
        le=0.999,
    )
    rollback_ratio: Real = setting(
        2.0,
        "a policy loss beyond this many times the best takes the weights back to the best round; 0: only NaN "
        "or infinity does; else above 1",
        ge=0,
    )
    patience: Whole = setting(0, "end after so many evaluations in a row without gain; 0: never", ge=0)
    min_gain: Real = setting(
        0.01, "least relative improvement, over the last loss that was one, that counts", ge=0, le=0.5
    )
    sim_frequency: Whole = setting(0, "every how many rounds it drives the simulated arm; 0: never", ge=0)
    sim_episodes: Whole = setting(20, "simulated picks of one such evaluation", ge=1)
    sim_variants: str = setting("site-a,site-b", "scenes that they are in, in turn")


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """What is kept of the global weights: the last and the best always."""

    frequency: Whole = setting(1, "every how many rounds; a resume does later ones again", ge=1)
    keep: Whole = setting(3, "newest N are kept, and the best one besides", ge=1)
    keep_every: Whole = setting(10, "and those of every Nth round, to go back to; 0: none", ge=0)


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Where a run's figures go besides its record; TensorBoard event files are always written."""

    wandb: Literal["off", "offline", "online"] = setting(
        "off", "Weights & Biases; `online` needs WANDB_API_KEY on the server"
    )
    wandb_project: str = setting("so100-federation", "its project there")


@dataclass(frozen=True, config=STRICT)
class HubConfig:
    """Where the policy is pushed on the Hugging Face Hub; the token is HF_TOKEN on the server (in `.env`)."""

    repo: str = setting("", "owner/name, made if it is missing; empty: nothing is pushed")
    private: bool = setting(True, "whether a repository that is made is private")
    push_frequency: Whole = setting(
        0, "every how many rounds, tagged `RUN-round-N`, besides at the end; 0: never", ge=0
    )


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """One federated run."""

    run: RunSection = RunSection()
    federation: FederationConfig = FederationConfig()
    policy: PolicyConfig = PolicyConfig()
    training: TrainingConfig = TrainingConfig()
    wire: WireConfig = WireConfig()
    aggregation: AggregationConfig = AggregationConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    hub: HubConfig = HubConfig()
