"""Whose camera is which: sites name theirs differently, and may have fewer than the policy sees.

A camera of the policy is the site's one of the same name, or else its only one with a usual name for that
place; a site says otherwise in its node configuration, `cameras="top=phone,wrist=none"`. A camera that a site
lacks, where the run allows that, is an empty one, as SmolVLA pads them: black and masked out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from federation.errors import ConfigError, DatasetError, one_line

__all__ = ["CameraChoice", "how_to_say", "match_cameras", "parse_camera_names", "spell_cameras"]

_NONE = "none"
_PLACES = (  # without sides: a view from the left under the name of one from the right is mirrored
    ("top", "up", "above", "overhead", "ceiling", "birdseye"),
    ("front", "base", "laptop", "webcam"),
    ("wrist", "wrist_cam", "gripper", "hand"),
)


@dataclass(frozen=True)
class CameraChoice:
    """Which of a dataset's cameras a run uses, as `match_cameras` takes it."""

    wanted: Sequence[str]  # the policy's cameras, without `observation.images.`
    names: Mapping[str, str] | None = field(default_factory=dict)  # what its site calls them; None: no site's
    may_lack: int = 0  # how many of them the dataset may lack


def parse_camera_names(text: str) -> dict[str, str]:
    """`"top=phone,wrist=none"` as `{"top": "phone", "wrist": "none"}`; `{}` for an empty text.

    Raises:
        ConfigError: it is not of that form.
    """
    names: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        camera, equals, own = (piece.strip() for piece in part.partition("="))
        if not (camera and equals and own) or camera in names:
            raise ConfigError(
                f"cameras = {text!r}: must be POLICY_CAMERA=OWN_CAMERA,..., e.g. 'top=phone,wrist=none'"
            )
        names[camera] = own
    return names


def match_cameras(
    wanted: Sequence[str],
    recorded: Sequence[str],
    names: Mapping[str, str] | None,
    may_lack: int,
    dataset: str,
) -> dict[str, str]:
    """Return the recorded camera for each of the policy's; one that is lacking is not in the result.

    Args:
        wanted, recorded: without `observation.images.`.
        names: what the site says of its own, as `parse_camera_names` gives it; None where nobody can say it.
        may_lack: how many cameras may be lacking; never all.
        dataset: names the dataset in errors.

    Raises:
        DatasetError: a camera is lacking or cannot be told, one would be two of the policy's, or `names`
            names one that is not there.
    """
    say = how_to_say if names is not None else _where_nobody_says
    _check_said(names := names or {}, wanted, recorded, dataset)
    matched = {camera: own for camera, own in names.items() if own != _NONE}
    for camera in wanted:
        if camera in names:
            continue
        free = [own for own in recorded if own not in matched.values() and own not in wanted]
        usual = [own for own in free if any(camera in place and own in place for place in _PLACES)]
        if camera in recorded:
            matched[camera] = camera
        elif len(usual) == 1:
            matched[camera] = usual[0]
        elif usual:
            raise DatasetError(
                f"dataset {dataset}: {_list(usual)} could each be the camera {camera}; say which: "
                f"{say(f'{camera}={usual[0]}')}"
            )
    missing = [camera for camera in wanted if camera not in matched]
    if len(missing) > min(may_lack, len(wanted) - 1):
        raise DatasetError(
            f"dataset {dataset}: lacks the camera {_list(missing)} (it has {_list(recorded)}); record "
            "it, or change policy.cameras or policy.empty_cameras in the run configuration, or say which it "
            f"is: {say(f'{missing[0]}=NAME')}"
        )
    taken = list(matched.values())
    if twice := [camera for camera in wanted if taken.count(matched.get(camera, "")) > 1]:
        raise DatasetError(
            f"dataset {dataset}: {matched[twice[0]]} is taken for each of the cameras {_list(twice)}; say "
            f"which is which: {say(','.join(f'{camera}=NAME' for camera in twice))}"
        )
    return {camera: matched[camera] for camera in wanted if camera in matched}


def _check_said(
    names: Mapping[str, str], wanted: Sequence[str], recorded: Sequence[str], dataset: str
) -> None:
    for camera, own in names.items():
        if camera not in wanted or own not in (*recorded, _NONE):
            raise DatasetError(
                f"dataset {dataset}: cameras says {camera}={own}; the policy has {_list(wanted)}, "
                f"the dataset {_list(recorded)}"
            )


def spell_cameras(wanted: Sequence[str], matched: Mapping[str, str]) -> list[str]:
    """For logs and the record: `["top=phone", "wrist", "side=none"]`."""
    own = [matched.get(camera, _NONE) for camera in wanted]
    return [
        camera if camera == name else f"{camera}={name}" for camera, name in zip(wanted, own, strict=True)
    ]


def how_to_say(names: str) -> str:
    """Return how a site's owner says what its cameras are, such as `top=phone`."""
    return f"--camera-names {names} beside --data, with Docker CAMERA_NAMES or SITE_A_CAMERA_NAMES in .env"


def _where_nobody_says(_: str) -> str:
    """As `how_to_say`, of a hold-out and of the data of `make demo`, which no site's owner speaks for."""
    return "in policy.cameras of the run configuration, for a hold-out, or data of make demo, keeps its names"


def _list(cameras: Sequence[str]) -> str:
    return one_line(", ".join(cameras)) or "none"
