"""The process that looks at samples of datasets: `judgement/judge.py` starts it and waits for its verdicts.

    python -m federation.judgement.sample_process FOLDER

So a join need not import torch, and outlives a video library that crashes. FOLDER holds the `request`, and
gets a file `verdicts` with a line of JSON for each dataset. When standard input ends, nobody waits any more:
the process removes FOLDER and ends. What it looks at is in `judgement/sample_check.py`.
"""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.data.description import DatasetDescription
from federation.errors import DatasetError, one_line
from federation.logs import get_logger
from federation.messages import JOIN_SECONDS
from federation.settings import PolicyConfig

__all__ = ["DatasetUse", "Verdict", "look_at_samples", "main", "read_verdict"]

_REQUEST, _VERDICTS, _PRINTED = "request", "verdicts", "printed"  # files in the folder
_COMMAND = (sys.executable, "-P", "-m", "federation.judgement.sample_process")
_MAX_SECONDS = JOIN_SECONDS - 30.0  # for a dataset
_PREFIX = ".samples-"  # of folders that are removed at the end
_LEFT_SECONDS = 3600.0
_log = get_logger("federation.judgement.sample_process")


@dataclass(frozen=True)
class DatasetUse:
    """A dataset, the policy that is trained on it or measured with it, and where its verdict is kept."""

    root: Path
    policy: PolicyConfig
    scratch: Path
    names: Mapping[str, str] = field(default_factory=dict)  # what its site calls the policy's cameras


@dataclass(frozen=True)
class Verdict:
    """What the look at samples came to."""

    error: str  # empty if they can be trained on
    lasts: bool  # it is about the files, so that it holds until they change
    warnings: tuple[str, ...]

    def check(self) -> tuple[str, ...]:
        """Return the warnings; raise DatasetError if there is an error."""
        if self.error:
            raise DatasetError(self.error)
        return self.warnings


def read_verdict(content: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `content` holds as JSON does.

    Raises:
        TypeError, KeyError: it holds none.
    """
    return Verdict(str(content["error"]), bool(content["lasts"]), tuple(map(str, content["warnings"])))


def look_at_samples(request: Sequence[tuple[DatasetUse, DatasetDescription]], scratch: Path) -> list[Verdict]:
    """Have a process of its own look at samples of the datasets of `request`.

    If that process dies, the last verdict says so, which is of the dataset that it was looking at.
    """
    is_hub_asked = any(use.policy.size == "pretrained" for use, _ in request)
    with _temporary_folder(scratch, pickle.dumps(request)) as folder:
        how = _run(folder, _environment(folder, is_hub_asked), _MAX_SECONDS * len(request))
        verdicts = _read_verdicts((folder / _VERDICTS).read_text(encoding="utf-8"))
        printed = (folder / _PRINTED).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if len(verdicts) < len(request):
        root = request[len(verdicts)][0].root
        _log.error("the look at samples of %s printed: %s", root, one_line(" / ".join(printed[-5:])))
        verdicts.append(Verdict(f"dataset {root}: the look at its samples {how}", lasts=False, warnings=()))
    return verdicts


def _read_verdicts(text: str) -> list[Verdict]:
    """Return those of whole lines: a process that dies, or has no room to write, leaves part of one."""
    return [read_verdict(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


@contextmanager
def _temporary_folder(scratch: Path, request: bytes) -> Iterator[Path]:
    """Yield a new folder in `scratch` that holds `request` and no verdicts yet; remove it at the end."""
    folder = None
    try:
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)  # decoded frames lie there
        for left in scratch.glob(f"{_PREFIX}*"):  # of processes that were killed, with whoever waited
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=scratch))
        (folder / _REQUEST).write_bytes(request)
        (folder / _VERDICTS).touch()
    except OSError as error:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise DatasetError(
            f"scratch {scratch}: cannot be written ({error.strerror}); make room there"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, environment: Mapping[str, str], seconds: float) -> str:
    """Run the process on `folder`; how it ended."""
    with (folder / _PRINTED).open("wb") as log:
        process = subprocess.Popen(
            [*_COMMAND, str(folder)],
            stdin=subprocess.PIPE,  # ends with this process, however that does
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:.0f} s; end other programs here, the next join tries it again"
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
    if code < 0:
        fix = "free some memory" if -code == signal.SIGKILL else "encode its videos anew with h264"
        return f"ended with {signal.Signals(-code).name}; {fix}"
    return f"ended with code {code}; the log here says more"


def _environment(folder: Path, is_hub_asked: bool) -> dict[str, str]:
    """Return the environment: this code first, an Arrow cache of its own, no Hub unless training uses it."""
    code = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    own = {"PYTHONPATH": f"{code}{os.pathsep}{path}" if path else code, "TOKENIZERS_PARALLELISM": "false"}
    if not is_hub_asked:
        own["HF_HUB_OFFLINE"] = "1"
    return os.environ | own | {"HF_DATASETS_CACHE": str(folder / "arrow")}


def main() -> int:
    """Judge the datasets of the request in the folder, the only argument."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_input, args=(folder,), daemon=True).start()
    _answer(folder)
    return 0


def _answer(folder: Path) -> None:
    from federation.judgement.sample_check import judge_samples_of

    request = pickle.loads((folder / _REQUEST).read_bytes())  # the parent's, from its private folder
    with (folder / _VERDICTS).open("a", encoding="utf-8") as file:
        for number, (use, description) in enumerate(request):
            verdict = judge_samples_of(use, description, folder / str(number))
            print(json.dumps(dataclasses.asdict(verdict)), file=file, flush=True)


def _end_with_input(folder: Path) -> None:
    """End this process, and leave nothing behind, once nobody waits for it any more."""
    with suppress(OSError):
        while os.read(sys.stdin.fileno(), 1):
            pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
