"""A site's part in one round: from the server's request to the reply, step by step.

`client/app.py` calls `answer_train_request`. The same request is answered once: asked again, the site sends
the reply that it kept. torch and LeRobot are imported when there is something to train.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from safetensors import SafetensorError

from client.received_weights import open_weights
from client.recordings.held import Holdings, judge_recordings
from client.rules.privacy import check_noise, check_privacy, count_release
from client.rules.traffic import check_traffic
from client.site import Site
from client.state.kept_reply import keep_reply, load_reply, scratch_for_one
from federation import logs
from federation.config import RunConfig, flatten
from federation.errors import FederationError
from federation.messages import CONFIG, HEADER, METRICS, STATISTICS, UPDATE
from federation.policy.memory import training_gigabytes
from federation.wire.payload import Header, Payload, open_payload, pack_tensors, record_to_statistics

if TYPE_CHECKING:
    from torch import Tensor

    from client.training import TrainingComponents, TrainingResult

__all__ = ["TrainRequest", "answer_train_request", "read_request", "seed_of_round"]

# What the answer to a request depends on, beside the weights: a continuation may change anything else.
_DECISIVE = ("run.seed", "run.num_rounds", "policy.", "training.", "wire.", "privacy.")
_log = logs.get_logger("client.round")


@dataclass(frozen=True)
class TrainRequest:
    """What the server asks for."""

    run: str
    round: int
    proximal_mu: float
    undone_rounds: tuple[int, ...]  # of which nothing is in the weights any more
    steps: int | None  # that this site is to train; None: as many as the configuration says
    key: str  # the same for the same request, however often it comes
    stop_at: float  # by `time.monotonic`: nobody waits for the answer after it

    def check_deadline(self, step: int, steps: int) -> None:
        """Raise a `FederationError` once nobody waits for the answer, so that this site is free again."""
        if time.monotonic() > self.stop_at:
            raise FederationError(
                f"the deadline of the round passed after {step} of {steps} steps: raise "
                "federation.round_deadline_seconds, or lower training.local_steps"
            )


def read_request(message: Message, config: RunConfig) -> TrainRequest:
    """Read a train message without its weights.

    Raises:
        FederationError: the server asks for a mu that is no number of at least 0, or for a number of steps
            that the run does not have.
    """
    order = message.content.config_records[CONFIG]
    mu = order["proximal_mu"]
    if not isinstance(mu, float) or not 0 <= mu < math.inf:
        raise FederationError(f"the server asks for proximal_mu = {mu!r}: must be a number of at least 0")
    steps = order.get("steps")
    if steps is not None and (type(steps) is not int or not 1 <= steps <= config.training.local_steps):
        most = config.training.local_steps
        raise FederationError(f"the server asks for {steps!r} steps: must be from 1 to {most}")
    settings = {key: value for key, value in flatten(config).items() if key.startswith(_DECISIVE)}
    weights = dict(message.content.config_records[HEADER])
    known_by = json.dumps([dict(order), weights, settings], sort_keys=True)
    # By this site's clock, which may be off, but never longer than the message was made to last.
    left = message.metadata.created_at + message.metadata.ttl - time.time()
    return TrainRequest(
        run=str(order["run"]),
        round=int(order["round"]),  # type: ignore[arg-type]
        proximal_mu=mu,
        undone_rounds=tuple(order.get("undone", ())),  # type: ignore[arg-type]
        steps=steps,
        key=hashlib.sha256(known_by.encode()).hexdigest(),
        stop_at=time.monotonic() + min(left, message.metadata.ttl),
    )


def answer_train_request(message: Message, config: RunConfig, site: Site) -> RecordDict:
    """Train the round that `message` asks for, or send the reply to it that was kept.

    Raises:
        FederationError: the site cannot or may not take part in the round.
    """
    received_at = time.time()
    request = read_request(message, config)
    logs.bind_context(run=request.run, round_=request.round)
    with scratch_for_one(site.scratch, request.stop_at):
        check_noise(site.rules, config.privacy)  # the owner may have changed them since a reply was kept
        reply = load_reply(site.scratch, request.key)
        if reply is not None:
            _log.info("this request was answered before: the same reply is sent again")
        else:
            check_privacy(site.rules, config.privacy, site.scratch)
            reply = _train(message, request, config, site)
            _keep(reply, request, config, site)
    metrics = reply.metric_records[METRICS]
    metrics["received_at"], metrics["answered_at"] = received_at, time.time()
    return reply


def _keep(reply: RecordDict, request: TrainRequest, config: RunConfig, site: Site) -> None:
    try:
        keep_reply(site.scratch, request.key, reply)
    except (OSError, SafetensorError) as error:
        if config.privacy.mode == "local":  # asked again, it would release another one
            raise FederationError(f"the reply cannot be kept on scratch ({error}): make room") from None
        _log.warning("the reply cannot be kept, asked again this site trains again: %s", error)


def _train(message: Message, request: TrainRequest, config: RunConfig, site: Site) -> RecordDict:
    started = time.monotonic()
    from client.device import peak_memory_bytes
    from client.state.optimizer import keep_optimizer_state, restore_optimizer_state
    from client.state.round_state import drop_round_state
    from federation.wire.codec import encoded_bytes

    drop_round_state(site.scratch, request.run, request.undone_rounds)
    held = judge_recordings(site.sources, config.policy, site.scratch)
    components, weights = _set_up(message, request, config, site, held)
    shapes = [parameter.shape for parameter in components.parameters.values()]
    check_traffic(site.rules, site.scratch, sum(encoded_bytes(s, config.wire.upload) for s in shapes))
    state = (site.scratch, request.run, request.round, components.optimizer, components.parameters)
    if config.training.keep_optimizer:
        restore_optimizer_state(*state)
    setup_seconds = time.monotonic() - started
    result, gpu = _run_steps(request, config, site, components)
    _log.info(
        "trained %d steps on %s in %.1f s (setup %.1f s), policy loss %.4f, %d frames skipped",
        components.steps,
        components.device.type,
        result.train_seconds,
        setup_seconds,
        result.policy_loss,
        result.skipped_frames,
    )
    if config.training.keep_optimizer:
        keep_optimizer_state(*state)
    reply = _pack(request, config, site, result.update, weights.header.sha256)
    reply[METRICS] = MetricRecord(
        {k: v for k, v in vars(result).items() if k != "update"}
        | {
            "episodes": held.episodes,  # at the join there may have been others
            "frames": held.frames,
            "setup_seconds": setup_seconds,
            "download_bytes": weights.size_bytes,
            "device_memory_bytes": peak_memory_bytes(components.device),
        }
        | gpu
    )
    return reply


def _set_up(
    message: Message, request: TrainRequest, config: RunConfig, site: Site, held: Holdings
) -> tuple["TrainingComponents", Payload]:
    """Return what the steps of the round work on, and the global weights of the round as they came."""
    from client.recordings.samples import open_recorded_samples
    from client.training import setup_training_components
    from federation.policy.build import build_policy, select_device

    policy = build_policy(config.policy, seed=config.run.seed, device=select_device(), cache=site.scratch)
    sealed = Header(config.wire.download, request.run, request.round, base="")
    weights = open_weights(message, policy, config, site.scratch, sealed)
    room = int(site.sample_cache_gb * 1e9)
    samples = open_recorded_samples(held, policy.config, site.scratch, room)
    training = dataclasses.replace(config.training, proximal_mu=request.proximal_mu)
    components = setup_training_components(
        dataclasses.replace(config, training=training),
        policy,
        dict(weights.tensors()),
        record_to_statistics(message.content.array_records[STATISTICS]),
        samples,
        seed_of_round(config.run.seed, site.name, request.round),
    )
    components.steps = request.steps or components.steps
    return components, weights


def _run_steps(
    request: TrainRequest, config: RunConfig, site: Site, components: "TrainingComponents"
) -> tuple["TrainingResult", dict[str, float]]:
    """Train, write the progress down, and stop once nobody waits any more; return what the GPU did, too."""
    import torch

    from client.decoding import decode_beside
    from client.gpu_watch import GpuWatch
    from client.state.progress import ProgressFile
    from client.training import run_training_loop

    progress = ProgressFile(site.scratch, request.round, components.steps)
    device = components.device
    with decode_beside(components.samples, device) as begin, GpuWatch(active=device.type == "cuda") as gpu:

        def on_step(step: int, metrics: Any) -> None:
            begin()
            progress.update(step, metrics.policy_loss, gpu.newest)
            if step < components.steps:
                request.check_deadline(step, components.steps)

        try:
            result = run_training_loop(components, request.round, config.run.num_rounds, on_step)
        except torch.OutOfMemoryError:
            batch = config.training.batch_size
            raise FederationError(
                f"this GPU has not enough memory for training.batch_size = {batch} (an estimate: "
                f"{training_gigabytes(config.policy, batch):.1f} GB at full size): lower it and raise "
                "training.gradient_accumulation_steps"
            ) from None
    return result, gpu.summary()


def _pack(
    request: TrainRequest, config: RunConfig, site: Site, update: "Mapping[str, Tensor]", base: str
) -> RecordDict:
    """Clip and noise `update` where that is asked for, encode it, and keep what the encoding lost of it."""
    from client.state.feedback import add_residual, keep_residual
    from federation.privacy import add_noise, clip

    scratch, run, round_ = site.scratch, request.run, request.round
    if config.privacy.mode == "local":
        clip(update.values(), config.privacy.clip_norm)
        for tensor in update.values():
            add_noise(tensor, config.privacy.clip_norm * config.privacy.noise_multiplier)
        count_release(site.rules, config.privacy, scratch, site.name, run, round_)
    # The residual is left over from an update that had its noise: it tells nothing more.
    add_residual(scratch, run, round_, update, request.steps)
    header = Header(config.wire.upload, run, round_, base)
    arrays, header_record, sealed = pack_tensors(update.items(), header)
    sent = open_payload(arrays, header_record, {n: u.shape for n, u in update.items()}, sealed)
    residual = {name: update[name].sub_(decoded) for name, decoded in sent.tensors()}
    keep_residual(scratch, run, round_, residual, request.steps)
    return RecordDict({UPDATE: arrays, HEADER: ConfigRecord(dict(header_record))})


def seed_of_round(run_seed: int, site: str, round_: int) -> int:
    """Return a seed of its own for each site and round, the same whenever the run is repeated."""
    digest = hashlib.sha256(f"{run_seed}/{site}/{round_}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
