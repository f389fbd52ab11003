"""`policy.pretrained = "run:NAME"`: a run that starts from the policy of an earlier one.

The configuration names the run for all; each machine has its policy in a folder of its own.
"""

import dataclasses
from pathlib import Path

from federation.config import RunConfig
from federation.config_rules import EARLIER_RUN

__all__ = ["earlier_run", "start_from"]


def earlier_run(config: RunConfig) -> str:
    """Return the name of the run that `config` starts from; "" if it starts from none."""
    policy = config.policy
    is_named = policy.size == "pretrained" and policy.pretrained.startswith(EARLIER_RUN)
    return policy.pretrained.removeprefix(EARLIER_RUN) if is_named else ""


def start_from(config: RunConfig, folder: Path) -> RunConfig:
    """Return `config` with `folder` as the policy to start from, for this machine alone."""
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, pretrained=str(folder)))
