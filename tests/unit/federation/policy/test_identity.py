from pathlib import Path

import huggingface_hub
import pytest

from federation.errors import FederationError
from federation.policy.identity import check_adapter, describe_adapter
from federation.settings import PolicyConfig


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def _describe(base: Path, scratch: Path, **settings: object) -> dict[str, str]:
    return describe_adapter(PolicyConfig(pretrained=str(base), adapter="lora", **settings), scratch)  # type: ignore[arg-type]


def test_without_an_adapter_there_is_nothing_to_describe(tmp_path: Path) -> None:
    assert describe_adapter(PolicyConfig(pretrained=str(tmp_path)), tmp_path) == {}
    check_adapter({}, {})


def test_it_is_known_by_its_settings_and_by_the_content_of_its_base(base: Path, tmp_path: Path) -> None:
    facts = _describe(base, tmp_path, lora_rank=8)
    assert facts | {"base": ""} == {
        "rank": "8",
        "alpha": "8",
        "targets": "default",
        "train": "both",
        "base": "",
    }
    copy = tmp_path / "copy"
    base.rename(copy)
    assert _describe(copy, tmp_path, lora_rank=8) == facts
    (copy / "model.safetensors").write_bytes(b"Weights")
    assert _describe(copy, tmp_path, lora_rank=8) != facts


def test_the_digest_of_a_base_is_taken_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = _describe(base, tmp_path)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert _describe(base, tmp_path) == facts


def test_a_damaged_record_of_it_is_taken_again(base: Path, tmp_path: Path) -> None:
    facts = _describe(base, tmp_path)
    for content in ("", "[]", "{}", '{"source": 3, "sha256": 1}'):
        (tmp_path / "base.json").write_text(content)
        assert _describe(base, tmp_path) == facts


def test_a_base_on_the_hub_is_known_by_the_file_that_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PolicyConfig(pretrained="owner/name", adapter="lora")
    assert "base" not in describe_adapter(config, tmp_path)
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.touch()
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(link))
    assert describe_adapter(config, tmp_path)["base"] == "ab" * 8


def test_a_base_that_is_not_there_yet_denies_nobody(tmp_path: Path, base: Path) -> None:
    here = _describe(base, tmp_path)
    there = _describe(tmp_path / "none", tmp_path)
    assert "base" not in there
    check_adapter(there, here)
    check_adapter(here, there)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 8, "lora_alpha": 64}, "its adapter has rank 8, the server's 64: install the server's"),
        ({"lora_alpha": 8}, "its adapter has alpha 8, the server's 64"),
        ({"lora_targets": ".*q_proj"}, r"its adapter has targets .\*q_proj, the server's default"),
        ({"lora_targets": "q" * 61}, "its adapter has targets [0-9a-f]{16}, the server's default"),
        ({"lora_train": "b"}, "its adapter has train b, the server's both"),
    ],
)
def test_another_adapter_is_denied_by_name(
    base: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    here = _describe(base, tmp_path)
    check_adapter(here, here)
    with pytest.raises(FederationError, match=message):
        check_adapter(_describe(base, tmp_path, **changes), here)
    with pytest.raises(FederationError, match=r"its adapter has .*, the server's none"):
        check_adapter(_describe(base, tmp_path, **changes), {})


def test_another_base_is_denied_by_name(base: Path, tmp_path: Path) -> None:
    here = _describe(base, tmp_path)
    (base / "model.safetensors").write_bytes(b"other")
    with pytest.raises(FederationError, match=r"its adapter has base [0-9a-f]{16}, .*: give it the server's"):
        check_adapter(_describe(base, tmp_path), here)
