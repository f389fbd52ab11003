"""The check that samples of a dataset open, decode, fit and collate, exactly as training reads them.

`judgement/sample_process.py` calls `judge_samples_of` in a process of its own, and
`server/evaluation/datasets.py` in the ServerApp, which has torch anyway.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor
from torch.utils.data import default_collate

from federation.data.advice import repair
from federation.data.cameras import how_to_say
from federation.data.description import DatasetDescription
from federation.data.faults import video_of_episode
from federation.data.info import read_info
from federation.data.loading import DECODE_ERRORS, Frames, open_dataset
from federation.data.normalisation import merge_statistics
from federation.data.sample_cache import SampleCache, shrunk_size
from federation.data.statistics import Statistics
from federation.data.tables import read_episodes
from federation.errors import DatasetError, FederationError, PolicyError, first_cause, one_line
from federation.judgement.sample_process import DatasetUse, Verdict
from federation.policy.build import build_policy_config

__all__ = ["judge_samples_of"]

_MIN_CONTRAST = 2 / 255  # standard deviation of a picture's values; 0 of a dead camera, others above 60 / 255
_DISAGREE = "meta/ and data/ disagree there: correct them, or record the dataset again with LeRobot 0.6"
_MAX_BYTES = 10**9  # of the decoded samples, which are removed at once

Row = Mapping[str, Any]


def judge_samples_of(use: DatasetUse, description: DatasetDescription, folder: Path) -> Verdict:
    """Return the verdict on samples of a dataset. Whatever fails here would fail in training too.

    Args:
        description: of the dataset, with the cameras that the policy uses.
        folder: for decoded samples; the caller removes it.
    """
    try:
        warnings = _check_samples(use, description, folder)
    except FederationError as error:
        is_about_files = isinstance(error, DatasetError) and not isinstance(first_cause(error), OSError)
        return Verdict(str(error), lasts=is_about_files, warnings=())
    except Exception as error:
        text = f"dataset {use.root}: its samples cannot be loaded ({_named(error)}); {_DISAGREE}"
        return Verdict(text, lasts=False, warnings=())
    return Verdict("", lasts=True, warnings=warnings)


def _check_samples(use: DatasetUse, description: DatasetDescription, folder: Path) -> tuple[str, ...]:
    """Take samples of the first and the last file of every camera to the point where the policy gets them.

    Returns:
        What training survives: one line each.

    Raises:
        DatasetError: training would fail, or learn from nothing.
        PolicyError: the policy's configuration or tokenizer cannot be had.
    """
    root, cameras = use.root, description.used_cameras
    smolvla = build_policy_config(use.policy, use.scratch)
    info = read_info(root)
    wanted = set(description.usable_episodes)
    rows = [row for row in read_episodes(root) if row["episode_index"] in wanted]
    _check_resolutions(root, info, rows, cameras, smolvla)
    chosen = sorted(_choose_frames(info, rows, cameras))
    frames = open_dataset(root, smolvla, sorted({episode for episode, _ in chosen}), cameras)
    samples = SampleCache(
        frames, smolvla, name=str(root), folder=folder, source="", max_bytes=_MAX_BYTES, cameras=cameras
    )
    starts = {row["episode_index"]: row["dataset_from_index"] for row in rows}
    drawn, warnings = _draw(root, samples, frames, {place: starts[place[0]] + place[1] for place in chosen})
    for place, sample in drawn.items():
        _check_sample(root, place, sample, smolvla, cameras)
    warnings += _check_contrast(root, drawn, cameras)
    _check_batch(root, drawn, smolvla, description.statistics)
    return warnings


def _check_resolutions(
    root: Path,
    info: Mapping[str, Any],
    rows: Sequence[Row],
    cameras: Mapping[str, str],
    smolvla: SmolVLAConfig,
) -> None:
    """Every video of a camera must come to one size; only headers are read."""
    for own in cameras.values():
        key = f"{OBS_IMAGES}.{own}"
        if info["features"][key]["dtype"] != "video":
            continue
        episodes: dict[str, list[int]] = {}
        for row in rows:
            episodes.setdefault(video_of_episode(info, row, key), []).append(row["episode_index"])
        found: dict[tuple[int, int], str] = {}
        sized: dict[tuple[int, int], list[int]] = {}
        for file, inside in episodes.items():
            with suppress(av.FFmpegError, OSError, IndexError), av.open(str(root / file)) as container:
                stream = container.streams.video[0]
                shrunk = shrunk_size((stream.height, stream.width), smolvla)
                found.setdefault(shrunk, f"{stream.width}x{stream.height} in {file}")
                sized.setdefault(shrunk, []).extend(inside)
        if len(found) > 1:
            most = max(sized, key=lambda size: len(sized[size]))
            others = sorted(episode for size in sized if size != most for episode in sized[size])
            drop = f"; or {repair(root, others)} keeps the {len(sized[most])} episodes of one size"
            raise _sizes_differ(root, own, list(found.values()), drop)


def _choose_frames(
    info: Mapping[str, Any], rows: Sequence[Row], cameras: Mapping[str, str]
) -> set[tuple[int, int]]:
    """(episode, frame): the ends of the first and the last file of each camera, and some from between."""
    chosen = {(row["episode_index"], row["length"] // 2) for row in (rows[0], rows[len(rows) // 2], rows[-1])}
    features = [f"{OBS_IMAGES}.{own}" for own in cameras.values()]
    sources = ["data", *(f"videos/{key}" for key in features if info["features"][key]["dtype"] == "video")]
    for source in sources:
        # Of data/ a dataset need not say which file: LeRobot reads them all.
        files = [(row.get(f"{source}/chunk_index"), row.get(f"{source}/file_index")) for row in rows]
        for file in (files[0], files[-1]):
            inside = [row for row, own in zip(rows, files, strict=True) if own == file]
            chosen |= {
                (inside[0]["episode_index"], 0),
                (inside[-1]["episode_index"], inside[-1]["length"] - 1),
            }
    return chosen


Drawn = dict[tuple[int, int], dict[str, Any]]


def _draw(
    root: Path, samples: SampleCache, frames: Frames, numbers: Mapping[tuple[int, int], int]
) -> tuple[Drawn, tuple[str, ...]]:
    """Return the samples at `numbers` that decode, and a warning if some do not: training skips them."""
    drawn: Drawn = {}
    failed: dict[tuple[int, int], str] = {}
    for place, number in numbers.items():
        try:
            drawn[place] = samples[frames.position(number)]
        except DECODE_ERRORS as error:
            failed[place] = one_line(first_cause(error))
        except Exception as error:  # whatever LeRobot trips over
            raise DatasetError(
                f"dataset {root}: {_at(place)} cannot be loaded ({_named(error)}); {_DISAGREE}"
            ) from error
    if not failed:
        return drawn, ()
    place, reason = next(iter(failed.items()))
    text = f"dataset {root}: {len(failed)} of {len(numbers)} frames that were looked at cannot be decoded"
    text += f", the first is {_at(place)} ({reason})"
    if not drawn:
        raise DatasetError(f"{text}; copy its videos again, or encode them anew with h264")
    return drawn, (
        f"{text}; training skips such frames: copy the videos again; doctor --full names the episodes",
    )


def _check_sample(
    root: Path,
    place: tuple[int, int],
    sample: dict[str, Any],
    smolvla: SmolVLAConfig,
    cameras: Mapping[str, str],
) -> None:
    """Raise a `DatasetError` unless the sample has the shapes that the policy is built for."""
    if not isinstance(sample["task"], str):
        raise DatasetError(
            f"dataset {root}: {_at(place)} has no task but {sample['task']!r}; give it a text in "
            "meta/tasks.parquet"
        )
    joints = smolvla.output_features[ACTION].shape[0]
    for key, shape in ((OBS_STATE, (1, joints)), (ACTION, (smolvla.chunk_size, joints))):
        if tuple(sample[key].shape) != shape:
            raise DatasetError(
                f"dataset {root}: {key} of {_at(place)} has the shape {tuple(sample[key].shape)}, must be "
                f"{shape}; write {joints} values a frame, as LeRobot 0.6 records an SO-100"
            )
    for camera, own in cameras.items():
        channels = sample[f"{OBS_IMAGES}.{camera}"].shape[0]
        if channels != 3:
            raise DatasetError(
                f"dataset {root}: the camera {own} has {channels} channels a picture, must be 3: a depth "
                f"camera cannot be {camera}; name one in colour, {how_to_say(f'{camera}=NAME')}, or record "
                "one"
            )


def _check_contrast(root: Path, drawn: Drawn, cameras: Mapping[str, str]) -> tuple[str, ...]:
    """Refuse a camera of which no picture shows anything: the policy would learn not to look there.

    A single dark picture is none: cameras start so, and lights go out. Several are a warning.
    """
    warnings = []
    for camera, own in cameras.items():
        contrast = {place: float(sample[f"{OBS_IMAGES}.{camera}"].std()) for place, sample in drawn.items()}
        blank = [place for place, deviation in contrast.items() if deviation < _MIN_CONTRAST]
        text = (
            f"dataset {root}: {len(blank)} of {len(drawn)} pictures of the camera {own} that were looked at"
        )
        if len(blank) == len(drawn):
            raise DatasetError(
                f"{text} show nothing: they are of one colour; uncover or replace the camera and record "
                f"again, or, in a run with policy.empty_cameras, say {how_to_say(f'{camera}=none')}"
            )
        if len(blank) > 1:
            drop = f"{repair(root, sorted({place[0] for place in blank}))} drops these episodes"
            warnings.append(f"{text} are of one colour, the first is {_at(blank[0])}: {drop}")
    return tuple(warnings)


def _check_batch(root: Path, drawn: Drawn, smolvla: SmolVLAConfig, statistics: Statistics) -> None:
    """Collate all samples and preprocess them, as for one step of training."""
    for key in smolvla.image_features:
        sizes = {tuple(sample[key].shape): _at(place) for place, sample in drawn.items()}
        if len(sizes) > 1:
            named = [f"{shape[2]}x{shape[1]} in {where}" for shape, where in sizes.items()]
            raise _sizes_differ(root, key.removeprefix(f"{OBS_IMAGES}."), named)
    try:
        preprocessor, _ = make_pre_post_processors(smolvla, dataset_stats=merge_statistics([statistics]))
    except Exception as error:  # the Hub client's, tokenizers' and LeRobot's own
        raise PolicyError(
            f"the policy's tokenizer cannot be had from {smolvla.vlm_model_name!r} ({_named(error)}); put it "
            "there, or name another folder in policy.vlm"
        ) from error
    try:
        batch = preprocessor(default_collate(list(drawn.values())))
    except Exception as error:  # torch's and tokenizers' own
        raise DatasetError(
            f"dataset {root}: {len(drawn)} samples make no batch ({_named(error)}); record the dataset again "
            "with LeRobot 0.6"
        ) from error
    for key, value in batch.items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value.float()).all()):
            raise DatasetError(f"dataset {root}: {key} is NaN or infinite once normalised; record it again")


def _sizes_differ(root: Path, camera: str, named: Sequence[str], more: str = "") -> DatasetError:
    return DatasetError(
        f"dataset {root}: the pictures of the camera {camera} differ in size, {named[0]} and {named[1]}; "
        f"record all episodes at one resolution{more}"
    )


def _named(error: BaseException) -> str:
    """Return the first cause, with its type: the text of a `KeyError` alone explains little."""
    cause = first_cause(error)
    return f"{type(cause).__name__}: {one_line(cause)}"


def _at(place: tuple[int, int]) -> str:
    return f"frame {place[1]} of episode {place[0]}"
