from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import default_collate

from federation.data.cameras import match_cameras, parse_camera_names, spell_cameras
from federation.data.loading import open_dataset, policy_inputs, with_empty_cameras
from federation.data.sample_cache import open_samples
from federation.errors import ConfigError, DatasetError
from federation.policy.build import build_processors
from tests.synthetic import record_dataset

pytestmark = pytest.mark.slow

WANTED = ("top", "wrist")


def test_of_a_dataset_that_no_site_speaks_for_the_run_says_what_its_cameras_are() -> None:
    kinds = ((("phone", "wrist"), "lacks the camera top"), (("up", "above", "wrist"), "could each be"))
    for recorded, what in kinds:
        with pytest.raises(DatasetError, match=what) as caught:
            match_cameras(("top", "wrist"), recorded, None, may_lack=0, dataset="holdout")
        assert "in policy.cameras of the run configuration" in str(caught.value)
        assert "--camera-names" not in str(caught.value)


@pytest.mark.parametrize(
    ("recorded", "names", "expected"),
    [
        (("top", "wrist"), {}, ["top", "wrist"]),
        (("wrist", "front", "top"), {}, ["top", "wrist"]),
        (("overhead", "gripper"), {}, ["top=overhead", "wrist=gripper"]),
        (("top", "up", "hand"), {}, ["top", "wrist=hand"]),
        (("phone", "wrist"), {"top": "phone"}, ["top=phone", "wrist"]),
        (("wrist", "top"), {"top": "wrist", "wrist": "top"}, ["top=wrist", "wrist=top"]),
        (("up", "overhead", "wrist"), {"top": "up"}, ["top=up", "wrist"]),
        (("top",), {}, ["top", "wrist=none"]),
        (("top", "wrist"), {"wrist": "none"}, ["top", "wrist=none"]),
    ],
)
def test_each_camera_of_the_policy_gets_one_of_the_site(
    recorded: tuple[str, ...], names: dict[str, str], expected: list[str]
) -> None:
    matched = match_cameras(WANTED, recorded, names, may_lack=1, dataset="x")
    assert spell_cameras(WANTED, matched) == expected


@pytest.mark.parametrize(
    ("recorded", "names", "may_lack", "message"),
    [
        (("top",), {}, 0, r"dataset x: lacks the camera wrist \(it has top\); .*: --camera-names wrist=NAME"),
        (("phone",), {}, 2, r"lacks the camera top, wrist \(it has phone\)"),
        ((), {}, 2, r"\(it has none\)"),
        (("up", "overhead", "wrist"), {}, 1, r"up, overhead could each be the camera top; .* top=up"),
        (("top", "wrist"), {"top": "phone"}, 1, r"cameras says top=phone; .* the dataset top, wrist"),
        (("top", "wrist"), {"side": "top"}, 1, r"cameras says side=top; the policy has top, wrist"),
        (("top", "wrist"), {"wrist": "none"}, 0, r"lacks the camera wrist"),
        (("top", "wrist"), {"top": "wrist"}, 1, r"wrist is taken for each of .* top, wrist; .*wrist=NAME"),
        (("cam",), {"top": "cam", "wrist": "cam"}, 1, r"cam is taken for each of the cameras top, wrist"),
    ],
)
def test_what_cannot_be_told_is_asked_for(
    recorded: tuple[str, ...], names: dict[str, str], may_lack: int, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        match_cameras(WANTED, recorded, names, may_lack, dataset="x")


@pytest.mark.parametrize(("wanted", "own"), [("left", "right"), ("side", "left"), ("right", "side")])
def test_no_side_is_taken_for_another_which_would_be_a_mirrored_view(wanted: str, own: str) -> None:
    with pytest.raises(DatasetError, match=rf"lacks the camera {wanted} \(it has {own}, wrist\)"):
        match_cameras((wanted, "wrist"), (own, "wrist"), {}, may_lack=0, dataset="x")
    assert match_cameras((wanted,), (own,), {wanted: own}, may_lack=0, dataset="x") == {wanted: own}


NAMES = st.sampled_from(["top", "wrist", "side", "front", "up", "overhead", "left", "gripper", "phone"])


@given(st.lists(NAMES, min_size=1, unique=True), st.lists(NAMES, unique=True))
def test_no_camera_is_taken_twice(wanted: list[str], recorded: list[str]) -> None:
    try:
        matched = match_cameras(wanted, recorded, {}, may_lack=10, dataset="x")
    except DatasetError:
        return
    assert set(matched.values()) <= set(recorded)
    assert len(set(matched.values())) == len(matched) > 0
    assert all(matched[camera] == camera for camera in wanted if camera in recorded)


def test_the_names_of_a_node_configuration_are_read() -> None:
    assert parse_camera_names("") == {}
    assert parse_camera_names(" top = phone, wrist=none,") == {"top": "phone", "wrist": "none"}


@pytest.mark.parametrize("text", ["top", "=phone", "top=", "top=a,top=b"])
def test_names_that_cannot_be_read_are_shown_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be POLICY_CAMERA=OWN_CAMERA,..., e.g. 'top=phone"):
        parse_camera_names(text)


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose only camera is called phone."""
    return record_dataset(tmp_path_factory.mktemp("cameras") / "site", cameras=("phone",))


@pytest.mark.parametrize("max_bytes", [0, 10**9])
def test_another_name_gives_the_same_sample_and_a_lacking_camera_an_empty_one(
    renamed: Path, policy, tmp_path: Path, max_bytes: int
) -> None:
    samples = open_samples(renamed, policy.config, tmp_path, max_bytes, {"top": "phone"})
    item = open_dataset(renamed, policy.config)[3]
    for sample in (samples[3], samples[3]):  # decoded, then cached
        recorded = sample["observation.images.top"]
        torch.testing.assert_close(recorded, item["observation.images.phone"], atol=1 / 255, rtol=0)
        assert sample["observation.images.wrist"].abs().max() == 0
        assert not sample["observation.images.wrist_padding_mask"]
        assert "observation.images.top_padding_mask" not in sample


def test_the_policy_does_not_see_an_empty_camera(renamed: Path, policy, statistics) -> None:
    item = policy_inputs(open_dataset(renamed, policy.config)[3], policy.config, {"top": "phone"})
    empty = with_empty_cameras(item, policy.config)
    noisy = {**empty, "observation.images.wrist": torch.rand(3, 64, 64)}
    seen = {**noisy, "observation.images.wrist_padding_mask": torch.tensor(True)}
    preprocess, _ = build_processors(policy, statistics)
    noise = torch.zeros(1, policy.config.chunk_size, policy.config.max_action_dim)
    losses = []
    for sample in (empty, noisy, seen):
        with torch.no_grad():
            batch = preprocess(default_collate([sample]))
            losses.append(policy.forward(batch, noise, torch.tensor([0.5]))[0])
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
