import dataclasses
from pathlib import Path

import pytest
import torch

from client.state import frozen
from client.state.frozen import kept_fingerprint
from federation.config import RunConfig
from federation.policy.build import build_policy, frozen_fingerprint
from federation.policy.vlm_folder import vlm_folder
from federation.settings import PolicyConfig


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The policies whose weights were read for a fingerprint."""
    policies: list[object] = []

    def take(policy) -> str:
        policies.append(policy)
        return frozen_fingerprint(policy)

    monkeypatch.setattr(frozen, "frozen_fingerprint", take)
    return policies


def test_it_is_taken_once_and_is_the_policys_own(policy, tiny_config, tmp_path: Path, taken) -> None:
    expected = frozen_fingerprint(policy)
    assert kept_fingerprint(policy, tiny_config, tmp_path) == expected
    assert kept_fingerprint(policy, tiny_config, tmp_path) == expected
    assert len(taken) == 1


@pytest.mark.parametrize("section", [{"seed": 9}, {"chunk_size": 10}])
def test_another_seed_or_policy_is_taken_anew(policy, tiny_config, tmp_path, taken, section) -> None:
    name = "run" if "seed" in section else "policy"
    other = dataclasses.replace(
        tiny_config, **{name: dataclasses.replace(getattr(tiny_config, name), **section)}
    )
    kept_fingerprint(policy, tiny_config, tmp_path)
    kept_fingerprint(policy, other, tmp_path)
    assert len(taken) == 2


def test_other_versions_are_taken_anew(policy, tiny_config, tmp_path, taken, monkeypatch) -> None:
    kept_fingerprint(policy, tiny_config, tmp_path)
    monkeypatch.setattr(frozen, "versions", lambda: {"torch": "2.12.0"})
    kept_fingerprint(policy, tiny_config, tmp_path)
    assert len(taken) == 2


@pytest.mark.parametrize("content", ["", "[]", "null", '{"source": 3}', "{"])
def test_a_damaged_file_is_replaced(policy, tiny_config, tmp_path: Path, taken, content: str) -> None:
    (tmp_path / "frozen.json").write_text(content)
    kept_fingerprint(policy, tiny_config, tmp_path)
    kept_fingerprint(policy, tiny_config, tmp_path)
    assert len(taken) == 1


def test_a_policy_folder_that_changed_is_taken_anew(tmp_path: Path, cache: Path, taken) -> None:
    folder = tmp_path / "policy"
    tiny = build_policy(PolicyConfig(size="tiny"), seed=1, device=torch.device("cpu"), cache=cache)
    tiny.save_pretrained(folder)
    section = PolicyConfig(size="pretrained", pretrained=str(folder), vlm=str(vlm_folder("tiny", cache)))
    config = RunConfig(policy=section)
    first = kept_fingerprint(tiny, config, tmp_path)
    assert kept_fingerprint(tiny, config, tmp_path) == first
    assert len(taken) == 1
    other = build_policy(PolicyConfig(size="tiny"), seed=2, device=torch.device("cpu"), cache=cache)
    other.save_pretrained(folder)
    assert kept_fingerprint(other, config, tmp_path) == frozen_fingerprint(other) != first


def test_a_policy_on_the_hub_is_known_by_its_cached_file(
    policy, tmp_path: Path, taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(policy=PolicyConfig(size="pretrained", pretrained="someone/smolvla"))
    monkeypatch.setattr(frozen, "try_to_load_from_cache", lambda *_: None)
    for _ in range(2):
        kept_fingerprint(policy, config, tmp_path)
    assert len(taken) == 2  # it is nowhere: nothing is kept
    for name in ("blob-1", "blob-1", "blob-2"):
        monkeypatch.setattr(frozen, "try_to_load_from_cache", lambda *_, name=name: str(tmp_path / name))
        kept_fingerprint(policy, config, tmp_path)
    assert len(taken) == 4


def test_a_scratch_that_is_full_costs_only_time(policy, tiny_config, tmp_path, taken, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frozen, "write_json", full)
    assert kept_fingerprint(policy, tiny_config, tmp_path) == frozen_fingerprint(policy)
