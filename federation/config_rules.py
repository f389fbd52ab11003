"""The rules of a run configuration beyond types and limits: names, and settings that do not go together."""

import math
import re
from dataclasses import fields

from federation.settings import AggregationConfig, PolicyConfig, RunConfig

__all__ = ["EARLIER_RUN", "fault_of_run_name", "find_broken_rule"]

EARLIER_RUN = "run:"  # before the name of a run, in `policy.pretrained`

_MAX_ADAM_RATE = 0.1
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_DEFAULTS = PolicyConfig()


def find_broken_rule(config: RunConfig) -> str | None:
    """Return the first broken rule as "KEY = VALUE: what is wrong; what to do", or None."""
    checks = (
        _names(config),
        _places(config.policy),
        _participants(config),
        _partial_work(config),
        _normalisation(config.policy),
        _adapter(config.policy),
        _privacy(config),
        _learning_rate(config),
        _server_optimizer(config.aggregation),
        _without_effect(config),
        _rollback(config.evaluation.rollback_ratio),
    )
    return next(filter(None, checks), None)


def _names(config: RunConfig) -> str | None:
    name, repo, cameras = config.run.name, config.hub.repo, config.policy.camera_names
    if name and (fault := fault_of_run_name(name)):
        return f"run.name = {name!r}: {fault}"
    base = config.policy.pretrained
    if base.startswith(EARLIER_RUN) and (fault := fault_of_run_name(base.removeprefix(EARLIER_RUN))):
        return f"policy.pretrained = {base!r}: names no run; {fault}"
    if repo and not _is_repository(repo):
        return f"hub.repo = {repo!r}: must be owner/name as the Hub takes it, e.g. 'my-lab/so101'"
    if not all(camera.isidentifier() for camera in cameras) or len(set(cameras)) != len(cameras):
        return (
            f"policy.cameras = {config.policy.cameras!r}: must be different names separated by commas, "
            "e.g. 'top,wrist'"
        )
    return None


def _is_repository(name: str) -> bool:
    # Only where there is one: a site's join, which must be quick, imports this module.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def fault_of_run_name(name: str) -> str:
    """Return why a run cannot have this name; "" if it can."""
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        return "use letters, digits, '-', '_' and '.', it becomes a folder name"
    return "must not start with a dot" if name.startswith(".") else ""


def _places(policy: PolicyConfig) -> str | None:
    # A relative folder is another one to each process of a run.
    named = {"policy.vlm": policy.vlm}
    if policy.size == "pretrained" and not policy.pretrained.startswith(EARLIER_RUN):
        named["policy.pretrained"] = policy.pretrained
    for key, place in named.items():
        if place and not place.startswith(("/", "~")) and not _HUB_ID.fullmatch(place):
            return (
                f"{key} = {place!r}: is neither a Hub id such as 'lerobot/smolvla_base' nor the whole path "
                "of a folder; write the path from '/' or '~' on"
            )
    return None


def _participants(config: RunConfig) -> str | None:
    federation = config.federation
    participants = math.ceil(federation.fraction_fit * federation.min_nodes)
    if federation.min_updates <= participants:
        return None
    return (
        f"federation.min_updates = {federation.min_updates}: with fraction_fit = {federation.fraction_fit} a "
        f"round may have {participants} participants only; raise federation.min_nodes or lower it"
    )


def _partial_work(config: RunConfig) -> str | None:
    if not config.federation.partial_work:
        return None
    wrong = {
        f"aggregation.method = {config.aggregation.method!r}": config.aggregation.method != "mean",
        f"privacy.mode = {config.privacy.mode!r}": config.privacy.mode != "none",
        f"training.local_epochs = {config.training.local_epochs}": bool(config.training.local_epochs),
    }
    named = next((key for key, is_wrong in wrong.items() if is_wrong), "")
    if not named:
        return None
    return (
        f"federation.partial_work = true: does not go with {named}; set that back, or partial_work to false"
    )


def _normalisation(policy: PolicyConfig) -> str | None:
    if policy.normalisation != "pretrained" or policy.size == "pretrained":
        return None
    return (
        f"policy.normalisation = 'pretrained': policy.size = {policy.size!r} has no statistics; choose "
        "'federated', or policy.size = 'pretrained'"
    )


