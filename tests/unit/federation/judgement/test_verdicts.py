"""`describe_dataset` against LeRobot itself: what it takes trains right, the rest it refuses."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from federation.data.description import describe_dataset
from federation.data.faults import split_episodes
from federation.data.loading import open_dataset
from federation.data.tables import read_frames
from federation.errors import DatasetError
from tests.synthetic import record_dataset

pytestmark = pytest.mark.slow

EPISODES, FRAMES, CHUNK = 6, 8, 3
TASKS = ("take the red cube", "open the drawer")
POLICY = SmolVLAConfig(chunk_size=CHUNK, n_action_steps=CHUNK, device="cpu")
DATA, ROWS, TEXTS = (
    "data/chunk-000/file-000.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "meta/tasks.parquet",
)

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes without a camera; the second half of them has the second task."""
    root = record_dataset(
        tmp_path_factory.mktemp("verdicts") / "site", episodes=EPISODES, frames=FRAMES, cameras=()
    )
    data(lambda t: with_column(t, "task_index", pa.array(episode_of(t) // (EPISODES // 2))))(root)
    tasks([0, 1], TASKS)(root)
    info(total_tasks=2)(root)
    return root


def change_table(file: str, change: Callable[[pa.Table], pa.Table]) -> Change:
    return lambda root: pq.write_table(
        change(pq.read_table(root / file, partitioning=None)).replace_schema_metadata(None), root / file
    )


def data(change: Callable[[pa.Table], pa.Table]) -> Change:
    return change_table(DATA, change)


def episodes(**columns: Sequence[Any] | None) -> Change:
    def change(table: pa.Table) -> pa.Table:
        for name, values in columns.items():
            table = (
                table.drop_columns([name]) if values is None else with_column(table, name, pa.array(values))
            )
        return table

    return change_table(ROWS, change)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def episode_of(table: pa.Table) -> np.ndarray:
    return table["episode_index"].to_numpy()


def info(**changes: Any) -> Change:
    def change(root: Path) -> None:
        file = root / "meta/info.json"
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))

    return change


def feature(name: str, **changes: Any) -> Change:
    def change(root: Path) -> None:
        features = json.loads((root / "meta/info.json").read_text())["features"]
        features[name] = features.get(name, {}) | changes
        info(features=features)(root)

    return change


def tasks(numbers: Sequence[int] | None, texts: Sequence[str | None], *, index: bool = True) -> Change:
    def change(root: Path) -> None:
        frame = pd.DataFrame({"task": texts} if numbers is None else {"task_index": numbers, "task": texts})
        (frame.set_index("task") if index else frame).to_parquet(root / TEXTS, index=index)

    return change


def into_files(*rows: Sequence[int]) -> Change:
    def change(root: Path) -> None:
        table = pq.read_table(root / DATA, partitioning=None)
        for number, chosen in enumerate(rows):
            pq.write_table(
                table.take(pa.array(chosen, pa.int64())),
                (root / DATA).with_name(f"file-{number:03d}.parquet"),
            )

    return change


def renumber(starts: Sequence[int]) -> Change:
    first = np.array(starts)

    def change(root: Path) -> None:
        data(lambda t: with_column(t, "index", pa.array(first[episode_of(t)] + t["frame_index"].to_numpy())))(
            root
        )
        episodes(dataset_from_index=first, dataset_to_index=first + FRAMES)(root)

    return change


def vectors(name: str, convert: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None) -> Change:
    return data(lambda t: with_column(t, name, pa.array(convert(t[name].to_pylist()), kind)))


def write(name: str, content: str) -> Change:
    return lambda root: (root / name).write_text(content)


def both(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


ALL = range(EPISODES * FRAMES)
SHUFFLED = np.random.default_rng(0).permutation(EPISODES * FRAMES)
STARTS = FRAMES * np.arange(EPISODES)
TWELVE = [f"joint_{number}" for number in range(12)]

TRAINED_RIGHT: dict[str, Change] = {
    "nothing changed": lambda root: None,
    "episodes in another order": data(lambda t: t.take(pa.array([*ALL[24:], *ALL[:24]]))),
    "rows in any order": data(lambda t: t.take(pa.array(SHUFFLED))),
    "files in another order": into_files(ALL[40:], ALL[20:40], ALL[:20]),
    "each episode spread over files": into_files(ALL[::3], ALL[2::3], ALL[1::3]),
    "numbers of frames in another order": renumber(STARTS[::-1]),
    "numbers of frames with gaps": renumber(100 * STARTS),
    "tasks in another order": tasks([1, 0], TASKS[::-1]),
    "tasks without an index, in another order": tasks([1, 0], TASKS[::-1], index=False),
    "tasks without numbers, total_tasks is 0": both(tasks(None, TASKS), info(total_tasks=0)),
    "more tasks than frames have, total_tasks is absent": both(
        tasks([2, 0, 1], ["unused", *TASKS]), info(total_tasks="absent")
    ),
    "what LeRobot does without": both(
        info(data_path="absent", video_path="absent", robot_type="absent", splits="absent", total_tasks=7),
        feature("action", names=None),
        lambda root: (root / "meta/stats.json").unlink(),
        episodes(**{"data/chunk_index": None, "data/file_index": None}),
    ),
    "features and columns that nobody uses": both(
        feature("observation.effort", dtype="float32", shape=[6]),
        feature("observation.untyped", shape=[1]),
        feature("notes", dtype="floaty", shape="six"),
        data(lambda t: t.append_column("__index_level_0__", pa.array(list(ALL)))),
    ),
    "files with other columns": both(
        into_files(ALL[:20], ALL[20:]),
        data(lambda t: t.append_column("next.done", pa.array([False] * 20))),
    ),
    "what LeRobot takes": both(
        info(fps=30.0, data_path=None, video_path=None, total_videos=3, codebase_version="v3.1"),
        feature("action", dtype="float64"),
        write("meta/stats.json", '{"a": {"b": "c"}}'),
        vectors("action", list, pa.list_(pa.float64())),
        data(lambda t: t.select(t.column_names[::-1])),
        episodes(**{"data/chunk_index": [7] * EPISODES}, dataset_to_index=(STARTS + FRAMES).astype(float)),
        write("data/chunk-000/notes.txt", "x"),
    ),
}

REFUSED: dict[str, tuple[Change, str]] = {
    "a file twice": (into_files(ALL, ALL[:16]), "data/ has 16 of its 8 frames"),
    "no dataset_to_index": (episodes(dataset_to_index=None), "meta/episodes lacks 'dataset_to_index'"),
    "dataset_to_index of the next": (episodes(dataset_to_index=STARTS + 16), "it ends at frame 16"),
    "dataset_to_index as text": (
        episodes(dataset_to_index=["8"] * EPISODES),
        "is '8', must be a whole number",
    ),
    "lengths lacking": (episodes(length=[8, None, 8, 8, 8, 8]), "length in row 1 of meta/episodes is None"),
    "all episodes from 0": (renumber([0] * EPISODES), "its frames have numbers that those of episode 0 have"),
    "overlapping episodes": (renumber(STARTS // 2), "its frames have numbers that those of episode 0 have"),
    "rows of meta/episodes in another order": (
        change_table(ROWS, lambda t: t.take(pa.array([1, 0, 2, 3, 4, 5]))),
        "meta/episodes has",
    ),
    "a task number twice": (tasks([0, 0], TASKS), "meta/tasks.parquet has two tasks of number 0"),
    "a task number too high": (tasks([0, 2], TASKS), "frame 0 has a task that meta/tasks.parquet lacks"),
    "tasks that are numbers": (tasks([0, 1], [7, 8]), "no column of texts among task_index, task"),  # type: ignore[list-item]
    "fps as text": (info(fps="30"), "fps in meta/info.json is '30', must be a whole number"),
    "fps of 29.97": (info(fps=29.97), "fps in meta/info.json is 29.97, must be a whole number"),
    "total_tasks as text": (info(total_tasks="2"), "total_tasks in meta/info.json is '2', must be a whole"),
    "total_episodes as text": (info(total_episodes="6"), "total_episodes in meta/info.json is '6'"),
    "chunks_size of 0": (info(chunks_size=0), "chunks_size in meta/info.json is 0, must be a number above 0"),
    "version v3.x": (info(codebase_version="v3.x"), "format version is v3.x, must be v3.x"),
    "features as a list": (info(features=[]), "features in meta/info.json is [], must be an object"),
    "a feature that is a number": (info(features={"a": 1}), "features.a in meta/info.json is 1, must be an"),
    "shape [1, 6]": (feature("action", shape=[1, 6]), "features.action.shape in meta/info.json is [1, 6]"),
    "dtype int64": (feature("action", dtype="int64"), 'must be float32 or float64; set it to "float32"'),
    "dtype of a number": (feature("task_index", dtype="float32"), 'int64 or int32; set it to "int64"'),
    "info.json says 12": (
        feature("action", shape=[12], names=TWELVE),
        "action has 12 values, an SO-100/SO-101 arm has 6",
    ),
    "data/ has 12": (
        vectors("action", lambda rows: [row + row for row in rows]),
        "action has 12 values in data/ and 6 in meta/info.json",
    ),
    "state of 12 beside action of 6": (
        both(
            vectors("observation.state", lambda rows: [row + row for row in rows]),
            feature("observation.state", shape=[12], names=TWELVE),
        ),
        "observation.state has 12 values, an SO-100/SO-101 arm has 6",
    ),
    "frames of different lengths": (
        vectors("action", lambda rows: [rows[0][:5], [*rows[1], 0.0], *rows[2:]]),
        "action has from 5 to 7 values in a frame",
    ),
    "lists of lists": (vectors("action", lambda rows: [[row] for row in rows]), "must hold lists of numbers"),
    "episode_index as text": (
        data(lambda t: with_column(t, "episode_index", t["episode_index"].cast(pa.string()))),
        "episode_index holds string, must hold numbers",
    ),
    "no task_index": (data(lambda t: t.drop_columns(["task_index"])), "lacks the column task_index"),
    "a file without rows": (into_files(ALL, []), "file-001.parquet starts without rows"),
    "a leftover of macOS": (write("data/chunk-000/._file-000.parquet", "x" * 50), "delete it"),
    "stats.json empty": (write("meta/stats.json", ""), "meta/stats.json cannot be read"),
    "stats.json a list": (
        write("meta/stats.json", "[]"),
        "meta/stats.json must hold a JSON object; delete it",
    ),
    "stats.json ragged": (
        write("meta/stats.json", '{"a": [[1], [1, 2]]}'),
        "meta/stats.json is no statistics",
    ),
}


@pytest.mark.parametrize("change", TRAINED_RIGHT.values(), ids=TRAINED_RIGHT)
def test_what_is_taken_gives_the_samples_that_were_recorded(
    recorded: Path, tmp_path: Path, change: Change
) -> None:
    root = Path(shutil.copytree(recorded, tmp_path / "site"))
    change(root)
    description = describe_dataset(root)
    assert description.left_out == {}
    truth = split_episodes(read_frames(recorded))
    samples = open_dataset(root, POLICY, description.usable_episodes)
    seen = [_check_sample(samples[number], truth) for number in range(len(samples))]
    assert sorted(seen) == [(episode, frame) for episode in range(EPISODES) for frame in range(FRAMES)]
    own = split_episodes(read_frames(root))
    for episode, frames in truth.items():
        np.testing.assert_array_equal(own[episode]["action"], frames["action"])
    np.testing.assert_allclose(
        description.statistics["action"]["mean"], read_frames(recorded)["action"].mean(0), rtol=1e-12
    )


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_lerobot_cannot_read_is_refused_in_one_line(
    recorded: Path, tmp_path: Path, change: Change, reason: str
) -> None:
    root = Path(shutil.copytree(recorded, tmp_path / "site"))
    change(root)
    with pytest.raises(DatasetError) as caught:
        describe_dataset(root)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_only_the_episode_with_a_missing_action_is_excluded(recorded: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(recorded, tmp_path / "site"))
    vectors("action", lambda rows: [*rows[:11], None, *rows[12:]], pa.list_(pa.float32(), 6))(root)
    description = describe_dataset(root)
    assert description.left_out == {1: "action is NaN or infinite in frame 3"}
    samples = open_dataset(root, POLICY, description.usable_episodes)
    truth = split_episodes(read_frames(recorded))
    assert len([_check_sample(samples[number], truth) for number in range(len(samples))]) == 5 * FRAMES


def _check_sample(sample: dict[str, Any], truth: dict[int, dict[str, np.ndarray]]) -> tuple[int, int]:
    episode, frame = int(sample["episode_index"]), int(sample["frame_index"])
    ahead = np.arange(frame, frame + CHUNK)
    own = truth[episode]
    np.testing.assert_array_equal(sample["action"], own["action"][np.minimum(ahead, FRAMES - 1)])
    np.testing.assert_array_equal(sample["action_is_pad"], ahead >= FRAMES)
    np.testing.assert_array_equal(sample["observation.state"], own["observation.state"][[frame]])
    assert sample["task"] == TASKS[episode >= EPISODES // 2]
    return episode, frame
