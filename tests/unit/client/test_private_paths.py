"""No path of a site is in the reason that its error reply gives."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.private_paths import hide_paths

DATA, SCRATCH = Path("/home/ada/arms/kitchen"), Path("/home/ada/arms/kitchen/scratch")
KEPT = {"dataset": DATA, "scratch": SCRATCH, "dataset 2": Path("/home/ada/Ann's arms/pick")}
CACHES = {
    "HF_HOME": "/mnt/models/hub",
    "HF_DATASETS_CACHE": "/mnt/models/arrow",
    "XDG_CACHE_HOME": "/mnt/my disk/cache",
    "FEDERATION_MOUNTED": "/data=./my data/anns-kitchen",
}


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (f"dataset {DATA}: no meta/info.json there", "dataset <dataset>: no meta/info.json there"),
        (f"cannot write '{SCRATCH}/arrow/x'", "cannot write '<scratch>/arrow/x'"),
        (f"{DATA}/meta/info.json is missing", "<dataset>/meta/info.json is missing"),
        (f"{DATA}-old is another", "<path> is another"),
        ("LeRobot: local/kitchen has no episodes", "LeRobot: <dataset> has no episodes"),
        ("/mnt/models/hub/models--lab--x/refs: denied", "<path> denied"),
        ("[Errno 2] No such file: '/mnt/My Models/hub/a b'", "[Errno 2] No such file: '<path>'"),
        ("no room in /mnt/my disk/cache/hub/models--x, or so", "no room in <path>, or so"),
        ("run make repair DATA='./my data/anns-kitchen' once", "run make repair DATA='<path>' once"),
        ("look into ~/.cache/huggingface", "look into <path>"),
        ("cache=/srv/x, lock:/srv/y", "cache=<path>, lock:<path>"),
        ("file:///srv/x and //srv//y", "<path> and <path>"),
        ("https://huggingface.co/lab/x answered 404", "https://huggingface.co/lab/x answered 404"),
        ("3/4 of 6 joints, and/or ./x, 30 frames/s", "3/4 of 6 joints, and/or ./x, 30 frames/s"),
        ("cut off: '/srv/secret/fold", "cut off: '<path>"),
        (
            f"make repair DATA={shlex.quote('/home/ada/Ann' + chr(39) + 's arms/pick')} writes",
            "make repair DATA='<dataset 2>' writes",
        ),
    ],
)
def test_paths_are_hidden_and_what_helps_stays(reason: str, said: str) -> None:
    assert hide_paths(reason, KEPT, CACHES) == said


def test_a_link_is_hidden_under_either_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("real", "link"):
        said = hide_paths(f"{tmp_path}/{name}/meta: denied", {"dataset": tmp_path / "link"})
        assert said == "<dataset>/meta: denied"


_CACHED = [path for name, path in CACHES.items() if name != "FEDERATION_MOUNTED"]
PRIVATE = [str(DATA), str(SCRATCH), *_CACHED, str(Path.home()), "/tmp"]
TEXTS = st.lists(st.sampled_from([*PRIVATE, "/", "'", '"', " ", ":", "<", "..", "a"]) | st.text(max_size=4))


@given(TEXTS.map("".join))
def test_no_private_path_survives_whatever_stands_around_it(reason: str) -> None:
    said = hide_paths(reason, KEPT, CACHES)
    assert not [path for path in PRIVATE if path in said]


@given(st.text(alphabet=st.characters(exclude_characters="/~"), max_size=60))
def test_what_holds_no_path_is_left_alone(reason: str) -> None:
    assert hide_paths(reason, KEPT, CACHES) == reason
