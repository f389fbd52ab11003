"""The `run` service's program and its supervisor; whole runs: tests/integration, container."""

from dataclasses import replace
from pathlib import Path

import pytest

from federation.config import RunConfig, load_run_config
from federation.site_key import new_key, public_key
from server.cli import main
from server.deploy import submit, supervise
from server.run.records import RunRecord
from server.run.round_record import RoundRecord
from server.superlink.control import ControlError, RefusedError


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A command line of two sites whose files all exist."""
    (tmp_path / "ca.crt").write_text("certificate")
    (tmp_path / "control.secret").write_text("secret")
    (tmp_path / "tiny.toml").write_text("[policy]\nsize = 'tiny'\n[run]\nnum_rounds = 4\n")
    (tmp_path / "outputs").mkdir()
    sites = []
    for name in ("site-a", "site-b"):
        (tmp_path / f"{name}.pub").write_text("key")
        sites.append(f"{name}={tmp_path / name}.pub")
    files = [f"--config={tmp_path / 'tiny.toml'}", f"--ca={tmp_path / 'ca.crt'}"]
    return [*files, f"--outputs={tmp_path / 'outputs'}", *(f"--site={site}" for site in sites)]


def _submit(arguments: list[str]) -> int:
    return main(["submit", *arguments])


class SuperLink:
    """Stands in for SuperLink and the ServerApp: each submission does the next of `outcomes`.

    An outcome is the number of rounds that are complete when the run ends, and the end: `finished`,
    `failed`, `killed` (nothing more is recorded), `waiting` (killed while it waits for nodes), `stopped`, or
    `nothing` (no record was even begun).
    """

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.registered: list[str] = []
        self.online = [{"lab-far"}, {"lab-far", "site-a"}, {"site-a", "site-b"}]
        self.active: str | None = None
        self.away = 0  # how many questions nobody answers
        self.refuses = 0  # how many submissions after the first fail
        self.refusal = ControlError("went away again")
        self.outcomes: list[tuple[int, str]] = [(4, "finished")]
        self.submitted: list[RunConfig] = []
        self.status = "running"

    def online_sites(self, home: Path) -> set[str]:
        return self.online.pop(0) if len(self.online) > 1 else self.online[0]

    def active_run(self, home: Path) -> str | None:
        return self.active

    def stop_run(self, home: Path, run_id: str) -> None:
        self.active, self.status = None, "finished:stopped"

    def submit_run(self, home: Path, config: RunConfig) -> str:
        if self.submitted and self.refuses:
            self.refuses -= 1
            raise self.refusal
        self.submitted.append(config)
        rounds, end = self.outcomes.pop(0)
        self.status = {"finished": "finished:completed", "stopped": "finished:stopped"}.get(
            end, "finished:failed"
        )
        if end != "nothing":
            record = RunRecord(self.outputs, config.run.name, config, str(len(self.submitted)))
            if config.run.resume:
                record.resume_after(None, None)
            record._rounds = [RoundRecord(number) for number in range(1, rounds + 1)]
            record._save()
            if end == "waiting":
                record.event("waiting_for_nodes", joined=0, min_nodes=2, denied={})
            if end in ("finished", "failed"):
                record.close(end, "" if end == "finished" else "disk full")
            record._events.close()
            record._lock.close()
        return str(len(self.submitted))

    def run_status(self, home: Path, run_id: str) -> str:
        if self.away:
            self.away -= 1
            raise ControlError("cannot be reached")
        return self.status


@pytest.fixture
def superlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    link = SuperLink(tmp_path / "outputs")
    monkeypatch.setattr(submit, "register_supernode", lambda _, key, name: link.registered.append(name))
    monkeypatch.setattr(submit, "online_sites", link.online_sites)
    for module in (submit, supervise):
        monkeypatch.setattr(module, "active_run", link.active_run)
        monkeypatch.setattr(module, "submit_run", link.submit_run)
        monkeypatch.setattr(module, "stop_run", link.stop_run)
        monkeypatch.setattr(module, "_POLL_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(supervise, "only_delivers", lambda *_: False)
    monkeypatch.setattr(supervise, "run_status", link.run_status)
    monkeypatch.setattr(supervise, "_SECONDS_BEFORE_CONTINUATION", 0.0)
    monkeypatch.setattr(supervise, "_RECORD_SECONDS", 0.0)
    return link


def test_it_registers_the_sites_waits_for_them_and_sees_the_run_through(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    assert _submit(arguments) == 0
    assert superlink.registered == ["site-a", "site-b"]
    (config,) = superlink.submitted
    assert config.run.name.startswith("tiny-")
    assert not config.run.resume
    assert f"run {config.run.name} has finished" in capsys.readouterr().out


def test_where_no_site_is_on_this_machine_nobody_is_waited_for(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    online = list(superlink.online)
    assert _submit([argument for argument in arguments if not argument.startswith("--site=")]) == 0
    assert (superlink.registered, superlink.online) == ([], online)
    assert len(superlink.submitted) == 1
    assert "waiting for" not in capsys.readouterr().out


def test_an_upgrade_begins_no_run_after_one_that_has_finished(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    assert _submit(arguments) == 0
    (recorded,) = superlink.outputs.glob("*/federated_metrics.json")
    recorded.write_text(recorded.read_text().replace('"training.proximal_mu"', '"training.gone"'))
    assert _submit(arguments) == 0
    assert len(superlink.submitted) == 1
    assert "has finished; docker compose run --rm run --new begins another" in capsys.readouterr().out


def test_a_continuation_is_submitted_again_if_superlink_goes_away_at_that_moment(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.outcomes = [(1, "killed"), (4, "finished")]
    superlink.refuses = 2
    assert _submit(arguments) == 0
    assert [config.run.resume for config in superlink.submitted] == [False, True]
    assert "went away again" in capsys.readouterr().out


def test_a_continuation_that_superlink_refuses_is_the_end(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.outcomes = [(1, "killed"), (4, "finished")]
    superlink.refuses = 1
    superlink.refusal = RefusedError("SuperLink refuses to start a run: Invalid run configuration.", 15)
    assert _submit(arguments) == 2
    assert "error: SuperLink refuses to start a run: Invalid run configuration." in capsys.readouterr().err
    assert len(superlink.submitted) == 1


def test_a_run_that_dies_is_continued_until_it_has_finished(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.outcomes = [(0, "nothing"), (1, "killed"), (3, "failed"), (4, "finished")]
    superlink.away = 2
    assert _submit(arguments) == 0
    assert [config.run.resume for config in superlink.submitted] == [False, False, True, True]
    assert len({config.run.name for config in superlink.submitted}) == 1
    printed = capsys.readouterr().out
    assert "ended after round 3: disk full" in printed
    assert printed.count("waiting for SuperLink") == 1


def test_a_run_that_makes_no_progress_is_given_up(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.outcomes = [(1, "killed"), (2, "failed"), *[(2, "failed")] * 20]
    assert _submit(arguments) == 2
    assert "5 attempts brought no round after 2: disk full" in capsys.readouterr().err
    assert len(superlink.submitted) == 7


def test_a_run_that_waits_for_its_sites_is_not_given_up_however_often_it_has_to_begin_again(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.outcomes = [*[(2, "waiting")] * 9, *[(2, "failed")] * 20]
    assert _submit(arguments) == 2
    assert "5 attempts brought no round after 2: disk full" in capsys.readouterr().err
    assert len(superlink.submitted) == 9 + 5


def test_a_run_that_its_operator_stopped_stays_stopped(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.outcomes = [(1, "stopped")]
    assert _submit(arguments) == 2
    assert "was stopped after round 1; it can be resumed" in capsys.readouterr().err


def test_started_again_it_goes_on_with_the_unfinished_run_of_the_same_configuration(
    arguments: list[str], superlink: SuperLink, tmp_path: Path
) -> None:
    superlink.outcomes = [(1, "stopped"), (4, "finished")]
    assert _submit(arguments) == 2
    assert _submit(arguments) == 0
    stopped, resumed = superlink.submitted
    assert (resumed.run.name, resumed.run.resume) == (stopped.run.name, True)


def test_a_finished_run_stays_finished_until_somebody_asks_for_another(
    arguments: list[str],
    superlink: SuperLink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    names = iter(f"tiny-{number}" for number in range(9))
    monkeypatch.setattr(submit, "new_run_name", lambda _: next(names))
    superlink.outcomes = [(4, "finished")] * 2
    assert _submit(arguments) == 0
    (first,) = superlink.submitted
    capsys.readouterr()
    for _ in range(2):
        assert _submit([*arguments, "--unattended"]) == 0
        line = f"run {first.run.name} has finished; docker compose run --rm run --new begins another, as "
        assert capsys.readouterr().out == f"{line}{tmp_path / 'tiny.toml'} says\n"
    assert superlink.submitted == [first]
    assert superlink.registered == ["site-a", "site-b"] * 3

    with (tmp_path / "tiny.toml").open("a") as file:
        file.write("[training]\nlearning_rate = 5e-5\n")
    assert _submit(arguments) == 0
    assert superlink.submitted == [first]
    assert _submit([*arguments, "--new"]) == 0
    assert len(superlink.submitted) == 2


def test_a_run_whose_record_begins_while_it_is_looked_for_is_followed(
    arguments: list[str], superlink: SuperLink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert _submit(arguments) == 0
    (first,) = superlink.submitted
    second = replace(first, run=replace(first.run, name="tiny-2"))
    for module in (submit, supervise):
        monkeypatch.setattr(module, "find_active_run", lambda *_: ("2", second))
    monkeypatch.setattr(submit, "recorded_runs", lambda outputs: [outputs / first.run.name])
    RunRecord(superlink.outputs, "tiny-2", second, "2").close("finished", "")
    assert _submit(arguments) == 0
    assert "run tiny-2 is active as 2 and is followed" in capsys.readouterr().out
    assert superlink.submitted == [first]


@pytest.mark.parametrize("unattended", [False, True])
def test_an_unfinished_run_of_another_configuration_is_neither_dropped_nor_ignored(
    arguments: list[str],
    superlink: SuperLink,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    unattended: bool,
) -> None:
    superlink.outcomes = [(1, "failed"), (4, "finished")]
    superlink.submit_run(tmp_path, load_run_config(tmp_path / "tiny.toml", {"run.name": "tiny-1"}))
    with (tmp_path / "tiny.toml").open("a") as file:
        file.write("[training]\nlearning_rate = 5e-5\n")
    assert _submit([*arguments, *(["--unattended"] if unattended else [])]) == (0 if unattended else 2)
    (line,) = capsys.readouterr().err.splitlines()
    for part in (
        "run tiny-1 has not finished and has other training.learning_rate than",
        "docker compose run --rm run --resume tiny-1 goes on with those of",
        "docker compose run --rm run --new begins another",
    ):
        assert part in line
    assert len(superlink.submitted) == 1
    assert _submit([*arguments, "--resume=tiny-1"]) == 0


def test_started_by_itself_it_starts_again_only_where_that_may_help(
    arguments: list[str], superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink.outcomes = [(1, "stopped")]
    assert _submit([*arguments, "--unattended"]) == 0

    def away(home: Path) -> str | None:
        raise ControlError("SuperLink cannot be reached")

    monkeypatch.setattr(submit, "active_run", away)
    assert _submit([*arguments, "--unattended"]) == 2


def test_an_active_run_is_paired_with_its_own_record(
    arguments: list[str], superlink: SuperLink, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Another run that was written later, and has not finished either, is not the one to follow."""
    superlink.outcomes = [(1, "killed"), (2, "killed")]
    for name in ("mine", "other"):
        superlink.submit_run(tmp_path, load_run_config(tmp_path / "tiny.toml", {"run.name": name}))
    (tmp_path / "outputs" / "damaged").mkdir()
    (tmp_path / "outputs" / "damaged" / "federated_metrics.json").write_text("{")
    superlink.active = "1"
    found = supervise.find_active_run(tmp_path, superlink.outputs, print)
    assert found is not None
    assert (found[0], found[1].run.name) == ("1", "mine")


