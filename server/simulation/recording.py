"""Record the sample datasets: `so100-server sample-data`.

A scripted SO-101 in simulation picks up cubes at two sites that differ as real ones do, in object, wording,
cameras and light. `site-a` and `site-b` are to train on; `holdout` mixes both with seeds of its own, for the
server to evaluate on. Each is a LeRobot v3 dataset of picks that the simulator calls a success.

A second run with the same parameters returns at once: so nothing heavy is imported before that is known.
Episodes are simulated by worker processes and written by this one; the result does not depend on how many.
"""

import json
import signal
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from federation.data.simulated import SIMULATED_ROBOT
from federation.files import write_folder
from server.simulation.picks import Episode, Job, SampleDataError, SampleParameters, record_episodes
from server.simulation.sample_folder import (
    MANIFEST_KIND,
    MANIFEST_NAME,
    foreign_entries,
    mark_as_simulated,
    read_manifest,
)

__all__ = ["DATASETS", "SampleDataError", "SampleParameters", "ensure_sample_data", "record_sample_data"]

DATASETS = {"site-a": ("site-a",), "site-b": ("site-b",), "holdout": ("site-a", "site-b")}
"""Dataset -> the scene variants that its episodes take in turn."""
_DEFAULT_SCENES = {name: list(variants) for name, variants in DATASETS.items()}
SCHEMA_VERSION = 1  # raise it when the scene, the expert or the recorded features change
_stopped_by: list[int] = []  # the signals that `_stop` was called for


