"""The `run` service's program; a whole run with it is in tests/container."""

from pathlib import Path

import pytest

from federation.config import RunConfig
from server import submit


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A command line of two sites whose files all exist."""
    (tmp_path / "ca.crt").write_text("certificate")
    (tmp_path / "tiny.toml").write_text("[policy]\nsize = 'tiny'\n")
    sites = []
    for name in ("site-a", "site-b"):
        (tmp_path / f"{name}.pub").write_text("key")
        sites.append(f"{name}={tmp_path / name}.pub")
    return [f"--config={tmp_path / 'tiny.toml'}", f"--ca={tmp_path / 'ca.crt'}", "--sites", *sites]


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Stands in for SuperLink: what it was asked, what it answers."""
    state: dict = {"registered": [], "online": [0, 2], "active": None, "submitted": []}

    def count_online(home: Path) -> int:
        online = state["online"]
        return online.pop(0) if len(online) > 1 else online[0]

    def submit_run(home: Path, config: RunConfig) -> str:
        state["submitted"].append(config.run.name)
        return "7"

    monkeypatch.setattr(submit, "register_supernode", lambda _, key, name: state["registered"].append(name))
    monkeypatch.setattr(submit, "active_run", lambda _: state["active"])
    monkeypatch.setattr(submit, "count_online", count_online)
    monkeypatch.setattr(submit, "submit_run", submit_run)
    monkeypatch.setattr(submit, "_SECONDS_BETWEEN_LOOKS", 0.0)
    return state


def test_it_registers_the_sites_waits_for_them_and_submits(
    arguments: list[str], superlink: dict, capsys: pytest.CaptureFixture
) -> None:
    assert submit.main(arguments) == 0
    assert superlink["registered"] == ["site-a", "site-b"]
    (name,) = superlink["submitted"]
    assert name.startswith("tiny-")
    assert f"/outputs/{name}/server.log" in capsys.readouterr().out


def test_it_submits_no_second_run_beside_an_active_one(
    arguments: list[str], superlink: dict, capsys: pytest.CaptureFixture
) -> None:
    superlink["active"] = "6"
    assert submit.main(arguments) == 0
    assert superlink["submitted"] == []
    assert "run 6 is active; no other is submitted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("configuration", "tiny.toml: unknown key 'training.local_step': did you mean training.local_steps?"),
        ("certificate", "ca.crt is missing; run make certs"),
        ("key", "site-b.pub is missing; run make certs"),
        (
            "offline",
            "1 of 2 sites are online after 0 s; docker compose logs supernode-a supernode-b says why",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    fault: str,
    message: str,
    arguments: list[str],
    superlink: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    superlink["online"] = [1]
    if fault == "configuration":
        (tmp_path / "tiny.toml").write_text("[training]\nlocal_step = 3\n")
    elif fault == "certificate":
        (tmp_path / "ca.crt").unlink()
    elif fault == "key":
        (tmp_path / "site-b.pub").unlink()
    assert submit.main([*arguments, "--wait-seconds=0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert superlink["submitted"] == []


def test_a_site_without_a_key_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        submit.main([*arguments, "site-c"])
    assert "'site-c': must be NAME=KEY.pub" in capsys.readouterr().err
