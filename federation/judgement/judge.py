"""The one judgement of a dataset: what it lets through is trained on without a surprise.

`client/recordings/held.py` (join and rounds), `client/doctor/samples.py` (doctor), `server/deploy/demo.py`
and `server/evaluation/datasets.py` (held-out data) call it. Tables and packets are read here. Samples are
taken as training does, in a process of its own (`judgement/sample_process.py`). Both happen once for each
state of the files and each policy: description and verdict stay on scratch. No torch here: a join may come to
a fresh process.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from federation.data.cameras import CameraChoice
from federation.data.description import DatasetDescription, check_fits, describe_dataset
from federation.errors import DatasetError
from federation.files import fingerprint
from federation.judgement.kept_description import kept_description
from federation.judgement.sample_process import DatasetUse, Verdict, look_at_samples, read_verdict
from federation.kept import keep, kept_file, load_kept
from federation.settings import PolicyConfig
from federation.versions import versions

__all__ = ["DatasetUse", "describe_fitting", "judge_datasets", "judge_each", "judge_samples"]

_FOLDER = "judged"  # on scratch


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
        descriptions = [_describe_once(use) for use in uses]
    verdicts = judge_samples(uses, descriptions)
    return [_with_verdict(*both) for both in zip(descriptions, verdicts, strict=True)]


def judge_each(uses: Sequence[DatasetUse]) -> list[DatasetDescription | DatasetError]:
    """Describe each dataset that can be trained on; say of each other one why it cannot."""
    found: list[DatasetDescription | DatasetError] = []
    for use in uses:
        try:
            found.append(_describe_once(use))
        except DatasetError as error:
            found.append(error)
    described = {i: each for i, each in enumerate(found) if isinstance(each, DatasetDescription)}
    verdicts = judge_samples([uses[i] for i in described], list(described.values()))
    for (i, description), verdict in zip(described.items(), verdicts, strict=True):
        try:
            found[i] = _with_verdict(description, verdict)
        except DatasetError as error:
            found[i] = error
    return found


def describe_fitting(
    root: Path, policy: PolicyConfig, names: Mapping[str, str] | None = None
) -> DatasetDescription:
    """Describe a dataset whose tables and videos fit the policy; its samples are not looked at.

    Args:
        names: what its site calls the policy's cameras; None: it is no site's.

    Raises:
        DatasetError: they do not fit, or cannot be read.
    """
    description = describe_dataset(root, CameraChoice(policy.camera_names, names, policy.empty_cameras))
    check_fits(description, policy, str(root))
    return description


def _with_verdict(description: DatasetDescription, verdict: Verdict) -> DatasetDescription:
    return dataclasses.replace(description, warnings=(*description.warnings, *verdict.check()))


def _describe_once(use: DatasetUse) -> DatasetDescription:
    choice = CameraChoice(use.policy.camera_names, use.names, use.policy.empty_cameras)
    description = kept_description(use.root, choice, use.scratch)
    check_fits(description, use.policy, str(use.root))
    return description


def judge_samples(uses: Sequence[DatasetUse], descriptions: Sequence[DatasetDescription]) -> list[Verdict]:
    """Return a verdict on the samples of each dataset: the one that was kept, or a new one.

    Args:
        descriptions: of `uses`, with the cameras that the policy uses.
    """
    files = [_verdict_file(*both) for both in zip(uses, descriptions, strict=True)]
    verdicts = {
        i: kept for i, file in enumerate(files) if (kept := load_kept(file, read_verdict)) is not None
    }
    while new := [i for i in range(len(uses)) if i not in verdicts]:
        request = [(uses[i], descriptions[i]) for i in new]
        for i, verdict in zip(new, look_at_samples(request, uses[new[0]].scratch), strict=False):
            verdicts[i] = verdict
            if verdict.lasts:
                keep(files[i], dataclasses.asdict(verdict))
    return [verdicts[i] for i in range(len(uses))]


def _verdict_file(use: DatasetUse, description: DatasetDescription) -> Path:
    """Named after all that the verdict depends on, this code included."""
    return kept_file(
        use.scratch / _FOLDER,
        str(use.root.resolve()),
        fingerprint(use.root),
        dataclasses.asdict(use.policy),
        dict(description.used_cameras),
        description.usable_episodes,
        versions(),
    )
