"""The command that messages about damaged datasets name is run: LeRobot reads all that it writes."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from client.cli import main
from client.doctor.dataset import check_dataset
from client.recordings.hub import remove_downloads
from client.repair.main import repair_dataset
from federation.data.advice import repair
from federation.data.description import describe_dataset, find_datasets
from federation.errors import DatasetError
from federation.files import write_json
from tests import REPOSITORY
from tests.synthetic import as_format_2, record_dataset

pytestmark = pytest.mark.slow

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


FRAMES = 12  # of each of the three episodes


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, not to be changed: its copies are damaged."""
    return record_dataset(tmp_path_factory.mktemp("data") / "site-a", episodes=3, frames=FRAMES)


@pytest.fixture(scope="module")
def frames(original: Path) -> list[dict[str, Any]]:
    """What LeRobot reads of it."""
    return list(LeRobotDataset("local/site-a", root=original, video_backend="pyav"))


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(original, tmp_path / "site-a"))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def change_info(root: Path, **changes: object) -> None:
    file = root / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_column(file: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    table = pq.read_table(file, partitioning=None)
    column = table[name]
    values = np.array(column.to_pylist())
    place = table.column_names.index(name)
    changed = pa.array(list(change(values)), column.type)
    pq.write_table(table.set_column(place, table.schema.field(name), changed), file)


def assert_trains(root: Path, frames: list[dict[str, Any]], kept: Sequence[int], most: float = 0.0) -> None:
    """The dataset in `root` has the episodes `kept` of `frames`, is whole, and LeRobot reads it all.

    Args:
        most: how far a pixel may be off.
    """
    description = describe_dataset(root)
    assert (description.episodes, description.left_out) == (len(kept), {})
    found = list(LeRobotDataset(f"local/{root.name}", root=root, video_backend="pyav"))
    expected = [frame for episode in kept for frame in frames[FRAMES * episode : FRAMES * (episode + 1)]]
    for own, frame in zip(found, expected, strict=True):
        assert own["task"] == frame["task"]
        for key in ("action", "observation.state"):
            assert own[key].equal(frame[key])
        for key in ("observation.images.top", "observation.images.wrist"):
            assert float((own[key] - frame[key]).abs().max()) <= most


def test_a_whole_dataset_stays_what_it_is(
    original: Path, frames: list[dict[str, Any]], new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (original).rglob("*")}
    assert main(["repair", str(original), str(new)]) == 0
    assert "new: 3 episodes, 36 frames, 30 frames/s" in capsys.readouterr().out
    assert_trains(new, frames, [0, 1, 2])
    assert before == {p: p.stat().st_mtime_ns for p in (original).rglob("*")}
    old, repaired = (json.loads((root / "meta/info.json").read_text()) for root in (original, new))
    assert old == repaired
    old, repaired = (json.loads((root / "meta/stats.json").read_text()) for root in (original, new))
    assert old.keys() == repaired.keys()
    np.testing.assert_allclose(old["action"]["mean"], repaired["action"]["mean"], rtol=1e-5, atol=1e-5)


def follow(message: str) -> Path:
    """Run the command that `message` names; the folder that it writes."""
    command = re.search(r"make repair (DATA=.*?)( WITHOUT=[\d,]+)?(?= \w)", message)
    assert command, message
    (dataset,) = shlex.split(command[1].removeprefix("DATA="))
    without = ["--without", command[2].removeprefix(" WITHOUT=")] if command[2] else []
    assert main(["repair", dataset, *without]) == 0
    return Path(f"{dataset}-repaired")


def refusal(root: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        describe_dataset(root)
    return str(caught.value)


def filter_rows(file: Path, without: int) -> None:
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.filter(pc.not_equal(table["episode_index"], without)), file)


def encode(file: Path, times: Sequence[float], pictures: Sequence[np.ndarray], **options: str) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "2", "crf": "10", **options})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90000)
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(time * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode(file: Path) -> list[np.ndarray]:
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def remove_episode_by_hand(root: Path) -> None:
    filter_rows(root / DATA, 1)
    filter_rows(root / EPISODES, 1)
    change_info(root, total_episodes=2, total_frames=24)


def put_nan(root: Path) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values[15, 2] = np.nan
        return values

    change_column(root / DATA, "action", change)


def cut_video(root: Path) -> None:
    content = (root / VIDEO).read_bytes()
    (root / VIDEO).write_bytes(content[: int(0.8 * len(content))])


def damage_page(root: Path) -> None:
    place = pq.read_metadata(root / DATA).row_group(1).column(1)
    content = bytearray((root / DATA).read_bytes())
    content[place.data_page_offset : place.data_page_offset + 40] = bytes(40)
    (root / DATA).write_bytes(content)


def lose_frames(root: Path) -> None:
    table = pq.read_table(root / DATA, partitioning=None)
    pq.write_table(table.slice(0, 30), root / DATA)


def lose_number(root: Path) -> None:
    table = pq.read_table(root / EPISODES, partitioning=None)
    numbers = pa.array([0, None, 2], pa.int64())
    column = table.schema.get_field_index("episode_index")
    pq.write_table(table.set_column(column, "episode_index", numbers), root / EPISODES)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lose_number, [0, 2]),
        (lambda root: change_info(root, fps=None), [0, 1, 2]),
        (remove_episode_by_hand, [0, 2]),
        (lambda root: change_info(root, total_episodes=4, total_frames=48), [0, 1, 2]),
        (put_nan, [0, 2]),
        (cut_video, [0, 1]),
        (lose_frames, [0, 1]),
        (damage_page, [0, 2]),
        (lambda root: change_column(root / DATA, "timestamp", lambda t: t + 0.004), [0, 1, 2]),
        (lambda root: change_column(root / DATA, "timestamp", lambda t: t + 1.76e9), [0, 1, 2]),
        (lambda root: change_info(root, fps=29.97), [0, 1, 2]),
        (lambda root: change_column(root / DATA, "index", lambda index: index + 7), [0, 1, 2]),
    ],
)
def test_the_command_in_the_message_saves_what_is_whole(
    copy: Path, frames: list[dict[str, Any]], damage: Callable[[Path], None], kept: list[int]
) -> None:
    damage(copy)
    assert_trains(follow(refusal(copy)), frames, kept)


