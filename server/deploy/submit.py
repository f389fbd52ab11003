"""The `run` service of docker-compose.yml: lets sites in, waits for them, and sees a run through to its end.

It may be started again at any time: keys stay registered, an active run is followed, an unfinished run of the
same configuration goes on where it was, and after a finished one no other begins until `--new` asks for it.
"""

import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from federation.config import RunConfig, flatten, load_run_config
from federation.errors import CertificateError, ConfigError, FederationError
from federation.site_key import read_key_line
from server.deploy.deliver import deliver_run
from server.deploy.supervise import find_active_run, supervise_run
from server.run.recorded import as_continuation, config_to_resume, is_finished, recorded_config, recorded_runs
from server.run.records import new_run_name
from server.superlink.control import (
    ControlError,
    RefusedError,
    SuperLink,
    active_run,
    online_sites,
    register_supernode,
    stop_run,
    submit_run,
    unregister_supernode,
)

__all__ = ["is_passing", "parse_sites", "stop_active_run", "submit"]

_DEFAULT_CONFIG = Path("configs/demo.toml")
_COMMAND = "docker compose run --rm run"
_REVOKED = "revoked"  # beside the folder of invited keys (certs/invited.py)
_POLL_INTERVAL_SECONDS = 2.0


def submit(
    superlink: SuperLink,
    sites: Mapping[str, Path],
    outputs: Path,
    config: Path | None = None,
    *,
    invited: Path | None = None,
    resume: str | None = None,
    deliver: str | None = None,
    new: bool = False,
    detach: bool = False,
    wait_seconds: float = 180.0,
) -> None:
    """Register keys, wait for `sites`, submit a run and follow it until it has finished.

    Args:
        sites: of this machine, name -> file of its public key; may be none.
        outputs: where the ServerApp records runs; only read here.
        config: of the run; None: that of the demo, or with `resume` the run's own.
        invited: folder of the keys that `so100-server invite` recorded; nobody waits for their sites. Those
            in `revoked` beside it are shut out.
        resume: the run to go on with.
        deliver: a finished run, whose policy is sent to its sites; nothing else is run then.
        new: begin another run, whatever became of those before.
        detach: return once it is submitted.
        wait_seconds: for all the sites to be online.

    Raises:
        FederationError: something is wrong, or the run is given up.
    """
    for file in (superlink.ca_certificate, superlink.secret, *sites.values()):
        if not file.is_file():
            raise ControlError(f"{file} is missing; run make certs")
    _let_sites_in(superlink, sites, invited)
    if deliver:
        deliver_run(superlink, outputs, deliver, _say)
        return
    if resume:
        chosen: RunConfig | None = _resumed(superlink, outputs / resume, config)
    else:
        chosen = _choose(superlink, outputs, config or _DEFAULT_CONFIG, new)
    if chosen is None:
        return
    _wait_for_sites(superlink, sites.keys(), wait_seconds)
    if detach:
        _submit_only(superlink, outputs, chosen)
    else:
        supervise_run(superlink, outputs, chosen, _say)


def stop_active_run(superlink: SuperLink) -> None:
    """End the run that is active, in whatever it is at; it can be resumed.

    Raises:
        ControlError: none is active, or SuperLink refuses or cannot be reached.
    """
    run_id = active_run(superlink)
    if run_id is None:
        raise ControlError("no run is active")
    stop_run(superlink, run_id)
    _say(f"run {run_id} is stopped; {_COMMAND} --resume RUN goes on with it")


def parse_sites(texts: Sequence[str]) -> dict[str, Path]:
    """Return site name -> file of its public key, of texts such as `site-a=site-a.pub`.

    Raises:
        ConfigError: one has another form.
    """
    found = {}
    for text in texts:
        name, equals, key = text.partition("=")
        if not (name and equals and key):
            raise ConfigError(f"--site {text!r}: must be NAME=KEY.pub")
        found[name] = Path(key)
    return found


def is_passing(error: FederationError) -> bool:
    """Return whether to try again may help: SuperLink did not answer, or not yet."""
    return isinstance(error, ControlError) and not isinstance(error, RefusedError)


