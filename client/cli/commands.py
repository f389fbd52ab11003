"""The commands of `so100-site`: each calls one function of a room, imported then."""

from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import (
    NAMES_HELP,
    WEIGHT_HELP,
    Ca,
    CameraNames,
    Data,
    Folder,
    Key,
    Scratch,
    SuperLink,
    Weights,
    as_site,
    as_sources,
)
from federation.command_line import make_app
from federation.errors import ConfigError

__all__ = ["app"]

app = make_app(
    "Take part in a federation with an SO-100 or SO-101 arm.",
    [
        "so100-site doctor --data recordings/pick-cube",
        "so100-site key lab-b",
        "so100-site join lab-b.invitation.json --data recordings/pick-cube --data hf:ann/place@v1.0",
        "so100-site repair recordings/pick-cube --without 3,7",
    ],
)


@app.command()
def key(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="what the site is to be called")] = "",
    new: Annotated[bool, typer.Option("--new", help="replace a lost or revoked one")] = False,
    folder: Folder = None,
) -> None:
    """Make this site's key and print the line that the operator needs.

    The private key stays in this site's folder; the line is public and can go by mail.

    Example: so100-site key lab-b
    """
    from client.membership.key import print_key

    print_key(as_site(folder).path, name, new=new)


@app.command()
def join(
    invitation: Annotated[
        Path | None,
        typer.Argument(metavar="INVITATION", help="what the operator sent, at first"),
    ] = None,
    data: Data = None,
    camera_names: CameraNames = None,
    weight: Weights = None,
    sample_cache_gb: Annotated[
        float | None,
        typer.Option(
            metavar="GB", min=0, envvar="FEDERATION_SAMPLE_CACHE_GB", help="disk for decoded frames [20]"
        ),
    ] = None,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="join without the doctor's look")] = False,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="write a unit of systemd --user that joins")
    ] = False,
    folder: Folder = None,
) -> int:
    """Check this site and take part in the federation that invited it.

    Example: so100-site join lab-b.invitation.json --data recordings/pick-cube
    """
    from client.membership.join import join_federation

    given = {} if sample_cache_gb is None else {"sample-cache-gb": sample_cache_gb}
    where, sources = as_site(folder).path, as_sources(data, camera_names, weight)
    return join_federation(where, invitation, sources, given, unchecked=unchecked, systemd=systemd)


@app.command()
def data(
    add: Annotated[list[str] | None, typer.Option(metavar="RECORDING", help="name one more")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="RECORDING", help="name one no more")] = None,
    camera_names: Annotated[list[str] | None, typer.Option(metavar="POLICY=OWN,...", help=NAMES_HELP)] = None,
    weight: Annotated[list[str] | None, typer.Option(metavar="W", help=WEIGHT_HELP)] = None,
    folder: Folder = None,
) -> None:
    """List this site's recordings, or change which these are, from the next round on.

    Names and weights are those of what is added.

    Example: so100-site data --add hf:ann/pick-cube@v1.0 --remove recordings/first-tries
    """
    from client.membership.recordings import change_recordings

    change_recordings(as_site(folder), as_sources(add, camera_names, weight), remove or [])


@app.command()
def rules(folder: Folder = None) -> None:
    """Print what you insist on, whatever a run asks: noise, hours, gigabytes a day, code.

    The rules are a file in this site's folder; the first call writes it, with every rule explained.

    Example: so100-site rules
    """
    from client.membership.rules import print_rules

    print_rules(as_site(folder))


@app.command()
def personalise(
    steps: Annotated[
        int | None, typer.Option(min=1, help="of the tuning; default: four passes over the frames")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-9, max=1.0, help="the highest one; default: that of the run")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="draws the episodes to measure on")] = 0,
    folder: Folder = None,
) -> None:
    """Tune the policy that was delivered on your own recordings, and see which is better on your arm.

    A tenth of your episodes is kept to measure on. Both policies stay, and nothing leaves this machine.

    Example: so100-site personalise
    """
    from client.personal.main import personalise_site

    personalise_site(as_site(folder), steps, learning_rate, seed)


