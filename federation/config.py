"""The run configuration: typed, frozen, validated once at the edge.

A run is described by one TOML file (see `configs/`). Flower carries it as a flat mapping
(`"training.local_steps" -> 30`), so this module reads both forms. Server and SuperNodes parse the same
mapping with the same code, hence a value that is refused is refused everywhere, before anything starts.
What belongs to one machine (paths, devices) is not here: it is in that machine's node configuration or
environment.
"""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.errors import ConfigError

__all__ = [
    "AggregationConfig",
    "CheckpointConfig",
    "EvaluationConfig",
    "FederationConfig",
    "HubConfig",
    "PolicyConfig",
    "RunConfig",
    "RunSection",
    "TrackingConfig",
    "TrainingConfig",
    "WireConfig",
    "flatten",
    "load_run_config",
    "parse_run_config",
]

Scalar = bool | int | float | str
_MOST_ADAM_RATE = 0.1


def _setting(
    default: Scalar,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    one_of: tuple[str, ...] | None = None,
) -> Any:
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "one_of": one_of}
    return field(default=default, metadata={k: v for k, v in limits.items() if v is not None})


@dataclass(frozen=True)
class RunSection:
    """Identity and length of a run."""

    name: str = _setting("")  # outputs/<name>; empty: a name is made from the date and time
    seed: int = _setting(0, at_least=0)
    num_rounds: int = _setting(20, at_least=1)
    resume: bool = _setting(False)  # go on with outputs/<name> after its newest checkpoint


@dataclass(frozen=True)
class FederationConfig:
    """Who takes part in a round and how long it may take."""

    fraction_fit: float = _setting(1.0, above=0, at_most=1)  # share of the online nodes sampled each round
    min_nodes: int = _setting(2, at_least=1)  # nodes that must be online before a round starts
    min_updates: int = _setting(1, at_least=1)  # good updates below which the weights stay as they are
    round_deadline_seconds: float = _setting(1800.0, above=0)
    # Once this share of the asked nodes has replied, the others get `straggler_factor` times the median
    # reply time and no more.
    quorum: float = _setting(0.75, above=0, at_most=1)
    straggler_factor: float = _setting(4.0, at_least=1)
    join_timeout_seconds: float = _setting(300.0, above=0)  # then too few nodes are reported and waited for


