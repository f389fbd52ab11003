from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.personal.split import split_episodes
from client.recordings.held import Holding, Holdings
from client.recordings.opened import Recording
from client.recordings.sources import Source
from federation.data.description import DatasetDescription
from federation.errors import DatasetError


def _held(*recordings: tuple[int, set[int]]) -> Holdings:
    """Recordings of so many episodes, some of them left out."""
    statistics: Any = {"action": {"count": [40]}}
    parts = []
    for number, (episodes, left_out) in enumerate(recordings):
        reasons = dict.fromkeys(left_out, "NaN")
        description = DatasetDescription(30, episodes, 40, ("top",), statistics, reasons)
        place = Path(f"/data/{number}")
        parts.append(Holding(Recording(Source(str(place)), place, place), description))
    return Holdings(tuple(parts))


def _episodes(held: Holdings) -> set[tuple[Path, int]]:
    return {
        (part.recording.root, episode) for part in held.parts for episode in part.description.usable_episodes
    }


@given(
    st.lists(
        st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))),
        min_size=1,
    ),
    st.integers(0, 5),
)
def test_a_tenth_is_kept_apart_and_nothing_is_lost_or_in_both(
    recordings: list[tuple[int, set[int]]], seed: int
) -> None:
    held = _held(*recordings)
    whole = _episodes(held)
    if len(whole) < 2:
        with pytest.raises(DatasetError, match="needs two episodes"):
            split_episodes(held, seed)
        return
    learnt, measured = split_episodes(held, seed)
    assert _episodes(learnt) | _episodes(measured) == whole
    assert not _episodes(learnt) & _episodes(measured)
    assert len(_episodes(measured)) == max(1, round(len(whole) / 10))
    assert all(part.description.usable_episodes for part in (*learnt.parts, *measured.parts))
    assert _episodes(split_episodes(held, seed)[1]) == _episodes(measured)


def test_another_seed_keeps_other_episodes() -> None:
    held = _held((50, set()))
    assert len({frozenset(_episodes(split_episodes(held, seed)[1])) for seed in range(5)}) == 5


def test_what_a_recording_is_stays() -> None:
    held = _held((10, {3}), (10, set()))
    learnt, _ = split_episodes(held, 0)
    assert learnt.is_complete
    assert learnt.parts[0].description.left_out[3] == "NaN"
    assert SimpleNamespace(**vars(learnt.parts[0].recording)) == SimpleNamespace(
        **vars(held.parts[0].recording)
    )
