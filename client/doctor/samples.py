"""The doctor's look at samples of a dataset, taken exactly as training takes them. The join judges so too."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from client.doctor.check import Check
from federation.data.description import DatasetDescription
from federation.judgement.judge import DatasetUse, judge_samples
from federation.settings import PolicyConfig

__all__ = ["check_samples"]


def check_samples(
    described: Mapping[Path, DatasetDescription],
    cameras: Sequence[str],
    scratch: Path | None = None,
) -> list[Check]:
    """Look at samples of datasets that `check_dataset` found no error in; seconds, most of them imports.

    The doctor knows no run: the policy is SmolVLA at full size, which needs no download.

    Args:
        described: what `check_dataset` returned for each dataset.
        cameras: as for `check_dataset`.
        scratch: for what is removed at the end; a temporary folder of the system if None.
    """
    policy = PolicyConfig(size="smolvla", cameras=",".join(cameras), empty_cameras=len(cameras) - 1)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        uses = [DatasetUse(root, policy, Path(folder)) for root in described]
        verdicts = judge_samples(uses, list(described.values()))
    checks = []
    for root, verdict in zip(described, verdicts, strict=True):
        checks += [Check("warning", "samples", warning) for warning in verdict.warnings]
        if verdict.error:
            checks.append(Check("error", "samples", verdict.error))
        elif not verdict.warnings:
            text = "those at the ends of each camera's files open, decode and collate as in training"
            checks.append(Check("ok", "samples", f"{root.name}: {text}"))
    return checks
