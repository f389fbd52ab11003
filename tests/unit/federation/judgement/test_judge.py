import dataclasses
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from federation import kept
from federation.data.description import DatasetDescription
from federation.errors import DatasetError
from federation.judgement import judge
from federation.judgement.judge import DatasetUse, judge_datasets
from federation.judgement.sample_process import Verdict
from federation.settings import PolicyConfig
from tests.synthetic import blank_frames, video_of

pytestmark = pytest.mark.slow

TINY = PolicyConfig(size="tiny")


def judge_dataset(use: DatasetUse) -> DatasetDescription:
    return judge_datasets([use])[0]


@pytest.fixture
def use(data: Path, tmp_path: Path) -> DatasetUse:
    root = Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))
    return DatasetUse(root, TINY, tmp_path / "scratch")


def test_samples_are_looked_at_once_for_each_state_of_the_files_and_each_policy(
    use: DatasetUse, looks: list[Path]
) -> None:
    assert judge_dataset(use).used_cameras == {"top": "top", "wrist": "wrist"}
    judge_dataset(use)
    assert len(looks) == 1
    for changes in ({"chunk_size": 40}, {"cameras": "wrist"}, {"size": "small"}):
        judge_dataset(dataclasses.replace(use, policy=dataclasses.replace(TINY, **changes)))
    assert len(looks) == 4
    os.utime(video_of(use.root, "top"), (1, 1))
    judge_dataset(use)
    assert len(looks) == 5


def test_a_fault_is_kept_and_raised_again_until_the_files_change(
    use: DatasetUse, data: Path, looks: list[Path]
) -> None:
    video = video_of(use.root, "top")
    blank_frames(video, range(10**6))
    for _ in range(2):
        with pytest.raises(DatasetError, match="cannot be decoded"):
            judge_dataset(use)
    assert len(looks) == 1
    shutil.copy(video_of(data / "site-a", "top"), video)
    judge_dataset(use)
    assert len(looks) == 2


def test_warnings_are_kept_with_the_verdict(use: DatasetUse, looks: list[Path]) -> None:
    blank_frames(video_of(use.root, "top"), range(4))
    first, second = judge_dataset(use).warnings, judge_dataset(use).warnings
    assert first == second
    assert "cannot be decoded" in first[-1]
    assert len(looks) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"error": ""}', b"\xff\xfe", b"null"])
def test_a_kept_verdict_that_is_none_is_made_again(
    use: DatasetUse, looks: list[Path], content: bytes
) -> None:
    judge_dataset(use)
    (file,) = (use.scratch / "judged").iterdir()
    file.write_bytes(content)
    judge_dataset(use)
    assert len(looks) == 2


def test_a_verdict_that_cannot_be_kept_costs_another_look(
    use: DatasetUse, looks: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_json", full)
    judge_dataset(use)
    judge_dataset(use)
    assert len(looks) == 2
    assert "No space left on device" in caplog.text


def test_only_the_newest_verdicts_are_kept(use: DatasetUse, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Verdict("", lasts=True, warnings=())
    monkeypatch.setattr(judge, "look_at_samples", lambda request, _: [good] * len(request))
    monkeypatch.setattr(kept, "_MAX_KEPT", 20)
    for chunk_size in range(1, 25):
        policy = dataclasses.replace(TINY, chunk_size=chunk_size)
        judge_dataset(dataclasses.replace(use, policy=policy))
    assert len(list((use.scratch / "judged").iterdir())) == 20


def test_after_a_crash_the_others_are_still_looked_at(
    use: DatasetUse, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    crash = Verdict("the look at its samples ended with SIGSEGV", lasts=False, warnings=())

    def look(request, _: Path) -> list[Verdict]:
        asked.append([one.root.name for one, _ in request])
        return [crash] if len(asked) == 1 else [Verdict("", lasts=True, warnings=())] * len(request)

    monkeypatch.setattr(judge, "look_at_samples", look)
    with pytest.raises(DatasetError, match="SIGSEGV"):
        judge_datasets([use, dataclasses.replace(use, root=data / "holdout")])
    assert asked == [["site-a", "holdout"], ["holdout"]]
    judge_dataset(use)  # the crash was not kept
    assert asked[-1] == ["site-a"]


def test_two_joins_at_once_both_get_their_verdict(use: DatasetUse, looks: list[Path]) -> None:
    found: list[tuple[str, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(judge_dataset(use).warnings)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(), ()]


def test_a_dataset_that_nobody_may_write_to_is_judged(use: DatasetUse, looks: list[Path]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in use.root.rglob("*"))
    judge_dataset(use)
    assert sorted((path, path.stat().st_mtime_ns) for path in use.root.rglob("*")) == before


def test_a_join_does_without_torch(data: Path, tmp_path: Path) -> None:
    code = "import sys, client.app; print('torch' in sys.modules, 'lerobot' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]
