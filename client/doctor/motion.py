"""The doctor's look at how the arm moves: jumps, frozen joints, episodes that are short or repeated.

None of it keeps a dataset from training, and an unusual task may be recorded just so: all are warnings. The
limits are set to stay silent on a quick hand: SO-100's servos turn 270 degrees a second at most.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.doctor.check import Check, plural
from federation.data.joint_names import JOINTS
from federation.data.joint_values import dead_joints
from federation.data.statistics import FEATURES

__all__ = ["check_motion"]

Episodes = Mapping[int, Mapping[str, NDArray[Any]]]
Fix = Callable[[Sequence[int]], str]

_JUMP_PER_SECOND = 1500.0  # degrees, or hundredths of the range: 50 from one frame to the next at 30 fps
_JUMP_FACTOR = 6.0  # and so many times what the joint does in all but 5 % of the frames
_STILL = 0.5  # a joint that moves by less in all episodes is never used; a servo's tick is 0.09 degrees
_COMMANDED = 20.0  # a joint that does not move while its action moves by more does not follow
_STUCK_SECONDS, _SHORT_SECONDS = 1.0, 1.0
_MAX_NAMED = 3
_STATE, _ACTION = FEATURES


def check_motion(episodes: Episodes, fps: int, fix: Fix) -> list[Check]:
    """Return warnings, or one line that there is nothing to warn of.

    Args:
        episodes: as `split_episodes` gives them, without those that are left out.
        fix: says what can be done about episodes.
    """
    found = [
        *_check_jumps(episodes, fps, fix),
        *_check_frozen(episodes, fps, fix),
        *_check_unused(episodes),
        *_check_duplicates(episodes, fix),
        *_check_short(episodes, fps, fix),
    ]
    return found or [Check("ok", "motion", "no jumps, no frozen joints, no episode short or repeated")]


def _check_jumps(episodes: Episodes, fps: int, fix: Fix) -> list[Check]:
    checks = []
    for feature in FEATURES:
        steps = {index: np.abs(np.diff(own[feature], axis=0)) for index, own in episodes.items()}
        # The row of zeros is for a dataset in which no frame has a next one.
        usual = np.percentile(np.concatenate([np.zeros((1, len(JOINTS))), *steps.values()]), 95, axis=0)
        limit = np.maximum(_JUMP_PER_SECOND / fps, _JUMP_FACTOR * usual)
        jumped = {index: step for index, step in steps.items() if (step > limit).any()}
        if not jumped:
            continue
        worst = max(jumped, key=lambda index: float((jumped[index] / limit).max()))
        frame, joint = np.unravel_index((jumped[worst] / limit).argmax(), jumped[worst].shape)
        before, after = episodes[worst][feature][[frame, frame + 1], joint]
        jumps = sum(int((step > limit).sum()) for step in jumped.values())
        text = (
            f"{feature.rpartition('.')[2]}: {plural(jumps, 'jump')} in {_name(list(jumped))}, the largest: "
            f"{JOINTS[joint]} from {before:.1f} to {after:.1f} at frame {frame + 1} of episode {worst}"
        )
        checks.append(Check("warning", "jumps", f"{text}; {fix([worst])}"))
    return checks


def _check_frozen(episodes: Episodes, fps: int, fix: Fix) -> list[Check]:
    """Check for a joint that reads the same for a second or more while its action moves, in some episodes.

    One that does so in each is reported by the judgement that the join shares
    (`federation/data/joint_values.py`).
    """
    frozen = []
    dead = dead_joints(episodes, fps)
    for index, own in episodes.items():
        for joint, name in enumerate(JOINTS):
            if joint in dead:
                continue
            first, length = _longest_stretch(own[_STATE][:, joint])
            # A gripper that holds a thing stands still however hard it is told to close.
            least = len(own[_STATE]) if "gripper" in name else _STUCK_SECONDS * fps
            if length >= least and np.ptp(own[_ACTION][first : first + length, joint]) > _COMMANDED:
                value = own[_STATE][first, joint]
                text = (
                    f"{name} stays at {value:.1f} for {length} frames from frame {first} of episode {index}"
                )
                frozen.append((index, text))
    if not frozen:
        return []
    worst, text = frozen[0]
    if more := len(frozen) - 1:
        text += f", and so in {plural(more, 'other place')}"
    text = f"a joint does not follow its action: {text}"
    return [Check("warning", "frozen", f"{text}; check its servo and cable; {fix([worst])}")]


def _check_unused(episodes: Episodes) -> list[Check]:
    checks = []
    for joint, name in enumerate(JOINTS):
        values = [own[feature][:, joint] for own in episodes.values() for feature in FEATURES]
        if np.ptp(np.concatenate(values)) < _STILL:
            text = f"{name} stays at {values[0][0]:.1f} in every frame of every episode"
            checks.append(Check("warning", "frozen", f"{text}; if the task needs it, check its servo"))
    return checks


def _check_duplicates(episodes: Episodes, fix: Fix) -> list[Check]:
    seen: dict[str, int] = {}
    twice = []
    for index, own in episodes.items():
        digest = hashlib.sha256(own[_STATE].tobytes() + own[_ACTION].tobytes()).hexdigest()
        if (first := seen.setdefault(digest, index)) != index:
            twice.append((index, first))
    if not twice:
        return []
    pairs = ", ".join(f"{index} repeats {first}" for index, first in twice[:_MAX_NAMED])
    more = ", ..." if len(twice) > _MAX_NAMED else ""
    text = f"{plural(len(twice), 'episode')} repeated with the same states and actions: {pairs}{more}"
    return [Check("warning", "duplicates", f"{text}; {fix([episode for episode, _ in twice])}")]


def _check_short(episodes: Episodes, fps: int, fix: Fix) -> list[Check]:
    short = [index for index, own in episodes.items() if len(own[_STATE]) < _SHORT_SECONDS * fps]
    if not short:
        return []
    text = f"shorter than {_SHORT_SECONDS:.0f} s: {_name(short)}"
    return [Check("warning", "short", f"{text}; {fix(short)}")]


def _longest_stretch(values: NDArray[Any]) -> tuple[int, int]:
    """First frame and length of the longest stretch of one value."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    lengths = np.diff(np.append(starts, len(values)))
    longest = lengths.argmax()
    return int(starts[longest]), int(lengths[longest])


def _name(episodes: Sequence[int]) -> str:
    more = ", ..." if len(episodes) > _MAX_NAMED else ""
    noun = "episode" if len(episodes) == 1 else "episodes"
    return f"{noun} {', '.join(map(str, episodes[:_MAX_NAMED]))}{more}"
