"""The `run` service of docker-compose.yml: lets sites in, waits until they are online, submits a run, ends.

    python -m server.submit --config configs/demo.toml --superlink superlink:8000 --ca ca.crt \\
        --sites site-a=site-a.pub site-b=site-b.pub

It may be started again at any time: keys stay registered, and while a run is active no other is submitted.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from federation.config import RunConfig, load_run_config
from federation.errors import FederationError
from server.control import (
    ControlError,
    active_run,
    count_online,
    register_supernode,
    submit_run,
    write_connection,
)
from server.records import new_run_name

__all__ = ["main"]

_SECONDS_BETWEEN_LOOKS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit the run; exit code 0 if one is active afterwards, 2 with one line if something is wrong."""
    parser = argparse.ArgumentParser(description="Register the sites' keys and submit a run.")
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--superlink", default="superlink:8000", metavar="HOST:PORT")
    parser.add_argument("--ca", type=Path, required=True, help="certificate that SuperLink is verified with")
    parser.add_argument(
        "--sites", type=_site, nargs="+", default=[], metavar="NAME=KEY.pub", help="sites that are let in"
    )
    parser.add_argument("--wait-seconds", type=float, default=180.0, help="for all these sites to be online")
    options = parser.parse_args(arguments)
    try:
        config = load_run_config(options.config, {"run.name": new_run_name(options.config.stem)})
        for file in (options.ca, *(key for _, key in options.sites)):
            if not file.is_file():
                raise ControlError(f"{file} is missing; run make certs")
        with tempfile.TemporaryDirectory() as home:
            write_connection(Path(home), options.superlink, options.ca)
            _submit(Path(home), config, options.sites, options.wait_seconds)
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _submit(home: Path, config: RunConfig, sites: Sequence[tuple[str, Path]], wait_seconds: float) -> None:
    for name, key in sites:
        register_supernode(home, key, name)
    if run_id := active_run(home):
        print(f"run {run_id} is active; no other is submitted")
        return
    print(f"waiting for {len(sites)} sites")
    give_up_at = time.monotonic() + wait_seconds
    while (online := count_online(home)) < len(sites):
        if time.monotonic() > give_up_at:
            raise ControlError(
                f"{online} of {len(sites)} sites are online after {wait_seconds:.0f} s; "
                "docker compose logs supernode-a supernode-b says why"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    run_id = submit_run(home, config)
    print(f"run {config.run.name} submitted as {run_id}; it is recorded in /outputs/{config.run.name}")
    print(f"follow it: docker compose exec server tail -F /outputs/{config.run.name}/server.log")


def _site(text: str) -> tuple[str, Path]:
    name, equals, key = text.partition("=")
    if not (name and equals and key):
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=KEY.pub")
    return name, Path(key)


if __name__ == "__main__":
    sys.exit(main())
