"""`so100-site personalise`: tune the delivered policy on this site's recordings and name the better one.

Both policies stay, in `personal/` of the site's folder: `federation`, as it was delivered, and `tuned`.
`comparison.json` beside them has the figures of both on episodes that were kept from the tuning. The run may
have trained on them: so the comparison favours the delivered policy, if either. torch and LeRobot are
imported once all that can be wrong was looked at.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.membership.folder import SiteFolder
from client.personal.split import split_episodes
from client.recordings.held import Holdings, judge_recordings
from client.recordings.sources import parse_sources
from client.site import SAMPLE_CACHE_GB
from client.state.delivered_policy import read_delivered_policy, read_expected, read_training
from federation.errors import ConfigError
from federation.files import link_or_copy, write_folder, write_json
from federation.invitation import read_invitation
from federation.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FEDERATION", "RESULT_FILE", "TUNED", "personalise_site"]

FEDERATION, TUNED = "federation", "tuned"
RESULT_FILE = "comparison.json"


def personalise_site(
    site: SiteFolder, steps: int | None = None, learning_rate: float | None = None, seed: int = 0
) -> dict[str, Any]:
    """Tune, measure and save; print what is better at this site, and return what `comparison.json` holds.

    Args:
        steps: of the tuning; None: as many as `tune.steps_of` says.
        learning_rate: the highest one; None: that of the run.
        seed: draws the held-out episodes and the order of the frames.

    Raises:
        ConfigError: no policy was delivered yet, or no recording is named.
        DatasetError: no recording can be used, or there is one episode only.
    """
    if not read_delivered_policy(site.policy):
        raise ConfigError(f"{site.policy}: no policy yet; the server sends one at the end of a run")
    settings = site.read_settings()
    if not settings:
        raise ConfigError("no recording yet: so100-site join --data names one")
    invited = read_invitation(site.invitation).expects.as_policy()
    scratch = site.scratch / "personal"  # apart from what the rounds of a run keep
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        base = _take_policy(site, scratch / "delivered")
        delivered = read_delivered_policy(base)
        held = judge_recordings(parse_sources(settings), read_expected(delivered, invited), site.scratch)
        learnt, measured = split_episodes(held, seed)
        training = _training(delivered, learnt, steps, learning_rate)
        _announce(delivered, learnt, measured, training)
        room = int(float(settings.get("sample-cache-gb", SAMPLE_CACHE_GB)) * 1e9)
        weights, figures = _tune(base, scratch, learnt, measured, training, room, seed)
        result = {
            **{key: delivered[key] for key in ("run", "round", "sha256")},
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": seed,
            "steps": training.local_steps,
            "learning_rate": training.learning_rate,
            "batch_size": training.batch_size,
            "episodes": {"learnt": learnt.episodes, "measured": measured.episodes},
            **figures,
            "better": min((FEDERATION, TUNED), key=lambda name: figures[name]["policy_loss"]),
        }
        _write(base, site, weights, result)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _print(site, result)
    return result


def _take_policy(site: SiteFolder, base: Path) -> Path:
    """Keep the delivered policy as it is now: the next one may come while this one is tuned.

    Raises:
        ConfigError: it comes at this very moment.
    """
    before = read_delivered_policy(site.policy)
    try:
        shutil.copytree(site.policy, base, copy_function=link_or_copy)
    except (OSError, shutil.Error):
        before = {}
    if not before or read_delivered_policy(base) != before or read_delivered_policy(site.policy) != before:
        raise ConfigError(f"{site.policy}: another policy was delivered just now; run the command again")
    return base


def _announce(
    delivered: Mapping[str, Any], learnt: Holdings, measured: Holdings, training: TrainingConfig
) -> None:
    print(
        f"round {delivered['round']} of {delivered['run']}: {learnt.episodes} episodes to learn from, "
        f"{measured.episodes} to measure on; {training.local_steps} steps of {training.frames_in_step} "
        "frames",
        flush=True,
    )


def _training(
    delivered: Mapping[str, Any], learnt: Holdings, steps: int | None, learning_rate: float | None
) -> TrainingConfig:
    """Return the settings of the run that the policy is of, with what the owner chose."""
    from client.personal.tune import steps_of

    training = read_training(delivered)
    rate = learning_rate or training.learning_rate
    return dataclasses.replace(
        training,
        local_steps=steps or steps_of(training, learnt),
        learning_rate=rate,
        min_learning_rate=min(rate, training.min_learning_rate),
    )


def _tune(
    base: Path,
    scratch: Path,
    learnt: Holdings,
    measured: Holdings,
    training: TrainingConfig,
    room: int,
    seed: int,
) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Return the tuned weights, and the figures of the policy before and after."""
    from client.personal.tune import measure_on, tune
    from federation.policy.folder import load_policy_folder

    policy, processors = load_policy_folder(base)
    before = measure_on(policy, processors, measured, training.batch_size, scratch / "measured")
    weights = tune(policy, processors, learnt, training, scratch / "learnt", room, seed)
    after = measure_on(policy, processors, measured, training.batch_size, scratch / "measured")
    return weights, {FEDERATION: before, TUNED: after}


def _write(base: Path, site: SiteFolder, weights: Mapping[str, "Tensor"], result: Mapping[str, Any]) -> None:
    """Put both policies and `result` in place."""
    import torch

    from federation.policy.build import load_trainable, select_device
    from federation.policy.folder import load_policy_folder, save_policy_folder

    # Anew, on the CPU: on a GPU the frozen weights were rounded to what it computes with.
    policy, processors = load_policy_folder(base, torch.device("cpu"))
    load_trainable(policy, weights)
    policy.config.device = str(select_device())
    card = _card(base / "README.md", result)

    def fill(staging: Path) -> None:
        shutil.copytree(base, staging / FEDERATION, copy_function=link_or_copy)
        save_policy_folder(staging / TUNED, policy, processors, card)
        write_json(staging / RESULT_FILE, result)

    write_folder(site.personal, fill)


def _card(delivered: Path, result: Mapping[str, Any]) -> str:
    """Return the model card of the tuned policy: that of the delivered one, and what was done to it."""
    text = delivered.read_text(encoding="utf-8").rstrip() if delivered.is_file() else ""
    return (
        f"{text}\n\n## Tuned at one site\n\n"
        f"Fine-tuned on {result['episodes']['learnt']} episodes of one site, {result['steps']} steps. On "
        f"{result['episodes']['measured']} others of that site, which the federation may have trained on, "
        f"its policy loss is {result[TUNED]['policy_loss']:.4f}; before, it was "
        f"{result[FEDERATION]['policy_loss']:.4f}.\n"
    ).lstrip()


def _print(site: SiteFolder, result: Mapping[str, Any]) -> None:
    print(f"{'':<12}{'policy loss':>12}{'action MSE':>12}")
    for name in (FEDERATION, TUNED):
        mark = "   better here" if result["better"] == name else ""
        figures = result[name]
        print(f"{name:<12}{figures['policy_loss']:>12.4f}{figures['action_mse']:>12.1f}{mark}")
    print(f"both are in {site.personal}; let the arm run {site.personal / result['better']}")