@pytest.mark.parametrize("content", [None, b"torn"])
def test_no_repair_is_named_for_the_texts_of_the_tasks_which_nothing_else_has(
    copy: Path, content: bytes | None
) -> None:
    file = copy / "meta" / "tasks.parquet"
    file.unlink()
    if content:
        file.write_bytes(content)
    assert refusal(copy).endswith("copy it again")


def test_an_episode_can_be_dropped(
    original: Path, frames: list[dict[str, Any]], new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repair", str(original), str(new), "--without", "1"]) == 0
    assert "episode 1 is not in it: dropped as asked" in capsys.readouterr().out
    assert_trains(new, frames, [0, 2])


@pytest.mark.parametrize(
    ("times"),
    [
        np.arange(36) * 1001 / 30000,
        np.arange(36) / 30 + 0.5,
        np.arange(36) / 30 + np.random.default_rng(0).uniform(0, 0.012, 36),
    ],
    ids=["29.97 frames a second", "late start", "variable rate"],
)
def test_frames_of_a_video_get_their_place_in_time(
    copy: Path, frames: list[dict[str, Any]], new: Path, times: np.ndarray
) -> None:
    encode(copy / VIDEO, times, decode(copy / VIDEO))
    assert_trains(follow(refusal(copy)), frames, [0, 1, 2], most=0.2)


def test_the_recorded_times_are_believed_before_fps(copy: Path, new: Path) -> None:
    change_column(copy / DATA, "timestamp", lambda times: 2 * times)
    repair_dataset(copy, new)
    assert describe_dataset(new).fps == 15
    assert len(list(LeRobotDataset("local/new", root=new, video_backend="pyav"))) == 36


def test_a_recording_that_broke_off_is_saved(
    tmp_path: Path, frames: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    finalize, broken = LeRobotDataset.finalize, tmp_path / "broken"

    def copy_first(dataset: LeRobotDataset) -> None:
        shutil.copytree(dataset.root, broken)  # what is on the disk if the power goes now
        finalize(dataset)

    monkeypatch.setattr(LeRobotDataset, "finalize", copy_first)
    record_dataset(tmp_path / "whole", episodes=3, frames=FRAMES)
    message = refusal(broken)
    assert "data/chunk-000/file-000.parquet has no end, as after a crash" in message
    assert "no episode is whole as it is" in message
    assert_trains(follow(message), frames, [0, 1, 2])


def record_more(root: Path) -> LeRobotDataset:
    """Resume the recording in `root` for an episode; the session is not ended yet."""
    dataset = LeRobotDataset.resume("local/more", root=root, rgb_encoder=RGBEncoderConfig(vcodec="h264"))
    pictures = dict.fromkeys(dataset.meta.video_keys, np.full((64, 64, 3), 50, np.uint8))
    for k in range(FRAMES):
        joints = np.full(6, k, np.float32)
        dataset.add_frame(pictures | {"action": joints, "observation.state": joints, "task": "another"})
    dataset.save_episode(parallel_encoding=False)
    return dataset


def test_a_resumed_recording_that_broke_off_is_saved_with_its_earlier_sessions(
    copy: Path, tmp_path: Path
) -> None:
    dataset = record_more(copy)
    broken = Path(shutil.copytree(copy, tmp_path / "broken"))
    dataset.finalize()
    message = refusal(broken)
    assert "data/chunk-000/file-001.parquet has no end, as after a crash" in message
    assert "episodes 0 to 2 are whole" in message
    frames = list(LeRobotDataset("local/site-a", root=copy, video_backend="pyav"))
    assert_trains(follow(message), frames, [0, 1, 2, 3])


@pytest.mark.parametrize("missing", [DATA, VIDEO])
def test_the_episodes_of_a_file_that_is_missing_are_lost_alone(
    copy: Path, frames: list[dict[str, Any]], missing: str
) -> None:
    record_more(copy).finalize()
    (copy / missing.replace("file-000", "file-001")).unlink()
    assert_trains(follow(refusal(copy)), frames, [0, 1, 2])


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_format_2_becomes_format_3(copy: Path, frames: list[dict[str, Any]], new: Path, version: str) -> None:
    as_format_2(copy, version)
    assert_trains(follow(refusal(copy)), frames, [0, 1, 2], most=0.2)


def test_where_nothing_is_whole_nothing_is_written(copy: Path, new: Path) -> None:
    (copy / DATA).write_bytes(b"PAR1")
    assert "no episode is whole as it is" in refusal(copy)
    with pytest.raises(DatasetError, match=r"nothing can be saved: no episode is whole.*has no end"):
        repair_dataset(copy, new)
    assert not new.exists()
    assert [path.name for path in new.parent.iterdir()] == ["site-a"]


@pytest.mark.parametrize(
    "path", ["../elsewhere/{video_key}.mp4", "/home/{video_key}.mp4", "{video_key:>9999999999}"]
)
def test_no_video_is_taken_from_outside_the_dataset(copy: Path, new: Path, path: str) -> None:
    info = json.loads((copy / "meta" / "info.json").read_text())
    write_json(copy / "meta" / "info.json", info | {"video_path": path})
    with pytest.raises(DatasetError, match=r"video_path in meta/info\.json is .*; set it to"):
        repair_dataset(copy, new)
    assert not new.exists()


def test_nothing_is_replaced(original: Path, new: Path) -> None:
    new.mkdir()
    with pytest.raises(DatasetError, match="new exists: remove it"):
        repair_dataset(original, new)


def test_what_the_doctor_warns_of_can_be_dropped(copy: Path, frames: list[dict[str, Any]]) -> None:
    def repeat(values: np.ndarray) -> np.ndarray:
        values[FRAMES : 2 * FRAMES] = values[:FRAMES]
        return values

    change_column(copy / DATA, "action", repeat)
    change_column(copy / DATA, "observation.state", repeat)
    (warning,) = (check for check in check_dataset(copy, ("top", "wrist"))[0] if check.what == "duplicates")
    assert_trains(follow(warning.text), frames, [0, 2])


def test_a_repaired_dataset_takes_the_place_of_the_damaged(copy: Path) -> None:
    put_nan(copy)
    repaired = follow(refusal(copy))
    shutil.copytree(copy, copy.parent / "site-b")
    shutil.copytree(copy, copy.parent / "site-b_old")  # as LeRobot's conversion leaves beside it
    assert find_datasets(copy.parent) == {"site-a": repaired, "site-b": copy.parent / "site-b"}
    again = Path(shutil.copytree(repaired, f"{repaired}-repaired"))
    assert find_datasets(copy.parent)["site-a"] == again
    assert len(find_datasets(copy.parent)) == 2


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "make repair DATA='/data/my arm' WITHOUT=3,7"),
        ({"FEDERATION_MOUNTED": "/data=./recordings"}, "make repair DATA='recordings/my arm' WITHOUT=3,7"),
        ({"FEDERATION_REPAIR": "docker repair"}, "docker repair --without 3,7"),
        ({"FEDERATION_INSTALLATION": "/venv/lib"}, "so100-site repair '/data/my arm' --without 3,7"),
    ],
)
def test_the_command_fits_where_it_is_read(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], command: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert repair(Path("/data/my arm"), [3, 7]) == command


