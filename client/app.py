"""The ClientApp: what a SuperNode answers. The table of contents of a site's part in a run.

Flower starts a new process for every message. So `join` reads files only and stays quick, and torch and
LeRobot are imported when there is something to train. Whatever goes wrong is answered with one line, in
which no path of this site stands; the whole story is in this site's own log.
"""

import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.hardware import describe_device
from client.privacy_rules import PrivacyRules, check_privacy, count_release, parse_privacy_rules
from federation import logs
from federation.cameras import parse_camera_names, spell_cameras
from federation.config import RunConfig, TrainingConfig, parse_run_config
from federation.dataset_description import check_fits, describe_dataset
from federation.errors import ConfigError, FederationError
from federation.messages import (
    ANSWER,
    CONFIG,
    HEADER,
    METRICS,
    QUERY_JOIN,
    QUERY_SHUT_OUT,
    REASON,
    STATISTICS,
    UPDATE,
    WEIGHTS,
)
from federation.versions import versions
from federation.wire import Header, open_payload, pack_tensors, record_to_statistics, statistics_to_record

_SAMPLE_CACHE_GB = 20.0

app = ClientApp()
_log = logs.get_logger("client.app")


@dataclass(frozen=True)
class Site:
    """This site's own settings, from `--node-config`; none leaves it but the name and camera names."""

    name: str
    dataset: Path
    scratch: Path
    sample_cache_gb: float  # disk for decoded samples
    cameras: dict[str, str]  # the policy's camera -> this site's, where the names do not tell
    privacy: PrivacyRules  # what its owner insists on


@app.query(QUERY_JOIN.partition(".")[2])
def join(message: Message, context: Context) -> Message:
    """Say what data this site holds, without showing any of it."""
    return _answer(message, context, _join)


