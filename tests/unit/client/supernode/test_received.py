"""What a SuperNode counts of what Flower's main loop pulls, and which bundles it reads."""

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.supernode import start_client_internal

from client.rules.owner import NO_RULES, RULES_VARIABLE, OwnerRules
from client.rules.traffic import is_used_up, read_traffic
from client.supernode import received


class _Flower:
    """A main loop that pulls a bundle of 200 bytes, an object of 1000, and what else it is told to do."""

    def __init__(self, then: Any = None) -> None:
        self._then = then
        received.count_received(self)

    def _pull_and_store_message(
        self, *, node_config: dict[str, Any], receive: Any, get_fab: Any, pull_object: Any
    ) -> int | None:
        if receive() is None:
            return None
        get_fab("hash", 7)
        pull_object(7, "object")
        if self._then:
            raise self._then
        return 7

    def pull(self, scratch: Path, message: object = "message") -> int | None:
        pull: Any = self._pull_and_store_message
        run: int | None = pull(
            node_config={"scratch": str(scratch)},
            receive=lambda: message,
            get_fab=lambda *_: SimpleNamespace(content=bytes(200)),
            pull_object=lambda *_: bytes(1000),
        )
        return run


def test_all_that_is_pulled_counts_whoever_takes_it(tmp_path: Path) -> None:
    scratch = tmp_path / "not yet there"
    assert _Flower().pull(scratch, None) is None
    assert not scratch.exists()
    assert [_Flower().pull(scratch) for _ in range(2)] == [7, 7]
    assert read_traffic(NO_RULES, scratch).received == 2400


def test_what_came_of_a_message_that_failed_counts_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken off"):
        _Flower(OSError("broken off")).pull(tmp_path)
    assert read_traffic(NO_RULES, tmp_path).received == 1200


def test_beyond_the_days_gigabytes_the_site_is_to_go_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rules.toml").write_text("gigabytes-a-day = 0.000001\n")
    monkeypatch.setenv(RULES_VARIABLE, str(tmp_path / "rules.toml"))
    monkeypatch.setattr("client.rules.traffic._FAREWELL_SECONDS", 0.0)
    assert _Flower().pull(tmp_path) == 7
    assert is_used_up(OwnerRules(gigabytes_a_day=0.000001), tmp_path)
    assert "rule gigabytes-a-day" in caplog.text


def test_rules_that_cannot_be_read_end_no_supernode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rules.toml").write_text("gigabytes-a-day = many\n")
    monkeypatch.setenv(RULES_VARIABLE, str(tmp_path / "rules.toml"))
    assert _Flower().pull(tmp_path) == 7
    assert "rules.toml" in caplog.text


def _bundle(compression: int, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as bundle:
        bundle.writestr("pyproject.toml", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "bundle",
    [
        b"no zip file",
        _bundle(zipfile.ZIP_DEFLATED, b"[project\n"),
        _bundle(zipfile.ZIP_BZIP2, bytes(10**6)),
        _bundle(zipfile.ZIP_DEFLATED, bytes(10**8)),
    ],
    ids=["no zip file", "no project", "compressed otherwise", "too large"],
)
def test_a_bundle_that_cannot_be_read_ends_no_supernode(bundle: bytes) -> None:
    flower = SimpleNamespace(get_fused_config_from_fab=start_client_internal.get_fused_config_from_fab)
    received.check_bundles(flower)
    assert flower.get_fused_config_from_fab(bundle, SimpleNamespace(override_config={})) == {}


def test_the_configuration_of_a_good_bundle_is_read() -> None:
    flower = SimpleNamespace(get_fused_config_from_fab=lambda content, run: {"run.seed": len(content) + run})
    received.check_bundles(flower)
    assert flower.get_fused_config_from_fab(_bundle(zipfile.ZIP_STORED, b"x"), 1)["run.seed"] > 1