def test_make_runs_it() -> None:
    line = ["make", "--dry-run", "repair", "DATA=my data/site-a", "WITHOUT=3,7"]
    repository = REPOSITORY
    shown = subprocess.run(line, cwd=repository, capture_output=True, text=True, check=True).stdout
    assert 'python -m client.cli repair "my data/site-a"  --without "3,7"' in shown


def test_in_a_sites_container_it_writes_to_scratch(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDERATION_REPAIR", "docker compose run --rm supernode repair")
    monkeypatch.setenv("FEDERATION_DATASET", str(copy))
    monkeypatch.setenv("FEDERATION_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("client.repair.main._MOUNTED", str(copy))
    assert main(["repair"]) == 0
    assert "in .env: DATASET=./site/scratch/repaired" in capsys.readouterr().out
    assert describe_dataset(tmp_path / "scratch/repaired").episodes == 3


def test_in_a_container_one_of_the_recordings_is_named_in_its_place(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDERATION_REPAIR", "docker compose run --rm supernode repair")
    monkeypatch.setenv("FEDERATION_DATASET", str(copy))  # of RECORDINGS, which names one in /data
    monkeypatch.setenv("FEDERATION_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert main(["repair"]) == 0
    new = tmp_path / "scratch" / f"{copy.name}-repaired"
    assert f"in .env: RECORDINGS with {new} in the place of {copy}" in capsys.readouterr().out


def test_the_folder_that_one_stands_in_has_a_name(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy)
    assert main(["repair", "."]) == 0
    assert f"it takes the place of {copy.name}" in capsys.readouterr().out
    assert describe_dataset(copy.with_name(f"{copy.name}-repaired")).episodes == 3


def test_of_a_download_the_repaired_one_lies_where_nothing_removes_it(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "hub").mkdir(parents=True)
    folder = copy.rename(scratch / "hub" / "0123abcd")
    write_json(folder.with_suffix(".json"), {"recording": "hf:ann/pick@v1", "commit": "0"})
    monkeypatch.chdir(tmp_path)
    assert main(["repair", str(folder)]) == 0
    new = tmp_path / "pick-repaired"
    assert f"so100-site data --add {new} --remove hf:ann/pick@v1 puts it" in capsys.readouterr().out
    remove_downloads(scratch, [])
    assert describe_dataset(new).episodes == 3
