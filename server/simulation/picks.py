"""Picks of the scripted expert as episodes, simulated by worker processes in a reproducible order."""

import os
import signal
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import TYPE_CHECKING, Any

from federation.errors import FederationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from server.simulation.so101 import SO101Scene

__all__ = ["Episode", "Job", "SampleDataError", "SampleParameters", "record_episodes"]

MAX_ATTEMPTS = 20


class SampleDataError(FederationError):
    """The sample data cannot be recorded, or its folder is not ours to replace."""


@dataclass(frozen=True)
class SampleParameters:
    """All that decides what is recorded: equal parameters give equal values, and equal frames on one machine.

    Another machine's OpenGL may round a pixel the other way.
    """

    episodes: int = 10
    """episodes of each training site"""
    eval_episodes: int = 4
    """episodes of the holdout"""
    seed: int = 0
    image_size_px: int = 128

    def __post_init__(self) -> None:
        for name, low, high in (
            ("episodes", 1, 10_000),
            ("eval_episodes", 1, 10_000),
            ("seed", 0, 2**31 - 1),
            ("image_size_px", 16, 1024),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise SampleDataError(f"{name} is {value}: give {low} to {high}")


@dataclass(frozen=True)
class Job:
    """An episode to record."""

    dataset: str
    variant: str
    number: tuple[int, int]
    """of the dataset, and of the episode in it: they decide its seeds"""


@dataclass(frozen=True)
class Episode:
    """One recorded pick of T frames: what was seen, then what was commanded."""

    task: str
    states: "NDArray[Any]"
    """(T, 6) float32, degrees and gripper percent"""
    actions: "NDArray[Any]"
    """(T, 6) float32, same units"""
    images: dict[str, "NDArray[Any]"]
    """feature -> (T, H, W, 3) uint8"""
    attempts: int


def record_episodes(jobs: Sequence[Job], parameters: SampleParameters, workers: int) -> Generator[Episode]:
    """Yield the episodes in the order of `jobs`, recorded by `workers` processes, or by this one if 1.

    Raises:
        SampleDataError: the expert keeps failing.
        SimulationError: the simulated arm cannot be built or drawn here.
    """
    if workers == 1:
        for job in jobs:
            yield _record_episode(job, parameters)
        return
    # Spawned, not forked: neither torch nor OpenGL survives a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_worker)
    try:
        ahead: deque[Future[Episode]] = deque()
        for job in jobs:
            ahead.append(pool.submit(_record_episode, job, parameters))
            if len(ahead) > 2 * workers:  # an episode is 10 MB of pixels: do not let them pile up
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _record_episode(job: Job, parameters: SampleParameters) -> Episode:
    """Simulate one episode with one seed after another until the pick succeeds."""
    import numpy as np

    from server.simulation.expert import plan_pick, play

    scene = _scene(job.variant, parameters.image_size_px)
    for attempt in range(MAX_ATTEMPTS):
        entropy = (parameters.seed, *job.number, attempt)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        scene.reset(seed)
        plan = plan_pick(scene, seed)
        if play(scene, plan):
            return _draw_episode(scene, seed, plan, attempts=attempt + 1)
    raise SampleDataError(
        f"{job.dataset} episode {job.number[1]}: {MAX_ATTEMPTS} picks failed in a row; try another --seed"
    )


@cache
def _scene(variant: str, image_size_px: int) -> "SO101Scene":
    from server.simulation.scenes import VARIANTS
    from server.simulation.so101 import SO101Scene

    return SO101Scene(VARIANTS[variant], image_size_px)


def _draw_episode(scene: "SO101Scene", seed: int, plan: "NDArray[Any]", attempts: int) -> Episode:
    """Play `plan` (T, 6) again from the same seed, this time with the cameras on."""
    import numpy as np

    scene.reset(seed)
    seen = []
    for targets in plan:
        seen.append(scene.observe())
        scene.step(targets)
    frames = {key: np.stack([observation[key] for observation in seen]) for key in seen[0]}
    return Episode(scene.variant.task, frames.pop("observation.state"), plan, frames, attempts)
