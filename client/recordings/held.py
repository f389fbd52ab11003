"""What a site's recordings hold together: judged one by one, described as one.

A recording that cannot be trained on is left out by name, and the others are used: a disk that is not
plugged in must not end the site. Recordings that may not be mixed are refused as a whole: which of them is
meant, only their owner knows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.recordings.opened import Recording, open_recordings
from client.recordings.sources import Source
from federation.data.description import DatasetDescription
from federation.data.statistics import FEATURES, Statistics, pool_statistics
from federation.errors import DatasetError
from federation.judgement.judge import DatasetUse, judge_each
from federation.logs import get_logger
from federation.settings import PolicyConfig

__all__ = ["Holding", "Holdings", "judge_recordings", "mixing_faults", "same_frames"]

_MAX_CHARACTERS = 80  # of what is said of one camera
_log = get_logger("client.recordings.held")


@dataclass(frozen=True)
class Holding:
    """A recording that can be trained on, and what its files say."""

    recording: Recording
    description: DatasetDescription


@dataclass(frozen=True)
class Holdings:
    """All recordings of a site that can be trained on: one at least."""

    parts: tuple[Holding, ...]
    is_complete: bool = True  # none that its owner names is left out

    @property
    def descriptions(self) -> list[DatasetDescription]:
        """Of each recording."""
        return [part.description for part in self.parts]

    @property
    def episodes(self) -> int:
        """How many are used."""
        return sum(len(description.usable_episodes) for description in self.descriptions)

    @property
    def frames(self) -> int:
        """How many they have."""
        return sum(description.usable_frames for description in self.descriptions)

    @property
    def statistics(self) -> Statistics:
        """Those of all frames that are used."""
        return pool_statistics([description.statistics for description in self.descriptions])

    def spell_cameras(self, wanted: Sequence[str]) -> list[str]:
        """`["top=phone/laptop", "wrist"]`: what each camera of the policy is called in the recordings."""
        spelled = []
        for camera in wanted:
            own = list(dict.fromkeys(each.used_cameras.get(camera, "none") for each in self.descriptions))
            names = "/".join(own)
            if len(own) > 1 and len(names) > _MAX_CHARACTERS:
                names = f"{own[0]} and {len(own) - 1} others"
            spelled.append(camera if own == [camera] else f"{camera}={names}")
        return spelled


def judge_recordings(sources: Sequence[Source], policy: PolicyConfig, scratch: Path) -> Holdings:
    """Return what `sources` hold for a run with `policy`; log one line for each recording that is left out.

    Raises:
        DatasetError: no recording can be trained on, or they may not be mixed.
    """
    recordings, faults = open_recordings(sources, scratch)
    uses = [DatasetUse(each.root, policy, scratch, each.source.cameras) for each in recordings]
    parts: list[Holding] = []
    for recording, found in zip(recordings, judge_each(uses), strict=True):
        if isinstance(found, DatasetError):
            faults.append(_about(recording, found))
        elif (other := _first_same(found, parts)) is not None:
            text = f"dataset {recording.place}: holds the frames of {other.recording.place}; name one of them"
            faults.append(DatasetError(text))
        else:
            warnings = tuple(map(recording.spell, found.warnings))
            parts.append(Holding(recording, dataclasses.replace(found, warnings=warnings)))
    if not parts:
        raise faults[0]
    for fault in faults:
        _log.warning("one recording is left out, the others are used: %s", fault)
    if wrong := mixing_faults({part.recording.place: part.description for part in parts}):
        raise DatasetError(wrong[0])
    return Holdings(tuple(parts), is_complete=not faults)


def mixing_faults(described: Mapping[str, DatasetDescription]) -> list[str]:
    """Return why datasets may not be trained on together, one line each; [] if they may.

    Args:
        described: by the name that its owner knows each by.
    """
    facts = {
        "recorded": {
            name: "on a simulated arm" if each.simulated else "on an arm" for name, each in described.items()
        },
        "frames/s": {name: str(each.fps) for name, each in described.items()},
        "joints": {
            name: f"in {each.joint_units.possible[0]}"
            for name, each in described.items()
            if len(each.joint_units.possible) == 1
        },
    }
    lines = []
    for what, values in facts.items():
        kinds = dict.fromkeys(values.values())
        if len(kinds) > 1:
            named = [f"{kind}: {', '.join(n for n, own in values.items() if own == kind)}" for kind in kinds]
            lines.append(
                f"recordings of one site may not be mixed so: {what} {'; '.join(named)}; leave some out"
            )
    return lines


def same_frames(one: DatasetDescription, other: DatasetDescription) -> bool:
    """Whether two datasets hold the same frames, as a copy or another format of one does."""
    return one.usable_frames == other.usable_frames and all(
        np.array_equal(values, other.statistics[feature][name])
        for feature in FEATURES
        for name, values in one.statistics[feature].items()
    )


def _first_same(description: DatasetDescription, parts: Sequence[Holding]) -> Holding | None:
    return next((part for part in parts if same_frames(description, part.description)), None)


def _about(recording: Recording, error: DatasetError) -> DatasetError:
    text = recording.spell(str(error))
    return error if text == str(error) else DatasetError(text)
