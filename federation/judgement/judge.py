"""The one judgement of a dataset: what it lets through is trained on without a surprise.

`client/app.py` (join), `client/round.py`, `client/doctor/samples.py` (doctor), `server/deploy/demo.py` and
`server/app.py` (held-out data) call it. Tables and packets are read here, in every call. Samples are taken as
training takes them, in a process of its own (`judgement/sample_process.py`), once for each state of the files
and each policy; the verdict stays on scratch. No torch here: a join comes to a fresh process each time.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from federation.data.cameras import CameraChoice
from federation.data.description import DatasetDescription, check_fits, describe_dataset
from federation.errors import one_line
from federation.files import fingerprint, write_json
from federation.judgement.sample_process import DatasetUse, Verdict, look_at_samples, read_verdict
from federation.logs import get_logger
from federation.settings import PolicyConfig
from federation.versions import versions

__all__ = ["DatasetUse", "describe_fitting", "judge_dataset", "judge_datasets", "judge_samples"]

_FOLDER = "judged"  # on scratch
_MAX_KEPT = 20  # verdicts on a scratch
_log = get_logger("federation.judgement.judge")


def judge_dataset(use: DatasetUse) -> DatasetDescription:
    """Describe a dataset that can be trained on; see `judge_datasets`."""
    return judge_datasets([use])[0]


def judge_datasets(
    uses: Sequence[DatasetUse], descriptions: Sequence[DatasetDescription] | None = None
) -> list[DatasetDescription]:
    """Describe datasets that can all be trained on.

    Args:
        descriptions: what `describe_fitting` returned for `uses`; None to read the files here.

    Raises:
        DatasetError: of the first that cannot.
    """
    if descriptions is None:
        descriptions = [describe_fitting(use.root, use.policy, use.names) for use in uses]
    found = [verdict.check() for verdict in judge_samples(uses, descriptions)]
    return [
        dataclasses.replace(description, warnings=(*description.warnings, *warnings))
        for description, warnings in zip(descriptions, found, strict=True)
    ]


def describe_fitting(
    root: Path, policy: PolicyConfig, names: Mapping[str, str] | None = None
) -> DatasetDescription:
    """Describe a dataset whose tables and videos fit the policy; its samples are not looked at.

    Args:
        names: what its site calls the policy's cameras.

    Raises:
        DatasetError: they do not fit, or cannot be read.
    """
    choice = CameraChoice(policy.camera_names, names or {}, policy.empty_cameras)
    description = describe_dataset(root, choice)
    check_fits(description, policy, str(root))
    return description


def judge_samples(uses: Sequence[DatasetUse], descriptions: Sequence[DatasetDescription]) -> list[Verdict]:
    """Return a verdict on the samples of each dataset: the one that was kept, or a new one.

    Args:
        descriptions: of `uses`, with the cameras that the policy uses.
    """
    files = [_verdict_file(*both) for both in zip(uses, descriptions, strict=True)]
    verdicts = {i: kept for i, file in enumerate(files) if (kept := _load(file)) is not None}
    while new := [i for i in range(len(uses)) if i not in verdicts]:
        request = [(uses[i], descriptions[i]) for i in new]
        for i, verdict in zip(new, look_at_samples(request, uses[new[0]].scratch), strict=False):
            verdicts[i] = verdict
            if verdict.lasts:
                _keep(files[i], verdict)
    return [verdicts[i] for i in range(len(uses))]


def _verdict_file(use: DatasetUse, description: DatasetDescription) -> Path:
    """Named after all that the verdict depends on, this code included."""
    facts = [
        fingerprint(use.root),
        dataclasses.asdict(use.policy),
        dict(description.used_cameras),
        description.usable_episodes,
        versions(),
    ]
    key = hashlib.sha256(json.dumps([str(use.root.resolve()), *facts], sort_keys=True).encode()).hexdigest()[
        :16
    ]
    return use.scratch / _FOLDER / f"{key}.json"


def _load(file: Path) -> Verdict | None:
    try:
        return read_verdict(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep(file: Path, verdict: Verdict) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dataclasses.asdict(verdict))
        others = sorted(file.parent.glob("*.json"), key=lambda other: other.stat().st_mtime)
        for other in others[:-_MAX_KEPT]:
            other.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("the verdict on the samples is not kept, they are looked at again: %s", one_line(error))