def ensure_sample_data(
    out: Path,
    parameters: SampleParameters,
    workers: int = 2,
    datasets: Mapping[str, tuple[str, ...]] = DATASETS,
) -> dict[str, Any] | None:
    """Record the datasets into `out`, unless they are there already.

    They appear under `out` all at once or not at all; sample data of other parameters is replaced.

    Args:
        datasets: dataset -> the scene variants that its episodes take in turn; "holdout" has
            `eval_episodes` of them.

    Returns:
        dataset -> {"episodes", "frames", "attempts"}, or None if nothing had to be done.

    Raises:
        SampleDataError: `out` holds anything but sample data, or the expert keeps failing.
        SimulationError: the simulated arm cannot be built or drawn here.
    """
    out = out.absolute()
    manifest: dict[str, Any] = {
        "kind": MANIFEST_KIND,
        "schema": SCHEMA_VERSION,
        "parameters": asdict(parameters),
    }
    manifest["scenes"] = {name: list(variants) for name, variants in datasets.items()}
    if _is_complete(out, manifest, datasets):
        mark_as_simulated(out)
        return None
    _refuse_unknown_scenes(datasets)
    _refuse_foreign_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)

    def record(staging: Path) -> None:
        manifest["datasets"] = _record_all(staging, parameters, datasets, workers)
        (staging / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for video in staging.rglob("*.mp4"):
            video.chmod(0o644)  # LeRobot moves them from temporary files, which only their owner may read
        _refuse_foreign_folder(out)  # minutes have passed

    write_folder(out, record)
    return dict(manifest["datasets"])


def _is_complete(out: Path, wanted: dict[str, Any], datasets: Iterable[str]) -> bool:
    found = {"scenes": _DEFAULT_SCENES, **read_manifest(out)}  # recordings of before do not name theirs
    return all(found.get(key) == value for key, value in wanted.items()) and all(
        (out / name / "meta" / "info.json").is_file() for name in datasets
    )


def _refuse_foreign_folder(out: Path) -> None:
    """Raise SampleDataError if replacing `out` would delete anything that this command did not record."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise SampleDataError(f"--out {out} is not a plain folder; name another one")
    if out.exists() and (foreign := foreign_entries(out)):
        raise SampleDataError(
            f"--out {out} holds {foreign[0]!r}, which is not our sample data; name another folder or empty it"
        )


def _refuse_unknown_scenes(datasets: Mapping[str, tuple[str, ...]]) -> None:
    from server.simulation.scenes import unknown_variant

    if wrong := unknown_variant(name for variants in datasets.values() for name in variants):
        raise SampleDataError(f"scene {wrong}")


def _record_all(
    root: Path, parameters: SampleParameters, datasets: Mapping[str, tuple[str, ...]], workers: int
) -> dict[str, dict[str, int]]:
    """Record every dataset under `root`; dataset -> {"episodes", "frames", "attempts"}."""
    import av
    from datasets.utils.logging import disable_progress_bar
    from tqdm import tqdm

    # Else each episode adds a bar of its own and thirty lines of x264's statistics.
    disable_progress_bar()
    av.logging.set_libav_level(av.logging.ERROR)
    jobs = [
        Job(dataset, variants[episode % len(variants)], (number, episode))
        for number, (dataset, variants) in enumerate(datasets.items())
        for episode in range(parameters.eval_episodes if dataset == "holdout" else parameters.episodes)
    ]
    counts = {name: {"episodes": 0, "frames": 0, "attempts": 0} for name in datasets}
    writers: dict[str, Any] = {}
    with (
        closing(record_episodes(jobs, parameters, workers)) as episodes,
        tqdm(total=len(jobs), unit="ep") as progress,
    ):
        for job, episode in zip(jobs, episodes, strict=True):
            _leave_if_stopped()
            name = job.dataset
            progress.set_description(name)
            if name not in writers:
                writers[name] = _create_dataset(root / name, parameters.image_size_px)
            _write_episode(writers[name], episode)
            added = {"episodes": 1, "frames": len(episode.states), "attempts": episode.attempts}
            counts[name] = {key: counts[name][key] + amount for key, amount in added.items()}
            progress.update()
    for writer in writers.values():
        writer.finalize()
    return counts


def _create_dataset(root: Path, image_size_px: int) -> Any:
    """Return an empty LeRobotDataset with an SO-100 follower's features, video in h264."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from federation.data.joint_names import JOINTS
    from server.simulation.so101 import FPS

    joints = {"dtype": "float32", "shape": (6,), "names": [f"{name}.pos" for name in JOINTS]}
    image = {
        "dtype": "video",
        "shape": (image_size_px, image_size_px, 3),
        "names": ["height", "width", "channels"],
    }
    return LeRobotDataset.create(
        repo_id=f"local/{root.name}",
        root=root,
        fps=FPS,
        robot_type=SIMULATED_ROBOT,
        features={
            "action": joints,
            "observation.state": joints,
            "observation.images.top": image,
            "observation.images.wrist": image,
        },
        rgb_encoder=RGBEncoderConfig(vcodec="h264"),
        video_backend="pyav",
    )


def _write_episode(dataset: Any, episode: Episode) -> None:
    for index, (state, action) in enumerate(zip(episode.states, episode.actions, strict=True)):
        images = {key: frames[index] for key, frames in episode.images.items()}
        dataset.add_frame({"observation.state": state, "action": action, **images, "task": episode.task})
    dataset.save_episode(parallel_encoding=False)  # or LeRobot forks, which a process with threads must not


def _datasets(scenes: str) -> dict[str, tuple[str, ...]]:
    """Like `DATASETS`, for the comma-separated `scenes`."""
    names = tuple(name.strip() for name in scenes.split(","))
    sites = {f"site-{letter}": (name,) for letter, name in zip(ascii_lowercase, names, strict=False)}
    return {**sites, "holdout": names}


def _stop(signum: int, _frame: object) -> None:
    """Leave by an exception, so that the unfinished recording is removed."""
    _stopped_by.append(signum)
    _leave_if_stopped()


def _leave_if_stopped() -> None:
    """Leave, or leave again: Python drops an exception in a callback, and imports have such callbacks."""
    if _stopped_by:
        raise SystemExit(128 + _stopped_by[-1])


def record_sample_data(out: Path, parameters: SampleParameters, scenes: str, workers: int = 2) -> None:
    """Record the sample datasets into `out`, unless they are there, and print what they hold.

    Args:
        scenes: of server/simulation/scenes.py, separated by commas: the first at site-a, the next at site-b.
        workers: processes that simulate.

    Raises:
        SampleDataError: an argument is at fault, `out` is not ours, or the expert keeps failing.
        SimulationError: the simulated arm cannot be built or drawn here.
    """
    if not 1 <= workers <= 64:
        raise SampleDataError(f"workers is {workers}: give 1 to 64")
    signal.signal(signal.SIGTERM, _stop)
    recorded = ensure_sample_data(out, parameters, workers, _datasets(scenes))
    if recorded is None:
        print(f"sample data in {out} is up to date")
        return
    for name, count in recorded.items():
        print(
            f"{name}: {count['episodes']} episodes, {count['frames']} frames, "
            f"{count['episodes']} successes in {count['attempts']} attempts"
        )