def test_a_finished_run_that_is_resumed_is_waited_for(
    arguments: list[str], superlink: SuperLink, tmp_path: Path
) -> None:
    superlink.outcomes = [(4, "finished")]
    superlink.submit_run(tmp_path, load_run_config(tmp_path / "tiny.toml", {"run.name": "tiny-1"}))
    folder = superlink.outputs / "tiny-1"
    assert supervise.is_finished(folder)
    assert not supervise.is_finished(folder, "2")  # which has not begun yet


@pytest.mark.parametrize("option", ["--new", "--resume=tiny-1"])
def test_the_operator_may_say_which_run_it_is(
    option: str, arguments: list[str], superlink: SuperLink, tmp_path: Path
) -> None:
    superlink.outcomes = [(1, "killed"), (4, "finished")]
    superlink.submit_run(tmp_path, load_run_config(tmp_path / "tiny.toml", {"run.name": "tiny-1"}))
    assert _submit([*arguments, option]) == 0
    assert (superlink.submitted[1].run.name == "tiny-1") == (option != "--new")


@pytest.mark.parametrize(
    ("option", "wanted"), [("--new", "another"), ("--resume=tiny-1", "other training.learning_rate")]
)
def test_what_an_active_run_cannot_be_given_is_refused_until_it_is_stopped(
    option: str,
    wanted: str,
    arguments: list[str],
    superlink: SuperLink,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    superlink.outcomes = [(1, "killed"), (4, "finished")]
    began = load_run_config(tmp_path / "tiny.toml", {"run.name": "tiny-1"})
    superlink.active = superlink.submit_run(tmp_path, began)
    with (tmp_path / "tiny.toml").open("a") as file:
        file.write("[training]\nlearning_rate = 5e-5\n")
    assert _submit([*arguments, option]) == 2
    assert f"run tiny-1 is active, so {wanted} cannot begin" in capsys.readouterr().err
    assert _submit([*arguments, "--stop"]) == 0
    assert "run 1 is stopped" in capsys.readouterr().out
    assert _submit([*arguments, "--stop"]) == 2
    assert "no run is active" in capsys.readouterr().err
    assert _submit([*arguments, option]) == 0
    assert [config.training.learning_rate for config in superlink.submitted] == [1e-4, 5e-5]


def test_a_revoked_key_that_an_older_database_lets_in_is_shut_out_again(
    arguments: list[str],
    superlink: SuperLink,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {name: public_key(new_key()) for name in ("lab-b", "lab-c-20261123-090500")}
    for place, name in zip(("invited", "revoked"), keys, strict=True):
        (tmp_path / place / name).mkdir(parents=True)
        (tmp_path / place / name / "node.key.pub").write_text(keys[name].spell(name))
    shut_out: list[str] = []

    def unregister(_: object, key: str) -> bool:
        shut_out.append(key)
        return True

    monkeypatch.setattr(submit, "unregister_supernode", unregister)
    assert _submit([*arguments, f"--invited={tmp_path / 'invited'}"]) == 0
    assert shut_out == [keys["lab-c-20261123-090500"].line]
    assert superlink.registered == ["site-a", "site-b", "lab-b"]
    assert "lab-c-20261123-090500 was registered again, and is revoked" in capsys.readouterr().out


def test_an_active_run_is_followed(
    arguments: list[str],
    superlink: SuperLink,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    superlink.outcomes = [(1, "killed"), (4, "finished")]
    config = load_run_config(tmp_path / "tiny.toml", {"run.name": "other", "run.seed": 3})
    superlink.active = superlink.submit_run(tmp_path, config)

    def give_up(home: Path, run_id: str) -> str:
        superlink.active = None
        return superlink.status

    monkeypatch.setattr(supervise, "run_status", give_up)
    assert _submit(arguments) == 0
    assert [config.run.name for config in superlink.submitted] == ["other", "other"]
    printed = capsys.readouterr().out
    assert "run other is active and goes on as it began, with other run.seed than" in printed
    assert "run other is active as 1 and is followed" in printed


def test_an_active_run_without_a_record_is_not_meddled_with(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.active = "6"
    assert _submit(arguments) == 2
    assert "run 6 is active" in capsys.readouterr().err
    assert superlink.submitted == []


def test_a_delivery_is_waited_for(
    arguments: list[str],
    superlink: SuperLink,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    active = iter(["6", "6", "6"])
    for module in (submit, supervise):
        monkeypatch.setattr(module, "active_run", lambda home: next(active, None))
    monkeypatch.setattr(supervise, "only_delivers", lambda _, run_id: run_id == "6")
    assert _submit(arguments) == 0
    assert capsys.readouterr().out.count("run 6 delivers a policy, and its end is waited for") == 1
    assert len(superlink.submitted) == 1


def test_one_run_is_not_resumed_by_following_another(
    arguments: list[str], superlink: SuperLink, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    superlink.outcomes = [(1, "killed"), (1, "killed")]
    for name in ("tiny-1", "tiny-2"):
        superlink.active = superlink.submit_run(
            tmp_path, load_run_config(tmp_path / "tiny.toml", {"run.name": name})
        )
    assert _submit([*arguments, "--resume=tiny-1"]) == 2
    assert "run tiny-2 is active, so run tiny-1 cannot begin" in capsys.readouterr().err


def test_a_run_that_is_just_ending_is_not_in_the_way_of_the_next(
    arguments: list[str], superlink: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink.outcomes = [(4, "finished"), (4, "finished")]
    config = load_run_config(tmp_path / "tiny.toml", {"run.name": "first"})
    ending = superlink.submit_run(tmp_path, config)
    active = iter([ending, ending, ending])
    for module in (submit, supervise):
        monkeypatch.setattr(module, "active_run", lambda home: next(active, None))
    monkeypatch.setattr(supervise, "_RECORD_SECONDS", 60.0)
    assert _submit([*arguments, "--new"]) == 0
    assert len(superlink.submitted) == 2
    assert superlink.submitted[1].run.name != "first"


def test_a_serverapp_that_died_is_replaced_before_superlink_notices(
    arguments: list[str], superlink: SuperLink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    superlink.outcomes = [(2, "killed"), (4, "finished")]
    held = [True, True, False]
    stopped: list[str] = []

    def is_being_written(folder: Path) -> bool:
        superlink.status = "running"
        return held.pop(0) if held else False

    monkeypatch.setattr(supervise, "is_being_written", is_being_written)
    monkeypatch.setattr(supervise, "stop_run", lambda _, run_id: stopped.append(run_id))
    assert _submit(arguments) == 0
    assert stopped == ["1"]
    assert [config.run.resume for config in superlink.submitted] == [False, True]


def test_a_serverapp_that_its_operator_stopped_is_not_replaced(
    arguments: list[str], superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink.outcomes = [(2, "killed")]
    held = [True, False]

    def is_being_written(folder: Path) -> bool:
        superlink.status = "running" if len(held) == 2 else "finished:stopped"
        return held.pop(0)

    monkeypatch.setattr(supervise, "is_being_written", is_being_written)
    assert _submit(arguments) == 2
    assert len(superlink.submitted) == 1


def test_detached_it_submits_one_run_and_ends(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.outcomes = [(0, "killed")]
    assert _submit([*arguments, "--detach"]) == 0
    assert "submitted as 1" in capsys.readouterr().out
    superlink.active = "1"
    assert _submit([*arguments, "--detach"]) == 0
    assert "run 1 is active; no other is submitted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("configuration", "tiny.toml: unknown key 'training.local_step': did you mean training.local_steps?"),
        ("certificate", "ca.crt is missing; run make certs"),
        ("key", "site-b.pub is missing; run make certs"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    fault: str,
    message: str,
    arguments: list[str],
    superlink: SuperLink,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    if fault == "configuration":
        (tmp_path / "tiny.toml").write_text("[training]\nlocal_step = 3\n")
    elif fault == "certificate":
        (tmp_path / "ca.crt").unlink()
    elif fault == "key":
        (tmp_path / "site-b.pub").unlink()
    assert _submit([*arguments, "--wait-seconds=0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert superlink.submitted == []


def test_sites_that_are_off_do_not_keep_the_run_from_waiting_for_them(
    arguments: list[str], superlink: SuperLink, capsys: pytest.CaptureFixture
) -> None:
    superlink.online = [{"site-a", "lab-far"}]
    assert _submit([*arguments, "--wait-seconds=0"]) == 0
    assert "not online after 0 s: site-b; the run waits" in capsys.readouterr().out


def test_a_site_without_a_key_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert _submit([*arguments, "--site=site-c"]) == 2
    assert "'site-c': must be NAME=KEY.pub" in capsys.readouterr().err


def test_a_run_is_resumed_with_a_changed_configuration_if_one_is_named(
    arguments: list[str], superlink: SuperLink, tmp_path: Path
) -> None:
    superlink.outcomes = [(1, "killed"), (1, "killed"), (4, "finished")]
    began = load_run_config(tmp_path / "tiny.toml", {"run.name": "tiny-1"})
    superlink.submit_run(tmp_path, began)
    (tmp_path / "tiny.toml").write_text(
        "[policy]\nsize = 'tiny'\n[run]\nnum_rounds = 4\n[training]\nlearning_rate = 5e-5\n"
    )
    assert _submit([*arguments, "--resume=tiny-1"]) == 0
    assert [config.training.learning_rate for config in superlink.submitted] == [1e-4, 5e-5, 5e-5]
    superlink.outcomes = [(4, "finished")]
    assert _submit([*(a for a in arguments if "--config" not in a), "--resume=tiny-1"]) == 0
    assert superlink.submitted[-1].training.learning_rate == 5e-5