@dataclass(frozen=True)
class PolicyConfig:
    """Which SmolVLA is trained."""

    size: str = _setting("pretrained", one_of=("tiny", "small", "smolvla", "pretrained"))
    pretrained: str = _setting("lerobot/smolvla_base")  # Hub id or folder, for size "pretrained"
    vlm: str = _setting("")  # folder or Hub id that overrides the pretrained policy's own vlm_model_name
    cameras: str = _setting("top,wrist")  # what the policy sees, as observation.images.<each of these>
    empty_cameras: int = _setting(0, at_least=0)  # how many of them a site may lack (see `data/cameras.py`)
    chunk_size: int = _setting(50, at_least=1)  # actions predicted at once
    # What all sites' joints are recorded in: "range" is -100 to 100 (see `data/joint_units.py`).
    joint_units: str = _setting("degrees", one_of=("degrees", "range"))
    fps: int = _setting(30, at_least=1)  # of all recordings: how long an action lasts; LeRobot's default
    # Whose statistics normalise states and actions: all nodes' merged, the pretrained policy's, or, to
    # compare with, each node's own (see `data/normalisation.py`).
    normalisation: str = _setting("federated", one_of=("federated", "pretrained", "site"))

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The configured cameras in order, e.g. `("top", "wrist")`."""
        return tuple(name.strip() for name in self.cameras.split(","))


@dataclass(frozen=True)
class TrainingConfig:
    """What a SuperNode does in one round. Defaults follow LeRobot's SmolVLA presets."""

    local_steps: int = _setting(200, at_least=1)
    # Passes over the site's own frames instead of local_steps: more data, more steps. 0: local_steps. The
    # schedule counts a site's steps as their share of local_steps then, so that all sites are equally far.
    local_epochs: float = _setting(0.0, at_least=0)
    batch_size: int = _setting(16, at_least=1)
    gradient_accumulation_steps: int = _setting(1, at_least=1)  # batches of an optimizer step
    proximal_mu: float = _setting(0.001, at_least=0)  # FedProx mu; 0 is FedAvg
    adapt_proximal_mu: bool = _setting(
        False
    )  # raise mu while the sites' losses spread (`aggregation/adaptation.py`)
    learning_rate: float = _setting(1e-4, above=0)
    min_learning_rate: float = _setting(2.5e-6, at_least=0)  # where the cosine ends
    schedule: str = _setting("cosine", one_of=("cosine", "warm_restarts", "constant"))
    restart_rounds: int = _setting(10, at_least=1)  # length of a cycle of "warm_restarts"
    warmup_steps: int = _setting(100, at_least=0)  # counted over the whole run, not each round
    weight_decay: float = _setting(1e-10, at_least=0)
    grad_clip_norm: float = _setting(10.0, above=0)
    keep_optimizer: bool = _setting(True)  # AdamW's moments stay at the site from round to round
    num_workers: int = _setting(2, at_least=0)  # data loading processes on a SuperNode

    def steps_in_round(self, num_frames: int) -> int:
        """Optimizer steps of a site with so many frames: `local_steps`, or what makes `local_epochs`."""
        if not self.local_epochs:
            return self.local_steps
        return math.ceil(self.local_epochs * num_frames / self.frames_in_step)

    def steps_taken(self, num_examples: int) -> int:
        """Optimizer steps that trained on so many frames."""
        return math.ceil(num_examples / self.frames_in_step)

    @property
    def frames_in_step(self) -> int:
        """Frames that go into one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True)
class AggregationConfig:
    """How the updates of a round become a change of the global weights (see `server/aggregation/`)."""

    # "fedprox" is the mean of the updates, trained with training.proximal_mu; "fedavg" the same without the
    # proximal term; "fedavgm" and "fedadam" give the mean, trained as for "fedprox", to a server optimizer.
    strategy: str = _setting("fedprox", one_of=("fedprox", "fedavg", "fedavgm", "fedadam"))
    method: str = _setting("mean", one_of=("mean", "median", "trimmed_mean", "krum"))
    # From three updates on, one with a norm beyond this many times the median is refused; with any number,
    # one that no training at this learning rate makes. 0, or privacy.mode "central", which clips it: none is.
    # See `server/aggregation/verification.py`.
    max_norm_ratio: float = _setting(10.0, at_least=0)
    clip_norm: float = _setting(0.0, at_least=0)  # "mean": larger updates are scaled down to it; 0: never
    # "trimmed_mean": cut at either end, one update at least; of fewer than three updates it takes the median.
    trim_fraction: float = _setting(0.2, at_least=0, at_most=0.49)
    # "krum": how many bad nodes to withstand; of fewer than 2 * byzantine + 3 updates it takes the median.
    byzantine: int = _setting(1, at_least=0)
    server_learning_rate: float = _setting(1.0, above=0)  # "fedavgm"; "fedadam" wants 0.1 at the very most
    server_momentum: float = _setting(0.3, at_least=0, at_most=0.999)  # the same; 0.3: tests/benchmarks/study


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of each site (see `run/accountant.py`, `privacy_budget.py`)."""

    mode: str = _setting("none", one_of=("none", "central", "local"))
    clip_norm: float = _setting(1.0, above=0)  # C: no update counts for more
    noise_multiplier: float = _setting(1.0, above=0)  # z: deviation of the noise over C
    delta: float = _setting(1e-5, above=0, at_most=0.1)


@dataclass(frozen=True)
class WireConfig:
    """How what travels is encoded (see `wire/codec.py`)."""

    download: str = _setting("bf16", one_of=("fp32", "bf16"))  # global weights, server to node
    upload: str = _setting("int8", one_of=("fp32", "bf16", "int8", "int4"))  # updates, node to server


