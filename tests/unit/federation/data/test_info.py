import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.cameras import CameraChoice
from federation.data.description import describe_dataset
from federation.data.info import check_info, load_info, recorded_cameras
from federation.data.joint_names import check_joint_names
from federation.errors import DatasetError

VECTOR = {"dtype": "float32", "shape": [6], "names": None}
INFO = {
    "codebase_version": "v3.0",
    "fps": 30,
    "total_episodes": 1,
    "total_frames": 10,
    "total_tasks": 1,
    "chunks_size": 1000,
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "features": {
        "observation.state": VECTOR,
        "action": VECTOR,
        "observation.images.top": {"dtype": "video", "shape": [64, 64, 3], "info": {}},
        "index": {"dtype": "int64", "shape": [1]},
    },
}
ROOT = Path("site")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    changes=st.dictionaries(st.sampled_from(sorted(INFO)) | st.text(max_size=8), values, max_size=3),
    features=st.dictionaries(
        st.sampled_from(sorted(INFO["features"])),  # type: ignore[call-overload]
        st.dictionaries(st.sampled_from(["dtype", "shape", "names", "info", "video_info"]), values) | values,
    ),
)
def test_any_json_is_taken_or_refused_in_one_line(changes: dict[str, Any], features: dict[str, Any]) -> None:
    info = INFO | {"features": INFO["features"] | features} | changes  # type: ignore[operator]
    try:
        checked = check_info(ROOT, info)
        recorded_cameras(checked)
        check_joint_names(checked, ROOT)
        checked["video_path"].format(video_key="top", chunk_index=0, file_index=0)
    except DatasetError as error:
        assert str(error).isprintable()
    else:
        assert all(type(checked[key]) is int for key in ("fps", "total_episodes", "total_frames"))


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 10**5, "\ufeff{}", '{"fps": 1' + "0" * 5000 + "}", "\udcff"]
)
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError) as caught:
        load_info(tmp_path)
    assert str(caught.value).isprintable()


def test_no_column_leads_out_of_the_dataset() -> None:
    video = {"dtype": "video", "shape": [8, 8, 3]}
    features = INFO["features"] | {"observation.images.../../x": video}  # type: ignore[operator]
    with pytest.raises(DatasetError, match="must be names without a slash"):
        check_info(ROOT, INFO | {"features": features})


@pytest.mark.parametrize(
    "path",
    ["/home/ann/diary.mp4", "../../other/{video_key}.mp4", "a\x1b[2J{video_key}", "{video_key:>99}"],
)
def test_a_video_that_is_not_below_the_dataset_is_refused(path: str) -> None:
    camera = {"observation.images.top": {"dtype": "video", "shape": [8, 8, 3]}}
    info = INFO | {"video_path": path, "features": INFO["features"] | camera}  # type: ignore[operator]
    with pytest.raises(DatasetError, match=r"video_path in meta/info.json is") as caught:
        check_info(ROOT, info)
    assert str(caught.value).isprintable()
    assert 'set it to "videos/{video_key}/' in str(caught.value)


def test_the_command_in_the_message_removes_a_byte_order_mark(data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data / "site-a", tmp_path / "my site"))
    file = root / "meta/info.json"
    whole = file.read_bytes()
    file.write_bytes(b"\xef\xbb\xbf" + whole)
    with pytest.raises(DatasetError, match="starts with a byte order mark; remove it: tail") as caught:
        describe_dataset(root)
    subprocess.run(str(caught.value).partition("remove it: ")[2], shell=True, check=True)
    assert file.read_bytes() == whole


def test_files_of_a_camera_that_the_run_does_not_use_are_not_looked_at(data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data / "site-a", tmp_path / "site"))
    videos = root / "videos/observation.images.wrist"
    for video in videos.rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[:1000])
    choice = CameraChoice(("front", "wrist"), {"front": "top", "wrist": "none"}, may_lack=1)
    description = describe_dataset(root, choice)
    assert (description.left_out, description.used_cameras) == ({}, {"front": "top"})
    shutil.rmtree(videos)
    assert describe_dataset(root, choice).usable_frames == 120
    with pytest.raises(DatasetError, match=r"videos/.* is missing; copy it again"):
        describe_dataset(root)
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["observation.images.top"]
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="cameras says front=top"):
        describe_dataset(root, choice)