@app.command()
def status(folder: Folder = None) -> None:
    """Say what goes on at this site, and what the server thinks of it.

    Example: so100-site status
    """
    from client.membership.status import print_status

    print_status(as_site(folder))


@app.command()
def pause(folder: Folder = None) -> None:
    """Take no part until `resume`, also after a reboot.

    A round that is under way goes on without this site.

    Example: so100-site pause
    """
    from client.membership.leave import pause_site

    pause_site(as_site(folder))


@app.command()
def resume(folder: Folder = None) -> None:
    """Take part again after `pause`.

    Example: so100-site resume
    """
    from client.membership.leave import resume_site

    resume_site(as_site(folder))


@app.command()
def leave(folder: Folder = None) -> None:
    """End this site and remove its key, invitation and scratch.

    Recordings are not touched, and the count of privacy stays.

    Example: so100-site leave
    """
    from client.membership.leave import leave_federation

    leave_federation(as_site(folder))


@app.command()
def doctor(
    data: Data = None,
    full: Annotated[bool, typer.Option("--full", help="decode every frame of every video: minutes")] = False,
    superlink: SuperLink = None,
    ca: Ca = None,
    key: Key = None,
    scratch: Scratch = None,
    cameras: Annotated[
        str | None, typer.Option(envvar="FEDERATION_CAMERAS", help="those of the run; default: top,wrist")
    ] = None,
    camera_names: CameraNames = None,
    folder: Folder = None,
) -> int:
    """Say what would go wrong at this site, before it takes part.

    Without --data, and of a site whose folder is named, everything is looked at that the folder names: the
    recordings against the invitation, the key, the rules and the way to SuperLink.

    Example: so100-site doctor --data recordings/pick-cube --camera-names top=phone,wrist=none
    """
    sources = as_sources(data, camera_names, None)
    if folder or (not sources and as_site(folder).settings.exists()):
        from client.membership.join import examine_member

        return 0 if examine_member(as_site(folder).path, sources, full) else 1
    if not sources:
        raise ConfigError("Missing option '--data' (env var: 'FEDERATION_DATASET')")
    from client.doctor.main import examine_site
    from federation.settings import PolicyConfig

    ready = examine_site(
        sources,
        cameras=cameras or PolicyConfig().cameras,
        full=full,
        scratch=scratch,
        key=key,
        ca=ca,
        superlink=superlink,
    )
    return 0 if ready else 1


@app.command()
def repair(
    dataset: Annotated[
        Path,
        typer.Argument(metavar="DATASET", envvar="FEDERATION_DATASET"),
    ],
    new: Annotated[Path | None, typer.Argument(metavar="NEW")] = None,
    without: Annotated[str, typer.Option(metavar="3,7", help="episodes to drop, whole or not")] = "",
) -> None:
    """Save what is whole of a damaged or an old dataset.

    DATASET is of LeRobot's format 2 or 3, and only read. NEW, by default DATASET-repaired, is of format 3.

    Example: so100-site repair recordings/pick-cube --without 3,7
    """
    from client.recordings.hub import downloaded_name
    from client.repair.main import repair_and_print

    repair_and_print(dataset, new, without, downloaded_name(dataset))


@app.command()
def exporter(
    node: Annotated[str, typer.Option(help="the site's name")],
    scratch: Annotated[Path, typer.Option(metavar="FOLDER", help="the SuperNode's scratch folder")],
    port: Annotated[int, typer.Option(help="to listen on, without TLS")] = 9401,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
) -> None:
    """Show how far this site is inside a round to Prometheus.

    Example: so100-site exporter --node lab-b --scratch scratch
    """
    from client.supernode.exporter import serve_progress

    serve_progress(node, scratch, host, port)
