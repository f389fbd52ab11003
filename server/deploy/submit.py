"""The `run` service of docker-compose.yml: lets sites in, waits for them, and sees a run through to its end.

    python -m server.deploy.submit --config configs/demo.toml --superlink superlink:8000 --ca ca.crt \\
        --sites site-a=site-a.pub site-b=site-b.pub

It may be started again at any time: keys stay registered, an active run is followed, an unfinished run of the
same configuration goes on where it was, and a finished one stays finished until `--new` asks for another.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from federation.config import RunConfig, flatten, load_run_config
from federation.errors import FederationError
from server.deploy.supervise import supervise_run
from server.run.recorded import as_continuation, config_to_resume, is_finished, recorded_config, recorded_runs
from server.run.records import new_run_name
from server.superlink.control import (
    ControlError,
    RefusedError,
    SuperLink,
    active_run,
    count_online,
    register_supernode,
    submit_run,
)

__all__ = ["main"]

_COMMAND = "docker compose run --rm run"
_POLL_INTERVAL_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 once the run has finished, 2 with one line if something is wrong or it is given up.

    With `--unattended` 2 only for what may pass, a SuperLink that cannot be reached.
    """
    parser = argparse.ArgumentParser(description="Register the sites' keys and submit a run.")
    parser.add_argument("--config", type=Path, help="configs/demo.toml, or with --resume the run's own")
    parser.add_argument("--superlink", default="superlink:8000", metavar="HOST:PORT")
    parser.add_argument("--ca", type=Path, required=True, help="certificate that SuperLink is verified with")
    parser.add_argument(
        "--sites", type=_site, nargs="+", default=[], metavar="NAME=KEY.pub", help="sites to register"
    )
    parser.add_argument("--wait-seconds", type=float, default=180.0, help="for all these sites to be online")
    parser.add_argument("--outputs", type=Path, default=Path("/outputs"), help="where runs are recorded")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    parser.add_argument("--new", action="store_true", help="begin a new run, whatever became of those before")
    parser.add_argument("--detach", action="store_true", help="submit and end; nobody sees the run through")
    parser.add_argument(
        "--unattended",
        action="store_true",
        help="exit code 0 also for errors that being started again does not mend: then Docker leaves it",
    )
    options = parser.parse_args(arguments)
    try:
        for file in (options.ca, *(key for _, key in options.sites)):
            if not file.is_file():
                raise ControlError(f"{file} is missing; run make certs")
        superlink = SuperLink(options.superlink, options.ca)
        for name, key in options.sites:
            register_supernode(superlink, key.read_text(encoding="utf-8"), name)
        config = _choose(options, superlink)
        if config is None:
            return 0
        _wait_for_sites(superlink, len(options.sites), options.wait_seconds)
        if options.detach:
            _submit_only(superlink, options.outputs, config)
        else:
            supervise_run(superlink, options.outputs, config, _say)
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        is_passing = isinstance(error, ControlError) and not isinstance(error, RefusedError)
        return 0 if options.unattended and not is_passing else 2
    return 0


def _choose(options: argparse.Namespace, superlink: SuperLink) -> RunConfig | None:
    """Return what is to be run: a named run again, the unfinished one of this configuration, or a new one.

    None: the newest run of this configuration has finished, and nobody asked for another.

    Raises:
        FederationError: the newest run has not finished and has another configuration.
    """
    if options.resume:
        return config_to_resume(options.outputs / options.resume, options.config)
    file = options.config or Path("configs/demo.toml")
    config = load_run_config(file, {"run.name": new_run_name(file.stem)})
    runs = [] if options.new else recorded_runs(options.outputs)
    if runs and not is_finished(runs[-1]):
        return _unfinished(runs[-1], config, file, superlink)
    for folder in reversed(runs):
        if is_finished(folder) and not _differences(recorded_config(folder), config):
            _say(f"run {folder.name} of this configuration has finished; {_COMMAND} --new begins another")
            return None
    return config


def _unfinished(folder: Path, config: RunConfig, file: Path, superlink: SuperLink) -> RunConfig:
    """Return the continuation of the run in `folder`, if it is active or has the configuration `config`."""
    found = recorded_config(folder)
    differences = ", ".join(_differences(found, config))
    if not differences:
        _say(f"run {folder.name} has not finished and goes on; {_COMMAND} --new begins another")
    elif active_run(superlink):
        _say(f"run {folder.name} is active and goes on as it began, with other {differences} than {file}")
    else:
        raise FederationError(
            f"run {folder.name} has not finished and has other {differences} than {file}: "
            f"{_COMMAND} --resume {folder.name} goes on with those of {file}, {_COMMAND} --new begins another"
        )
    return as_continuation(found)


def _differences(one: RunConfig, other: RunConfig) -> list[str]:
    """Return the keys in which two configurations differ, `run.name` and `run.resume` aside."""
    left, right = flatten(one), flatten(other)
    return [key for key in left if key not in ("run.name", "run.resume") and left[key] != right[key]]


def _wait_for_sites(superlink: SuperLink, sites: int, wait_seconds: float) -> None:
    if active_run(superlink):
        return
    _say(f"waiting for {sites} sites")
    give_up_at = time.monotonic() + wait_seconds
    while (online := count_online(superlink)) < sites:
        if time.monotonic() > give_up_at:
            _say(
                f"{online} of {sites} sites are online after {wait_seconds:.0f} s, the run waits for "
                "federation.min_nodes of them; docker compose logs supernode-a supernode-b says why"
            )
            return
        time.sleep(_POLL_INTERVAL_SECONDS)


def _submit_only(superlink: SuperLink, outputs: Path, config: RunConfig) -> None:
    if run_id := active_run(superlink):
        _say(f"run {run_id} is active; no other is submitted")
        return
    run_id = submit_run(superlink, config)
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
