"""The owner's command line, `so100-site`: each command calls one function of a room, imported then."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from federation.command_line import make_app, run

__all__ = ["app", "main"]

app = make_app(
    "Take part in a federation with an SO-100 or SO-101 arm.",
    [
        "so100-site doctor --dataset recordings/pick-cube",
        "so100-site doctor --dataset recordings/pick-cube --superlink fed.example.org:8443 --ca ca.crt",
        "so100-site repair recordings/pick-cube --without 3,7",
    ],
)

Scratch = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", envvar="FEDERATION_SCRATCH", help="the SuperNode's scratch folder"),
]


@app.command()
def doctor(
    dataset: Annotated[
        Path,
        typer.Option(metavar="FOLDER", envvar="FEDERATION_DATASET", help="a LeRobot v3 dataset, or some"),
    ],
    full: Annotated[bool, typer.Option("--full", help="decode every frame of every video: minutes")] = False,
    superlink: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", envvar="FEDERATION_SUPERLINK", help="try the way to it"),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="FEDERATION_CA", help="ca.crt, to verify SuperLink with"),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar="FEDERATION_KEY", help="node.key of this site")
    ] = None,
    scratch: Scratch = None,
    cameras: Annotated[
        str | None, typer.Option(envvar="FEDERATION_CAMERAS", help="those of the run; default: top,wrist")
    ] = None,
    camera_names: Annotated[
        str,
        typer.Option(
            metavar="POLICY=OWN,...", envvar="FEDERATION_CAMERA_NAMES", help="what they are called here"
        ),
    ] = "",
) -> int:
    """Say what would go wrong at this site, before it takes part.

    Example: so100-site doctor --dataset recordings/pick-cube --camera-names top=phone,wrist=none
    """
    from client.doctor.main import examine_site
    from federation.settings import PolicyConfig

    ready = examine_site(
        dataset,
        cameras=cameras or PolicyConfig().cameras,
        camera_names=camera_names,
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
    from client.repair.main import repair_and_print

    repair_and_print(dataset, new, without)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, by default those of the process; return its exit code."""
    return run(app, "so100-site", arguments)


if __name__ == "__main__":
    sys.exit(main())
