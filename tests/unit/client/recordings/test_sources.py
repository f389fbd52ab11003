"""How an owner names recordings, in a command, a node configuration or a list."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.recordings.sources import (
    Source,
    make_sources,
    parse_hub_name,
    parse_sources,
    read_list,
    settle,
    split_sources,
    write_list,
)
from federation.errors import ConfigError

HUB = "hf:ann/pick-cube@v1.0"


def _dataset(folder: Path) -> Path:
    (folder / "meta").mkdir(parents=True)
    return folder


def test_one_folder_is_what_it_was(tmp_path: Path) -> None:
    folder = _dataset(tmp_path / "a, b")  # a comma is part of a name that is there
    settings = {"dataset": str(folder), "cameras": "top=phone,wrist=none"}
    assert parse_sources(settings) == (Source(str(folder), {"top": "phone", "wrist": "none"}),)
    assert parse_sources({"dataset": "/nowhere"}) == (Source("/nowhere"),)


def test_several_stand_in_one_text() -> None:
    settings = {"dataset": f"/data/a, {HUB}", "cameras": ";top=phone", "weights": "2,0.5"}
    assert parse_sources(settings) == (Source("/data/a", {}, 2.0), Source(HUB, {"top": "phone"}, 0.5))
    both = split_sources(["/data/a", HUB], ["top=phone"], [])
    assert both == (Source("/data/a", {"top": "phone"}), Source(HUB, {"top": "phone"}))


@pytest.mark.parametrize(
    ("data", "cameras", "weights", "message"),
    [
        (["a", "b", "c"], ["", "top=x"], [], "camera-names: given 2 times for 3 recordings"),
        ([], ["", "top=x"], [], "camera-names = 'top=x': given for no recording"),
        (["a", "b"], [], ["1"], "weight: 1 given for 2 recordings"),
        (["a"], [], ["0"], "weight = '0': must be a number above 0"),
        (["a"], [], ["inf"], "weight = 'inf': must be a number above 0"),
        (["a", "a"], [], [], "recording a: is named twice"),
        (["hf:ann/pick"], [], [], "hf:ann/pick: must be hf:owner/name@revision"),
        (["hf:pick@v1"], [], [], "must be hf:owner/name@revision"),
        (["hf:ann/pick@"], [], [], "must be hf:owner/name@revision"),
        (["a"], ["top"], [], "must be POLICY_CAMERA=OWN_CAMERA"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    data: list[str], cameras: list[str], weights: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_sources(data, cameras, weights)
    assert "\n" not in str(caught.value)


def test_names_that_are_empty_are_none() -> None:
    assert split_sources([], [""], []) == ()  # as Compose passes a variable that is not set


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    str.isprintable
)


@given(
    st.lists(TEXTS.filter(lambda name: not name.startswith("hf:")), min_size=1, max_size=4, unique=True),
    st.booleans(),
)
def test_a_list_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], weighted: bool
) -> None:
    file = tmp_path_factory.mktemp("s") / "recordings.toml"
    sources = tuple(
        Source(name, {"top": "my phone"} if number else {}, 0.1 + number if weighted else 0.0)
        for number, name in enumerate(names)
    )
    file.write_bytes(write_list(sources))
    assert read_list(file) == sources == parse_sources({"dataset": str(file)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no list of recordings"),
        ("recording = 3", "no list of recordings"),
        ("recording = []", "names no recording"),
        ("[[recording]]\ndata = 3", "needs data"),
        ("[[recording]]\ncameras = 'top=a'", "needs data"),
        ("[[recording]]\ndata = 'a'\nweight = '2'", "needs data"),
        ("[[recording]]\ndata = 'a'\nwieght = 2", "wieght: must be one of data, cameras, weight"),
        ("[[recording]]\ndata = 'a'\nweight = 2\n[[recording]]\ndata = 'b'", "weight: 1 given for 2"),
        ("\0", "no list of recordings"),
    ],
)
def test_a_list_that_somebody_spoiled_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "recordings.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_list(file)


@given(st.text(max_size=30))
def test_a_hub_name_is_taken_apart_or_refused(text: str) -> None:
    try:
        repository, revision = parse_hub_name(f"hf:{text}")
    except ConfigError:
        return
    assert f"{repository}@{revision}" == text
    assert repository.count("/") == 1


def test_what_is_kept_means_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "lerobot"))
    monkeypatch.chdir(tmp_path)
    recorded = _dataset(tmp_path / "lerobot" / "ann" / "place")
    snapshots = tmp_path / "lerobot" / "hub" / "datasets--ann--pick" / "snapshots"
    downloaded = _dataset(snapshots / "abc")
    folder = _dataset(tmp_path / "mine")
    assert settle(Source("mine", {"top": "a"}, 2.0)) == Source(str(folder), {"top": "a"}, 2.0)
    assert settle(Source("ann/place")).data == str(recorded)
    assert settle(Source("ann/pick")).data == str(downloaded)
    assert settle(Source(HUB)).data == HUB
    assert settle(Source("lerobot/ann")).data == str(tmp_path / "lerobot" / "ann")  # a folder of some
    _dataset(snapshots / "abd")
    for name, message in (
        ("ann/pick", "has 2 revisions; name one: hf:ann/pick@abd"),
        ("ann/other", "none of that name in LeRobot's cache"),
        ("nowhere", "no dataset there"),
        ("lerobot", "no dataset there"),
    ):
        with pytest.raises(ConfigError, match=message):
            settle(Source(name))


def test_the_sessions_that_lerobot_recorded_under_a_name_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    stamps = [f"pick_2026110{day}_101500" for day in range(1, 5)]
    for name in (*stamps, "pick_again", "pick_20261101_101500_old"):
        _dataset(tmp_path / "ann" / name)
    named = f"it has {', '.join(f'ann/{name}' for name in stamps[:3])} and 1 more: name these"
    with pytest.raises(ConfigError, match=named):
        settle(Source("ann/pick"))
    with pytest.raises(ConfigError, match=r"none of that name in LeRobot's cache, [^;]*$"):
        settle(Source("bob/pick"))


@pytest.mark.parametrize("settings", [{"dataset": "hf:ann/secret"}, {"dataset": "a", "weights": "x"}])
def test_the_server_is_not_told_what_a_recording_is_called(settings: dict[str, Any], tmp_path: Path) -> None:
    from types import SimpleNamespace

    from client.site import read_site

    node = {"name": "a", "scratch": str(tmp_path)} | settings
    with pytest.raises(ConfigError, match="the log of this SuperNode names the fault") as caught:
        read_site(SimpleNamespace(node_config=node))  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)