@app.query(QUERY_SHUT_OUT.partition(".")[2])
def shut_out(message: Message, context: Context) -> Message:
    """Put into this site's log why the server takes nothing from it."""
    return _answer(message, context, _shut_out)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train `local_steps` steps from the received weights and reply with the update."""
    return _answer(message, context, _train)


def _join(message: Message, config: RunConfig, site: Site) -> RecordDict:
    check_privacy(site.privacy, config.privacy, site.scratch)
    description = describe_dataset(site.dataset)
    matched = check_fits(description, config.policy, str(site.dataset), site.cameras)
    cameras = spell_cameras(config.policy.camera_names, matched)
    for episode, why in description.left_out.items():
        _log.warning("episode %d left out: %s", episode, why)
    _log.info(
        "joins with %d episodes, %d frames, cameras %s",
        len(description.usable_episodes),
        description.usable_frames,
        ", ".join(cameras),
    )
    facts = {
        "name": site.name,
        "fps": description.fps,
        "episodes": len(description.usable_episodes),
        "left_out": len(description.left_out),
        "frames": description.usable_frames,
        "simulated": description.simulated,
        "cameras": cameras,
        "versions": [f"{package} {version}" for package, version in versions().items()],
        "device": describe_device(),
    }
    return RecordDict(
        {ANSWER: ConfigRecord(facts), STATISTICS: statistics_to_record(description.statistics)}  # type: ignore
    )


def _shut_out(message: Message, config: RunConfig, site: Site) -> RecordDict:
    reason = str(message.content.config_records[REASON]["text"])
    _log.error("the server takes nothing from this site until its SuperNode restarts: %s", reason)
    return RecordDict({})


def _train(message: Message, config: RunConfig, site: Site) -> RecordDict:
    started, received_at = time.monotonic(), time.time()
    # LeRobot keeps an Arrow copy of the parquet files; the data set itself is mounted read-only.
    os.environ.setdefault("HF_DATASETS_CACHE", str(site.scratch / "arrow"))
    from client.carried import drop_carried
    from client.device import peak_memory_bytes
    from client.feedback import add_residual, keep_residual
    from client.optimizer_state import keep_optimizer_state, restore_optimizer_state
    from client.progress import ProgressFile
    from client.training import run_training_loop, setup_training_components
    from federation.normalisation import merge_statistics
    from federation.policy import build_policy, frozen_fingerprint, select_device, trainable_parameters
    from federation.privacy import add_noise, clip
    from federation.sample_cache import open_samples

    order = message.content.config_records[CONFIG]
    round_, run = int(order["round"]), str(order["run"])  # type: ignore[arg-type]
    logs.speak_as(run=run, round_=round_)
    check_privacy(site.privacy, config.privacy, site.scratch)
    drop_carried(site.scratch, run, order["undone"])  # type: ignore[arg-type]
    description = describe_dataset(site.dataset)
    cameras = check_fits(description, config.policy, str(site.dataset), site.cameras)
    statistics = (
        merge_statistics([description.statistics])
        if config.policy.normalisation == "site"
        else record_to_statistics(message.content.array_records[STATISTICS])
    )
    device = select_device()
    policy = build_policy(config.policy, seed=config.run.seed, device=device, cache=site.scratch)
    if frozen_fingerprint(policy) != order["fingerprint"]:
        raise FederationError(
            "frozen weights differ from the server's: install the same versions of torch, transformers and "
            "lerobot, and the same policy.pretrained"
        )
    weights = open_payload(
        message.content.array_records[WEIGHTS],
        message.content.config_records[HEADER],
        {name: p.shape for name, p in trainable_parameters(policy).items()},
        Header(config.wire.download, run, round_, base=""),
    )
    components = setup_training_components(
        dataclasses.replace(config, training=_as_ordered(config.training, order)),
        policy,
        dict(weights.tensors()),
        statistics,
        open_samples(
            site.dataset,
            policy.config,
            site.scratch / "samples",
            int(site.sample_cache_gb * 1e9),
            cameras,
            description.usable_episodes if description.left_out else None,
        ),
        _seed(config.run.seed, site.name, round_),
    )
    if config.training.keep_optimizer:
        restore_optimizer_state(site.scratch, run, round_, components.optimizer, components.parameters)
    setup_seconds = time.monotonic() - started
    progress = ProgressFile(site.scratch, round_, components.steps)
    result = run_training_loop(
        components,
        round_,
        config.run.num_rounds,
        lambda step, metrics: progress.update(step, metrics.policy_loss),
    )
    _log.info(
        "trained %d steps on %s in %.1f s (setup %.1f s), policy loss %.4f, %d frames skipped",
        components.steps,
        device.type,
        result.train_seconds,
        setup_seconds,
        result.policy_loss,
        result.skipped_frames,
    )
    if config.training.keep_optimizer:
        keep_optimizer_state(site.scratch, run, round_, components.optimizer, components.parameters)
    if config.privacy.mode == "local":
        clip(result.update.values(), config.privacy.clip_norm)
        for tensor in result.update.values():
            add_noise(tensor, config.privacy.clip_norm * config.privacy.noise_multiplier)
        count_release(site.privacy, config.privacy, site.scratch, site.name, run, round_)
    # The residual is left over from an update that had its noise: it tells nothing more.
    add_residual(site.scratch, run, round_, result.update)
    header = Header(config.wire.upload, run, round_, base=weights.header.sha256)
    arrays, header_record, sealed = pack_tensors(result.update.items(), header)
    sent = open_payload(arrays, header_record, {n: u.shape for n, u in result.update.items()}, sealed)
    residual = {name: result.update[name].sub_(decoded) for name, decoded in sent.tensors()}
    keep_residual(site.scratch, run, round_, residual)
    metrics = {k: v for k, v in vars(result).items() if k != "update"} | {
        "setup_seconds": setup_seconds,
        "download_bytes": weights.size_bytes,
        "device_memory_bytes": peak_memory_bytes(device),
        "received_at": received_at,
        "answered_at": time.time(),
    }
    return RecordDict({UPDATE: arrays, HEADER: header_record, METRICS: MetricRecord(metrics)})


def _as_ordered(config: TrainingConfig, order: ConfigRecord) -> TrainingConfig:
    """`config` with what the server decides anew for each round."""
    mu = order["proximal_mu"]
    if not isinstance(mu, float) or not 0 <= mu < math.inf:
        raise FederationError(f"the server asks for proximal_mu = {mu!r}: must be a number of at least 0")
    return dataclasses.replace(config, proximal_mu=mu)


def _answer(
    message: Message, context: Context, work: Callable[[Message, RunConfig, Site], RecordDict]
) -> Message:
    """Do `work`; turn any failure into an error reply, so that the server hears of it at once."""
    logs.configure()
    private: list[Path] = []
    try:
        site = _read_site(context)
        private = [site.dataset, site.scratch]
        logs.speak_as(node=site.name)
        config = parse_run_config(context.run_config, "the run configuration")
        logs.speak_as(run=config.run.name or None)
        return Message(work(message, config, site), reply_to=message)
    except FederationError as error:
        _log.error("%s", error)
        reason = str(error)
        for path in sorted(private, key=lambda path: len(str(path)), reverse=True):  # one may be in the other
            reason = reason.replace(str(path), path.name)
    except Exception as error:  # anything else would end the process with paths in its message
        _log.exception("failed")
        reason = f"{type(error).__name__}; the log of this SuperNode says more"
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)


def _read_site(context: Context) -> Site:
    settings = context.node_config
    for key in ("name", "dataset", "scratch"):
        if not isinstance(settings.get(key), str) or not settings[key]:
            raise ConfigError(
                f"node configuration: {key} is missing; start the SuperNode with "
                '--node-config \'name="site-a" dataset="/data" scratch="/scratch"\''
            )
    cache_gb = settings.get("sample-cache-gb", _SAMPLE_CACHE_GB)
    if not isinstance(cache_gb, int | float) or not 0 <= cache_gb < math.inf:
        raise ConfigError(
            f"node configuration: sample-cache-gb = {cache_gb!r}: must be a number of gigabytes, 0 for none"
        )
    cameras = parse_camera_names(str(settings.get("cameras", "")))
    privacy = parse_privacy_rules(settings)
    scratch = Path(str(settings["scratch"]))
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.error("scratch %s: %s", scratch, error)
        raise ConfigError(f"node configuration: scratch cannot be written ({error.strerror})") from None
    dataset = Path(str(settings["dataset"]))
    return Site(str(settings["name"]), dataset, scratch, float(cache_gb), cameras, privacy)


def _seed(run_seed: int, site: str, round_: int) -> int:
    """A seed of its own for each site and round, the same whenever the run is repeated."""
    digest = hashlib.sha256(f"{run_seed}/{site}/{round_}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
