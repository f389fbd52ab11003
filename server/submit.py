"""The `run` service of docker-compose.yml: lets sites in, waits for them, and sees a run through to its end.

    python -m server.submit --config configs/demo.toml --superlink superlink:8000 --ca ca.crt \\
        --sites site-a=site-a.pub site-b=site-b.pub

It may be started again at any time: keys stay registered, an active run is followed, and an unfinished run of
the same configuration goes on where it was.
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
from server.supervisor import as_continuation, config_to_resume, see_through, unfinished_run

__all__ = ["main"]

_SECONDS_BETWEEN_LOOKS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 once the run has finished, 2 with one line if something is wrong or it is given up."""
    parser = argparse.ArgumentParser(description="Register the sites' keys and submit a run.")
    parser.add_argument("--config", type=Path, help="configs/demo.toml, or with --resume the run's own")
    parser.add_argument("--superlink", default="superlink:8000", metavar="HOST:PORT")
    parser.add_argument("--ca", type=Path, required=True, help="certificate that SuperLink is verified with")
    parser.add_argument(
        "--sites", type=_site, nargs="+", default=[], metavar="NAME=KEY.pub", help="sites that are let in"
    )
    parser.add_argument("--wait-seconds", type=float, default=180.0, help="for all these sites to be online")
    parser.add_argument("--outputs", type=Path, default=Path("/outputs"), help="where runs are recorded")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    parser.add_argument("--new", action="store_true", help="begin anew even if there is an unfinished run")
    parser.add_argument("--detach", action="store_true", help="submit and end; nobody sees the run through")
    options = parser.parse_args(arguments)
    try:
        config = _choose(options)
        for file in (options.ca, *(key for _, key in options.sites)):
            if not file.is_file():
                raise ControlError(f"{file} is missing; run make certs")
        with tempfile.TemporaryDirectory() as home:
            write_connection(Path(home), options.superlink, options.ca)
            _let_in(Path(home), options.sites, options.wait_seconds)
            if options.detach:
                _submit_only(Path(home), options.outputs, config)
            else:
                see_through(Path(home), options.outputs, config, _say)
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _choose(options: argparse.Namespace) -> RunConfig:
    """What is to be run: a named run again, the unfinished one of this configuration, or a new one."""
    if options.resume:
        return config_to_resume(options.outputs / options.resume, options.config)
    file = options.config or Path("configs/demo.toml")
    config = load_run_config(file, {"run.name": new_run_name(file.stem)})
    unfinished = None if options.new else unfinished_run(options.outputs, config)
    if unfinished is None:
        return config
    _say(f"run {unfinished.run.name} has not finished and goes on; --new begins another")
    return as_continuation(unfinished)


def _let_in(home: Path, sites: Sequence[tuple[str, Path]], wait_seconds: float) -> None:
    for name, key in sites:
        register_supernode(home, key, name)
    if active_run(home):
        return
    _say(f"waiting for {len(sites)} sites")
    give_up_at = time.monotonic() + wait_seconds
    while (online := count_online(home)) < len(sites):
        if time.monotonic() > give_up_at:
            raise ControlError(
                f"{online} of {len(sites)} sites are online after {wait_seconds:.0f} s; "
                "docker compose logs supernode-a supernode-b says why"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _submit_only(home: Path, outputs: Path, config: RunConfig) -> None:
    if run_id := active_run(home):
        _say(f"run {run_id} is active; no other is submitted")
        return
    run_id = submit_run(home, config)
    _say(f"run {config.run.name} submitted as {run_id}; it is recorded in {outputs / config.run.name}")


def _say(line: str) -> None:
    print(line, flush=True)


def _site(text: str) -> tuple[str, Path]:
    name, equals, key = text.partition("=")
    if not (name and equals and key):
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=KEY.pub")
    return name, Path(key)


if __name__ == "__main__":
    sys.exit(main())
