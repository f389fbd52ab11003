"""The held-out datasets of a run: found, and checked before its first round."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from federation.config import RunConfig
from federation.data.description import DatasetDescription, find_datasets
from federation.data.simulated import check_one_kind
from federation.judgement.judge import DatasetUse, describe_fitting
from federation.logs import get_logger
from server.run.environment import folder_of

__all__ = ["check_samples", "find_evaluation_datasets"]

_log = get_logger("server.evaluation.datasets")


def find_evaluation_datasets(config: RunConfig) -> tuple[dict[str, Path], dict[str, DatasetDescription]]:
    """Return the folder and the description of each dataset in `FEDERATION_EVALUATION`."""
    datasets = find_datasets(folder_of("FEDERATION_EVALUATION"))
    descriptions = {name: describe_fitting(root, config.policy) for name, root in datasets.items()}
    check_one_kind({}, {name: description.simulated for name, description in descriptions.items()})
    return datasets, descriptions


def check_samples(
    config: RunConfig, datasets: Mapping[str, Path], descriptions: Mapping[str, DatasetDescription]
) -> None:
    """Check samples of the held-out datasets, in this process, which has torch anyway."""
    from federation.judgement.sample_check import judge_samples_of

    scratch = folder_of("FEDERATION_SCRATCH")
    scratch.mkdir(parents=True, exist_ok=True)  # of a pretrained policy nothing has been kept there yet
    for name, root in datasets.items():
        with TemporaryDirectory(dir=scratch) as folder:
            use = DatasetUse(root, config.policy, scratch)
            for warning in judge_samples_of(use, descriptions[name], Path(folder)).check():
                _log.warning("%s", warning)