@dataclass(frozen=True)
class EvaluationConfig:
    """Server-side evaluation on held-out datasets."""

    eval_frequency: int = _setting(1, at_least=1)  # every how many rounds; the last round always
    eval_mode: str = _setting("quick", one_of=("quick", "full"))
    quick_episodes: int = _setting(4, at_least=1)  # first N episodes of each dataset in "quick"
    frame_stride: int = _setting(15, at_least=1)  # evaluate every n-th frame: neighbours are near copies
    batch_size: int = _setting(16, at_least=1)
    # What is evaluated and exported is the average d * average + (1 - d) * weights over the rounds; 0: off.
    ema_decay: float = _setting(0.0, at_least=0, at_most=0.999)
    # A policy loss beyond this many times the best one takes the weights back to the best round; 0: never.
    rollback_ratio: float = _setting(2.0, at_least=0)
    # Closed loop: every how many rounds the policy drives the simulated arm, beside the run; 0: never.
    sim_frequency: int = _setting(0, at_least=0)
    sim_episodes: int = _setting(20, at_least=1)
    sim_variants: str = _setting(
        "site-a,site-b"
    )  # scenes that they are in, in turn (see `simulation/so101.py`)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of the global weights."""

    frequency: int = _setting(1, at_least=1)  # every how many rounds; the last and the best always
    keep: int = _setting(3, at_least=1)  # newest N are kept, and the best one besides
    keep_every: int = _setting(10, at_least=0)  # and those of every Nth round, to go back to; 0: none


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run's figures go besides its record; TensorBoard event files are always written."""

    wandb: str = _setting("off", one_of=("off", "offline", "online"))  # online: WANDB_API_KEY on the server
    wandb_project: str = _setting("so100-federation")


@dataclass(frozen=True)
class HubConfig:
    """Where the policy is pushed on the Hugging Face Hub; the token is HF_TOKEN on the server."""

    repo: str = _setting("")  # owner/name, made if it is missing; empty: nothing is pushed
    private: bool = _setting(True)  # of a repository that is made
    push_frequency: int = _setting(0, at_least=0)  # every how many rounds, besides at the end; 0: never