def _let_sites_in(superlink: SuperLink, sites: Mapping[str, Path], invited: Path | None) -> None:
    """Register the keys of `sites` and those that were invited; shut out those that were revoked."""
    if invited:
        _shut_out_revoked(superlink, invited.with_name(_REVOKED))
    for name, key in sites.items():
        register_supernode(superlink, key.read_text(encoding="utf-8"), name)
    if invited:
        _register_invited(superlink, invited)


def _register_invited(superlink: SuperLink, folder: Path) -> None:
    """Register each recorded key; one that SuperLink refuses keeps out its site and no other."""
    for file in sorted(folder.glob("*/node.key.pub")):
        name = file.parent.name
        try:
            register_supernode(superlink, read_key_line(file.read_text(encoding="utf-8")).line, name)
        except (OSError, UnicodeDecodeError, CertificateError, RefusedError) as error:
            _say(f"{name} cannot join: {error}")


def _shut_out_revoked(superlink: SuperLink, folder: Path) -> None:
    """Shut out each revoked key that SuperLink knows again: its database may be an older one, of a backup."""
    for file in sorted(folder.glob("*/node.key.pub")):
        if unregister_supernode(superlink, read_key_line(file.read_text(encoding="utf-8")).line):
            _say(f"{file.parent.name} was registered again, and is revoked")


def _resumed(superlink: SuperLink, folder: Path, file: Path | None) -> RunConfig:
    """Return what the run in `folder` goes on with, unless it is active with other settings."""
    config = config_to_resume(folder, file)
    if changed := _differences(recorded_config(folder), config):
        _refuse_while_active(superlink, folder.parent, f"other {', '.join(changed)}")
    else:
        _refuse_while_active(superlink, folder.parent, f"run {folder.name}", but=folder.name)
    return config


def _refuse_while_active(superlink: SuperLink, outputs: Path, wanted: str, but: str = "") -> None:
    """Raise a FederationError if a run, not called `but`, is active: it cannot be given what is `wanted`."""
    active = find_active_run(superlink, outputs, _say)
    if active and active[1].run.name != but:
        raise FederationError(
            f"run {active[1].run.name} is active, so {wanted} cannot begin: {_COMMAND} --stop ends it, and "
            "it can be resumed"
        )


def _choose(superlink: SuperLink, outputs: Path, file: Path, new: bool) -> RunConfig | None:
    """Return what is to be run: the unfinished run of the configuration `file`, or a new one.

    None: the newest run has finished, and nobody asked for another. That holds of any configuration: an
    upgrade that changes a default, or a `CONFIG` that was not written down, begins no training by itself.

    Raises:
        FederationError: the newest run has not finished and has another configuration, or another is asked
            for while one is active.
    """
    config = load_run_config(file, {"run.name": new_run_name(file.stem)})
    if new:
        _refuse_while_active(superlink, outputs, "another")
        return config
    runs = recorded_runs(outputs)
    if not runs:
        return config
    if not is_finished(runs[-1]):
        return _unfinished(runs[-1], config, file, superlink)
    if active := find_active_run(superlink, outputs, _say):  # its record began just now
        return active[1]
    _say(f"run {runs[-1].name} has finished; {_COMMAND} --new begins another, as {file} says")
    return None


def _unfinished(folder: Path, config: RunConfig, file: Path, superlink: SuperLink) -> RunConfig:
    """Return the continuation of the run in `folder`, if it is active or has the configuration `config`."""
    found = recorded_config(folder)
    differences = ", ".join(_differences(found, config))
    if not differences:
        _say(f"run {folder.name} has not finished and goes on; {_COMMAND} --new begins another")
    elif find_active_run(superlink, folder.parent, _say):
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


def _wait_for_sites(superlink: SuperLink, sites: Set[str], wait_seconds: float) -> None:
    if not sites or active_run(superlink):
        return
    _say(f"waiting for {len(sites)} sites")
    give_up_at = time.monotonic() + wait_seconds
    while missing := sites - online_sites(superlink):
        if time.monotonic() > give_up_at:
            _say(
                f"not online after {wait_seconds:.0f} s: {', '.join(sorted(missing))}; the run waits for "
                "federation.min_nodes sites, docker compose logs says why one does not come"
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
