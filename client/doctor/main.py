"""The doctor: what would go wrong at this site, reported before the first round.

One line for each check: the level, the thing, its value and, where something is wrong, the fix.
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path

from client.doctor.check import Check
from client.doctor.connection import check_superlink
from client.doctor.dataset import check_dataset
from client.doctor.device import check_device
from client.doctor.machine import check_ca, check_key, check_scratch, check_software
from client.doctor.rules import check_owner_rules
from client.doctor.samples import check_samples
from client.recordings.held import mixing_faults, same_frames
from client.recordings.opened import Recording, copies_kept, open_recordings
from client.recordings.sources import Source, sessions_of
from federation.addresses import parse_address
from federation.data.description import DatasetDescription
from federation.errors import ConfigError, FederationError, printable
from federation.settings import PolicyConfig

__all__ = ["examine_site"]


def examine_site(
    sources: Sequence[Source],
    *,
    cameras: str = "",
    policy: PolicyConfig | None = None,
    full: bool = False,
    scratch: Path | None = None,
    key: Path | None = None,
    ca: Path | None = None,
    superlink: str | None = None,
    gpu_bytes: int | None = None,
    rules: Path | None = None,
    round_bytes: int | None = None,
    app: str | None = None,
) -> bool:
    """Print the table of all checks; return whether none found an error.

    Args:
        sources: the recordings.
        cameras: those of the run configuration, separated by commas; "": the usual ones.
        policy: all that the run asks of a dataset, if that is known; then `cameras` is not looked at.
        full: decode every frame of every video.
        scratch: the SuperNode's; what it, `key`, `ca` and `superlink` ("host:port") are is left out if None.
        gpu_bytes: what the run's training takes of a GPU's memory, if that is known.
        rules: the owner's.
        round_bytes: what a round receives and sends, if that is known.
        app: the digest of the operator's release, if that is known.

    Raises:
        ConfigError: `superlink` is malformed, or `superlink` comes without `ca`.
    """
    address = _parse_address(superlink) if superlink else None
    if superlink and not ca:
        raise ConfigError("--superlink needs --ca: the authority's certificate, ca.crt")
    wanted = policy or PolicyConfig(cameras=cameras or PolicyConfig().cameras)
    failed = False
    looks = _look_at_data(sources, wanted, policy is not None, full, scratch)
    own = check_owner_rules(rules, round_bytes) if rules else []
    for check in chain(looks, own, _look_at_machine(scratch, key, ca, address, gpu_bytes, app)):
        print(f"{check.level:<8} {check.what:<11} {printable(check.text)}", flush=True)
        failed |= check.level == "error"
    print("this site is not ready: fix the errors above" if failed else "this site is ready")
    return not failed


def _look_at_data(
    sources: Sequence[Source],
    policy: PolicyConfig,
    is_known: bool,
    full: bool,
    scratch: Path | None,
) -> Iterator[Check]:
    asked = policy if is_known else None
    good: dict[Path, DatasetDescription] = {}
    # One that cannot be written has a line of `check_scratch`.
    cache = scratch if scratch and os.access(scratch, os.W_OK) else None
    with tempfile.TemporaryDirectory() as temporary, copies_kept(cache or Path(temporary)):
        unnamed = {source.data: text for source in sources if (text := sessions_of(source.data))}
        for name, text in unnamed.items():
            yield Check("error", "dataset", f"{name}: no folder of that name{text}")
        named = [source for source in sources if source.data not in unnamed]
        recordings, faults = open_recordings(named, cache or Path(temporary))
        yield from (Check("error", "dataset", str(fault).removeprefix("dataset ")) for fault in faults)
        for recording in recordings:
            names = recording.source.cameras
            checks, description = check_dataset(recording.root, policy.camera_names, names, full, asked)
            yield from (_about(check, recording) for check in checks)
            if description and not any(check.level == "error" for check in checks):
                good[recording.root] = description
        yield from _check_together([each for each in recordings if each.root in good], good)
        if not good:
            return
        if sys.stderr.isatty():
            print("looking at samples as training does: ten seconds or more", file=sys.stderr)
        for check in check_samples(good, policy.camera_names, cache):
            for recording in recordings:
                check = _about(check, recording)
            yield check


def _check_together(
    recordings: Sequence[Recording], described: Mapping[Path, DatasetDescription]
) -> Iterator[Check]:
    """Check that the recordings can be trained on together."""
    named = {each.place: described[each.root] for each in recordings}
    yield from (Check("error", "together", line) for line in mixing_faults(named))
    for (one, first), (other, second) in combinations(named.items(), 2):
        if same_frames(first, second):
            yield Check("error", "together", f"{other} holds the frames of {one}; name one of them")
    if len(recordings) > 1:
        frames = sum(description.usable_frames for description in described.values())
        text = f"{len(recordings)} recordings, {frames} frames"
        yield Check("ok", "together", text)


def _about(check: Check, recording: Recording) -> Check:
    """Return `check` about what the owner named, not about a copy of it in scratch."""
    text, name = check.text, recording.root.name
    if text.startswith(f"{name}: "):
        text = recording.label + text.removeprefix(name)
    return dataclasses.replace(check, text=recording.spell(text))


def _look_at_machine(
    scratch: Path | None,
    key: Path | None,
    ca: Path | None,
    superlink: tuple[str, int] | None,
    gpu_bytes: int | None,
    app: str | None,
) -> Iterator[Check]:
    if scratch:
        yield from check_scratch(scratch)
    if key:
        yield from check_key(key)
    if ca:
        yield from check_ca(ca)
    if superlink and ca:
        yield from check_superlink(*superlink, ca)
    yield from check_software(app)
    yield from check_device(gpu_bytes)


def _parse_address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except FederationError as error:
        raise ConfigError(f"--superlink {error}") from None
