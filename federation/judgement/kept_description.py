"""The description of a dataset, kept on scratch for as long as its files stay as they are.

Each train message needs it, and comes to a process of its own. To read all tables, to look for faults and to
sort each joint's values takes seconds with many frames; to see that no file has changed takes none.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from federation.data.cameras import CameraChoice
from federation.data.description import DatasetDescription, describe_dataset
from federation.data.joint_units import JointUnits
from federation.files import fingerprint
from federation.kept import keep, kept_file, load_kept
from federation.versions import versions

__all__ = ["kept_description"]

_FOLDER = "described"  # on scratch


def kept_description(root: Path, cameras: CameraChoice, scratch: Path) -> DatasetDescription:
    """Return `describe_dataset(root, cameras)`, from `scratch` if no file in `root` has changed since.

    Raises:
        DatasetError: the dataset cannot be trained on. Nothing is kept of it.
    """
    choice = [list(cameras.wanted), dict(cameras.names or {}), cameras.may_lack]
    try:
        if not (root / "meta").is_dir():
            return describe_dataset(root, cameras)  # it says what is wrong
        facts = [str(root.resolve()), fingerprint(root), choice, versions()]
    except OSError:  # a folder or file that may not be read: the description says which
        return describe_dataset(root, cameras)
    file = kept_file(scratch / _FOLDER, *facts)
    description = load_kept(file, _from_json)
    if description is None:
        description = describe_dataset(root, cameras)
        keep(file, _to_json(description))
    return description


def _to_json(description: DatasetDescription) -> dict[str, Any]:
    statistics = {
        feature: {name: values.tolist() for name, values in named.items()}
        for feature, named in description.statistics.items()
    }
    return dataclasses.asdict(description) | {"statistics": statistics}


def _from_json(content: Mapping[str, Any]) -> DatasetDescription:
    statistics = {
        feature: {name: np.array(values, np.float64) for name, values in named.items()}
        for feature, named in content["statistics"].items()
    }
    units = content["joint_units"]
    changed = {
        "statistics": statistics,
        "left_out": {int(episode): why for episode, why in content["left_out"].items()},
        "joint_units": JointUnits(tuple(units["possible"]), units["reason"]),
        "cameras": tuple(content["cameras"]),
        "warnings": tuple(content["warnings"]),
    }
    return DatasetDescription(**{**content, **changed})