@dataclass(frozen=True)
class RunConfig:
    """One federated run."""

    run: RunSection = field(default_factory=RunSection)
    federation: FederationConfig = field(default_factory=FederationConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    hub: HubConfig = field(default_factory=HubConfig)


_SECTIONS = {section.name: section.default_factory for section in dataclasses.fields(RunConfig)}
_FIELDS = {
    f"{section}.{setting.name}": setting
    for section, cls in _SECTIONS.items()
    for setting in dataclasses.fields(cls)  # type: ignore[arg-type]
}


def flatten(config: RunConfig) -> dict[str, Scalar]:
    """Every setting of `config` under its dotted key, as Flower's run configuration wants it."""
    return {
        f"{section}.{key}": value
        for section, settings in dataclasses.asdict(config).items()
        for key, value in settings.items()
    }


def parse_run_config(settings: Mapping[str, Any], source: str) -> RunConfig:
    """Build a `RunConfig` from dotted keys; keys left out take their defaults.

    Args:
        settings: e.g. `{"training.local_steps": 30}`.
        source: where the settings come from, named in errors: a file, or "the run configuration".

    Raises:
        ConfigError: unknown key, wrong type or value out of range.
    """
    by_section: dict[str, dict[str, Scalar]] = {section: {} for section in _SECTIONS}
    for key, value in settings.items():
        if key not in _FIELDS:
            close = difflib.get_close_matches(key, _FIELDS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known sections: {', '.join(_SECTIONS)}"
            raise ConfigError(f"{source}: unknown key {key!r}: {hint}")
        section, name = key.split(".")
        by_section[section][name] = _checked(key, value, source)
    config = RunConfig(**{s: _SECTIONS[s](**values) for s, values in by_section.items()})  # type: ignore
    _check_together(config, source)
    return config


def load_run_config(path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a TOML run configuration such as `configs/demo.toml`.

    Args:
        overrides: dotted keys that win over the file.

    Raises:
        ConfigError: the file is missing, is not TOML, or holds something `parse_run_config` refuses.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; choose one of configs/*.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None
    flat: dict[str, Any] = {}
    for section, settings in tree.items():
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: {section} stands outside a section; put it under [run] or another")
        flat.update({f"{section}.{key}": value for key, value in settings.items()})
    return parse_run_config(flat | dict(overrides or {}), str(path))


def _checked(key: str, value: Any, source: str) -> Any:
    setting = _FIELDS[key]
    kind: type = type(setting.default)
    if kind is float and type(value) is int:
        value = float(value) if value.bit_length() < 64 else math.inf
    if type(value) is not kind:
        raise ConfigError(f"{source}: {key} = {value!r}: must be of type {kind.__name__}")
    limits = setting.metadata
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{source}: {key} = {value}: must be a finite number")
    if "at_least" in limits and value < limits["at_least"]:
        raise ConfigError(f"{source}: {key} = {value}: must be at least {limits['at_least']}")
    if "above" in limits and value <= limits["above"]:
        raise ConfigError(f"{source}: {key} = {value}: must be greater than {limits['above']}")
    if "at_most" in limits and value > limits["at_most"]:
        raise ConfigError(f"{source}: {key} = {value}: must be at most {limits['at_most']}")
    if "one_of" in limits and value not in limits["one_of"]:
        raise ConfigError(f"{source}: {key} = {value!r}: must be one of {', '.join(limits['one_of'])}")
    return value


def _check_together(config: RunConfig, source: str) -> None:
    cameras = config.policy.camera_names
    if not all(name.isidentifier() for name in cameras) or len(set(cameras)) != len(cameras):
        raise ConfigError(
            f"{source}: policy.cameras = {config.policy.cameras!r}: "
            "must be different names separated by commas, e.g. 'top,wrist'"
        )
    if config.hub.repo and (config.hub.repo.count("/") != 1 or not all(config.hub.repo.split("/"))):
        raise ConfigError(
            f"{source}: hub.repo = {config.hub.repo!r}: must be owner/name, e.g. 'my-lab/so101'"
        )
    participants = math.ceil(config.federation.fraction_fit * config.federation.min_nodes)
    if config.federation.min_updates > participants:
        raise ConfigError(
            f"{source}: federation.min_updates = {config.federation.min_updates}: with fraction_fit = "
            f"{config.federation.fraction_fit} a round may have {participants} participants only; raise "
            "federation.min_nodes or lower it"
        )
    if config.policy.normalisation == "pretrained" and config.policy.size != "pretrained":
        raise ConfigError(
            f"{source}: policy.normalisation = 'pretrained': policy.size = {config.policy.size!r} has no "
            "statistics; choose 'federated', or policy.size = 'pretrained'"
        )
    if config.privacy.mode == "central" and config.aggregation.method != "mean":
        raise ConfigError(
            f"{source}: privacy.mode = 'central': aggregation.method = {config.aggregation.method!r} is not "
            "covered by its noise; choose 'mean', or privacy.mode = 'local'"
        )
    if config.privacy.mode != "none" and config.training.adapt_proximal_mu:
        raise ConfigError(
            f"{source}: training.adapt_proximal_mu = true: steers by the sites' losses, which privacy.mode = "
            f"{config.privacy.mode!r} adds no noise to; set it to false"
        )
    steps = config.run.num_rounds * config.training.local_steps
    if config.training.warmup_steps >= steps:
        raise ConfigError(
            f"{source}: training.warmup_steps = {config.training.warmup_steps}: the run has run.num_rounds * "
            f"training.local_steps = {steps} steps only and would be all warm-up; set it below, e.g. to "
            f"{steps // 10}"
        )
    rate = config.aggregation.server_learning_rate
    if config.aggregation.strategy == "fedadam" and rate > _MOST_ADAM_RATE:
        raise ConfigError(
            f"{source}: aggregation.server_learning_rate = {rate}: must be at most {_MOST_ADAM_RATE} with "
            "aggregation.strategy = 'fedadam', which moves every weight by about as much; set it to 0.002"
        )
    if 0 < config.evaluation.rollback_ratio <= 1:
        raise ConfigError(
            f"{source}: evaluation.rollback_ratio = {config.evaluation.rollback_ratio}: would undo rounds "
            "that are no worse; must be greater than 1, or 0 for never"
        )
    if config.training.min_learning_rate > config.training.learning_rate:
        raise ConfigError(
            f"{source}: training.min_learning_rate = {config.training.min_learning_rate}: "
            f"must not exceed training.learning_rate = {config.training.learning_rate}"
        )
    if not config.run.name.replace("-", "").replace("_", "").replace(".", "").isalnum() and config.run.name:
        raise ConfigError(
            f"{source}: run.name = {config.run.name!r}: use letters, digits, '-', '_' and '.', "
            "it becomes a folder name"
        )
    if config.run.name.startswith("."):
        raise ConfigError(f"{source}: run.name = {config.run.name!r}: must not start with a dot")
