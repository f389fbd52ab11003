"""`so100-site data`: which recordings this site has, also while it takes part."""

from collections.abc import Sequence

from client.membership.folder import SiteFolder
from client.recordings.held import judge_recordings
from client.recordings.opened import copies_kept
from client.recordings.sources import HUB, Source, check_together, read_list, settle, write_list
from federation.errors import ConfigError
from federation.invitation import read_invitation
from federation.key_files import locked, replace

__all__ = ["change_recordings"]


def change_recordings(site: SiteFolder, added: Sequence[Source], removed: Sequence[str]) -> None:
    """Add and remove recordings and print those that there are; the next round trains on these.

    What is added is downloaded, converted and judged first, as the invitation asks.

    Raises:
        ConfigError: this site has none yet, one of `removed` is none of them, or none would be left.
        DatasetError: what is added cannot be trained on.
    """
    if not site.recordings.exists():
        raise ConfigError(f"{site.recordings} is missing; so100-site join --data names the first recordings")
    sources = list(read_list(site.recordings))
    for name in removed:
        sources = _without(sources, name)
    settled = [settle(source) for source in added]
    sources += settled
    check_together(sources)
    if not sources:
        raise ConfigError("no recording would be left; so100-site pause takes no part")
    with copies_kept(site.scratch):
        for source in settled:
            judge_recordings([source], read_invitation(site.invitation).expects.as_policy(), site.scratch)
        if added or removed:
            with locked(site.path):
                replace(site.recordings, write_list(sources), private=True)
    for source in sources:
        cameras = [f"{camera}={own}" for camera, own in source.cameras.items()]
        weight = [f"weight {source.weight:g}"] if source.weight else []
        print("  ".join([source.data, *cameras, *weight]))


def _without(sources: list[Source], name: str) -> list[Source]:
    """Return `sources` without the one that is called so, or lies there."""
    names = {name} if name.startswith(HUB) else {name, _place(name)}
    left = [source for source in sources if source.data not in names]
    if len(left) == len(sources):
        raise ConfigError(f"--remove {name}: is none of {', '.join(source.data for source in sources)}")
    return left


def _place(name: str) -> str:
    try:
        return settle(Source(name)).data
    except ConfigError:  # it is not there any more
        return name
