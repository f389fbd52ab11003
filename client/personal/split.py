"""Which of a site's episodes a personal policy is measured on, and not tuned on."""

import dataclasses
import random
from collections.abc import Collection

from client.recordings.held import Holding, Holdings
from federation.errors import DatasetError

__all__ = ["split_episodes"]

_HELD_OUT_SHARE = 0.1
_NOT_HERE = "in the other part"


def split_episodes(held: Holdings, seed: int) -> tuple[Holdings, Holdings]:
    """Return what to train on and what to measure on: a tenth of all episodes, one at least.

    Args:
        seed: draws which; the same with the same recordings.

    Raises:
        DatasetError: there is one episode only.
    """
    episodes = [
        (number, episode)
        for number, part in enumerate(held.parts)
        for episode in part.description.usable_episodes
    ]
    if len(episodes) < 2:
        raise DatasetError("a personal policy needs two episodes at least, one of them to measure it on")
    count = max(1, round(_HELD_OUT_SHARE * len(episodes)))
    chosen = set(random.Random(seed).sample(episodes, count))
    return _only(held, set(episodes) - chosen), _only(held, chosen)


def _only(held: Holdings, episodes: Collection[tuple[int, int]]) -> Holdings:
    """Return `held` with these episodes of it, each named by the number of its recording and its own."""
    parts = []
    for number, part in enumerate(held.parts):
        usable = part.description.usable_episodes
        out = {episode: _NOT_HERE for episode in usable if (number, episode) not in episodes}
        if len(out) == len(usable):
            continue
        left_out = {**part.description.left_out, **out}
        parts.append(Holding(part.recording, dataclasses.replace(part.description, left_out=left_out)))
    return Holdings(tuple(parts), held.is_complete)
