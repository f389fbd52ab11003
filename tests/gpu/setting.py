"""What the parts of the check share: the device, the sizes, and a folder with all that they work on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from federation.config import RunConfig, parse_run_config

if TYPE_CHECKING:
    from tests.benchmarks.step_time import Bench

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """One check; once prepared, `folder` has data/{site-a,site-b,holdout}, base (a policy) and certs."""

    device: Literal["cuda", "cpu"]
    size: Literal["full", "tiny"]
    folder: Path
    workers: int  # data loading processes

    @property
    def is_full(self) -> bool:
        """Whether the 450 M values are trained."""
        return self.size == "full"

    def config(self, **changes: Any) -> RunConfig:
        """Return a run that fine-tunes the prepared policy; `changes` as `training__batch_size=16`."""
        settings = {
            "policy.size": "pretrained",
            "policy.pretrained": str(self.folder / "base"),
            "training.warmup_steps": 0,
            "training.num_workers": self.workers,
            "training.proximal_mu": 0.001,
        }
        return parse_run_config(
            settings | {key.replace("__", "."): value for key, value in changes.items()}, "the check"
        )

    def bench(self, part: str, config: RunConfig, pairs: int = 1) -> "Bench":
        """Return what `tests.benchmarks.step_time` measures on, with a cache of samples for each part."""
        import torch

        from tests.benchmarks.step_time import Bench

        data, scratch = self.folder / "data" / "site-a", self.folder / f"scratch-{part}"
        return Bench(config, data, torch.device(self.device), scratch, pairs)

    def report(self, part: str, what: str, figures: Mapping[str, Any]) -> None:
        """Print the figures of one row and keep them, whatever becomes of the rest of the part."""
        row = {"what": what, **figures}
        print(part, json.dumps(row), flush=True)
        with self.rows(part).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, part: str) -> Path:
        """Return the file that the rows of `part` are kept in."""
        return self.folder / f"{part}.jsonl"
