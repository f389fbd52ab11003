"""The delivered policy: what the server exported, made again at this site from the trained tensors.

`client/app.py` calls `receive_policy`. torch and LeRobot are imported then.
"""

import dataclasses
import time
from pathlib import Path

from flwr.app import Message
from safetensors import SafetensorError

from client.base import locate_base
from client.received_weights import open_weights
from client.site import Site
from client.state.delivered_policy import note_delivered_policy, read_delivered_policy
from federation import logs
from federation.config import RunConfig, parse_run_config
from federation.errors import FederationError, PolicyError, one_line
from federation.messages import CONFIG, SETTINGS, STATISTICS
from federation.policy.earlier_run import earlier_run, start_from
from federation.settings import TrainingConfig
from federation.wire.payload import Header, record_to_statistics

__all__ = ["receive_policy"]

_log = logs.get_logger("client.delivery")


def receive_policy(message: Message, site: Site) -> str:
    """Write the policy in `message` into the site's policy folder; return the SHA-256 of its weights.

    The folder appears whole, or the one before stays.

    Raises:
        FederationError: the policy cannot be built or written, or is not the one that the server exported.
    """
    started = time.monotonic()
    import torch

    from federation.policy.build import build_policy, build_processors, load_trainable, select_device
    from federation.policy.folder import policy_digest, save_policy_folder

    order = message.content.config_records[CONFIG]
    run, round_, expected = str(order["run"]), int(order["round"]), str(order["sha256"])  # type: ignore[arg-type]
    logs.bind_context(run=run, round_=round_)
    if _is_here(site.policy_folder, run, expected):
        return expected  # the answer that said so was lost, or the operator asks for certainty
    told = parse_run_config(dict(message.content.config_records[SETTINGS]), f"the configuration of {run}")
    config = _locate_frozen(told, site)
    # On the CPU, whatever trains here: nothing is computed but an adapter's product.
    policy = build_policy(config.policy, seed=config.run.seed, device=torch.device("cpu"), cache=site.scratch)
    sealed = Header("fp32", run, round_, base="")
    weights = open_weights(message, policy, config, site.scratch, sealed, by_name=True)
    load_trainable(policy, dict(weights.tensors()))
    policy.config.device = str(select_device())  # on which this machine will run it
    processors = build_processors(policy, record_to_statistics(message.content.array_records[STATISTICS]))

    def seal(staging: Path) -> None:
        if (found := policy_digest(staging)) != expected:
            raise PolicyError(
                f"the policy of {run} comes out with SHA-256 {found}, the server's has {expected}: install "
                "the server's versions of safetensors, torch and lerobot"
            )
        note_delivered_policy(staging, run, round_, expected, _dense_training(config), config.policy)

    folder = site.policy_folder
    try:
        save_policy_folder(folder, policy, processors, str(order["card"]), seal)
    except (OSError, SafetensorError) as error:
        raise FederationError(
            f"the policy of {run} cannot be written ({one_line(error)}): make room, or check its owner"
        ) from None
    seconds = time.monotonic() - started
    _log.info("the policy of round %d was delivered to %s (%.1f s)", round_, folder, seconds)
    return expected


def _is_here(folder: Path, run: str, expected: str) -> bool:
    from federation.policy.folder import policy_digest

    try:
        return read_delivered_policy(folder).get("run") == run and policy_digest(folder) == expected
    except OSError:
        return False


def _locate_frozen(config: RunConfig, site: Site) -> RunConfig:
    """As `locate_base`; but whatever policy is here will do where its frozen weights are the run's.

    They are compared before the trained ones are taken.
    """
    is_any = earlier_run(config) and config.policy.adapter == "none"
    if is_any and read_delivered_policy(site.policy_folder):
        return start_from(config, site.policy_folder)
    return locate_base(config, site)


def _dense_training(config: RunConfig) -> TrainingConfig:
    """Return how the run trained, for tuning the policy: an adapter's learning rate is too high for that."""
    if config.policy.adapter == "none":
        return config.training
    return dataclasses.replace(config.training, learning_rate=TrainingConfig().learning_rate)