def _adapter(policy: PolicyConfig) -> str | None:
    if policy.adapter == "none":
        for key in (field for field in fields(policy) if field.name.startswith("lora_")):
            if (value := getattr(policy, key.name)) != getattr(_DEFAULTS, key.name):
                return (
                    f"policy.{key.name} = {value!r}: policy.adapter = 'none' trains no adapter; set it to "
                    "'lora', or leave this out"
                )
        return None
    if policy.size != "pretrained":
        return (
            f"policy.adapter = {policy.adapter!r}: policy.size = {policy.size!r} has random weights, and an "
            "adapter changes little of them; set policy.size = 'pretrained' and name a policy in "
            "policy.pretrained: a Hub id, a folder, or an earlier run's pretrained_model"
        )
    try:
        re.compile(policy.lora_targets)
    except (re.error, RecursionError, OverflowError) as error:
        return (
            f"policy.lora_targets = {policy.lora_targets!r}: is no regular expression ({error}); write e.g. "
            r"'.*lm_expert.*\.(q|v)_proj', or leave it empty for LeRobot's choice"
        )
    return None


def _privacy(config: RunConfig) -> str | None:
    mode, method = config.privacy.mode, config.aggregation.method
    if mode == "central" and method != "mean":
        return (
            f"privacy.mode = 'central': aggregation.method = {method!r} is not covered by its noise; choose "
            "'mean', or privacy.mode = 'local'"
        )
    if mode != "none" and config.training.adapt_proximal_mu:
        return (
            "training.adapt_proximal_mu = true: steers by the sites' losses, which privacy.mode = "
            f"{mode!r} adds no noise to; set it to false"
        )
    return None


def _learning_rate(config: RunConfig) -> str | None:
    training = config.training
    steps = config.run.num_rounds * training.local_steps
    if training.warmup_steps >= steps:
        return (
            f"training.warmup_steps = {training.warmup_steps}: the run has run.num_rounds * "
            f"training.local_steps = {steps} steps only and would be all warm-up; set it below, e.g. to "
            f"{steps // 10}"
        )
    if training.min_learning_rate > training.learning_rate:
        return (
            f"training.min_learning_rate = {training.min_learning_rate}: must not exceed "
            f"training.learning_rate = {training.learning_rate}"
        )
    return None


def _server_optimizer(aggregation: AggregationConfig) -> str | None:
    rate = aggregation.server_learning_rate
    if aggregation.strategy != "fedadam" or rate <= _MAX_ADAM_RATE:
        return None
    return (
        f"aggregation.server_learning_rate = {rate}: must be at most {_MAX_ADAM_RATE} with "
        "aggregation.strategy = 'fedadam', which moves every weight by about as much; set it to 0.002"
    )


def _without_effect(config: RunConfig) -> str | None:
    training, aggregation = config.training, config.aggregation
    if training.adapt_proximal_mu and (aggregation.strategy == "fedavg" or not training.proximal_mu):
        key, value = "aggregation.strategy", repr(aggregation.strategy)
        if not training.proximal_mu:
            key, value = "training.proximal_mu", str(training.proximal_mu)
        return (
            f"training.adapt_proximal_mu = true: multiplies mu, and {key} = {value} leaves it at 0; change "
            "that, or set adapt_proximal_mu to false"
        )
    if aggregation.clip_norm and aggregation.method != "mean":
        return (
            f"aggregation.clip_norm = {aggregation.clip_norm}: aggregation.method = {aggregation.method!r} "
            "clips nothing; set it to 0, or choose 'mean'"
        )
    if aggregation.clip_norm and config.privacy.mode == "central":
        return (
            f"aggregation.clip_norm = {aggregation.clip_norm}: privacy.mode = 'central' clips to "
            "privacy.clip_norm; set it to 0"
        )
    return None


def _rollback(ratio: float) -> str | None:
    if not 0 < ratio <= 1:
        return None
    return (
        f"evaluation.rollback_ratio = {ratio}: would undo rounds that are no worse; must be greater than 1, "
        "or 0 for never"
    )
