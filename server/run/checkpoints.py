"""The checkpoints of a run: `checkpoints/round_0007.safetensors`, ..., and `best.safetensors`."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from federation.files import link_or_copy, remove_unfinished, write_atomically
from federation.logs import get_logger
from federation.settings import CheckpointConfig
from server.model import GlobalModel
from server.run.checkpoint_file import (
    ROUND_PREFIX,
    Checkpoint,
    CheckpointError,
    checkpoint_contents,
    load_checkpoint,
    round_of,
)
from server.run.round_record import RoundRecord

__all__ = ["Checkpoints", "checkpoint_path", "set_checkpoints_back"]

_log = get_logger("server.run.checkpoints")


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, every `keep_every`th, and the one of lowest policy loss.

    Args:
        folder: made if it is not there.
        config: the run's whole configuration, flat; it goes into each file.
        measured_on: digest of what policy losses are measured on from now on
        (`server.evaluation.held_out.measure`).
    """

    def __init__(
        self, folder: Path, settings: CheckpointConfig, config: Mapping[str, Any], measured_on: str
    ) -> None:
        self._folder, self._settings, self._config = folder, settings, dict(config)
        self._measured_on = measured_on
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        self._note_best(self._find_best())

    def _note_best(self, best: Checkpoint | None) -> None:
        self._best_round = best.round if best else -1
        self._best_measured_on = best.measured_on if best else self._measured_on
        # The lowest evaluated policy loss so far.
        self.best_loss = math.inf if best is None or best.policy_loss is None else best.policy_loss
        # False: it was measured on something else, or not at all.
        self.best_is_comparable = best is None or (
            best.policy_loss is not None and best.measured_on == self._measured_on
        )

    def _find_best(self) -> Checkpoint | None:
        """Return the best checkpoint; replace a damaged or missing one by the best of the others."""
        try:
            return load_checkpoint(self.best)
        except CheckpointError as error:
            if not self.best.exists() and not _round_files(self._folder):
                return None
            _log.error("%s; the best of the other checkpoints takes its place", error)
        _replace_best(self.best, _round_files(self._folder))
        return _whole(self.best) if self.best.exists() else None

    @property
    def best(self) -> Path:
        """Return the checkpoint with the lowest evaluated policy loss."""
        return self._folder / "best.safetensors"

    def due(self, round_: int, policy_loss: float | None, *, last: bool = False) -> bool:
        """Return whether to save after `round_`: every `frequency` rounds, the last, and the best so far."""
        return last or round_ % self._settings.frequency == 0 or self._is_best(policy_loss)

    def save(
        self, round_: int, model: GlobalModel, policy_loss: float | None, entry: RoundRecord | None
    ) -> Path:
        """Save round `round_` atomically; then remove what is no longer kept.

        Args:
            policy_loss: of the evaluation after this round, None if there was none.
            entry: the round's entry in the record, None for round 0.

        Raises:
            CheckpointError: the file cannot be written, as on a full disk. All earlier ones are still there.
        """
        path = checkpoint_path(self._folder, round_)
        optimizer = {} if model.optimizer is None else model.optimizer.state_dict()["state"]
        checkpoint = Checkpoint(
            round=round_,
            weights=model.weights,
            average=model.average,
            optimizer={
                f"{index}/{key}": value
                for index, state in optimizer.items()
                for key, value in state.items()
                if value is not None
            },
            statistics=model.statistics,
            fingerprint=model.fingerprint,
            norms=list(model.norms),
            policy_loss=policy_loss,
            measured_on=self._measured_on,
            entry=entry,
            config=self._config,
        )
        self._write(path, checkpoint)
        if self._is_best(policy_loss):
            with self._full_disk(self.best, round_):
                write_atomically(self.best, lambda staging: link_or_copy(path, staging))
            self._note_best(checkpoint)
        self._remove_old()
        return path

    def measured_anew(self, best: Checkpoint, policy_loss: float) -> None:
        """Let `best` be the best checkpoint by the `policy_loss` that today's evaluation gives it.

        Raises:
            CheckpointError: the file cannot be written, as on a full disk.
        """
        measured = replace(best, policy_loss=policy_loss, measured_on=self._measured_on)
        self._write(self.best, measured)
        self._note_best(measured)

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None if there is none yet; log a damaged one and skip it.

        The best one becomes the best of those up to it.

        Raises:
            CheckpointError: there are some and not one is whole.
        """
        paths = _round_files(self._folder)
        for path in reversed(paths):
            try:
                checkpoint = load_checkpoint(path)
            except CheckpointError as error:
                _log.error("%s; the one before it is taken", error)
            else:
                self._correct_best(checkpoint)
                return checkpoint
        if paths:
            raise CheckpointError(f"{self._folder}: none of {len(paths)} checkpoints is whole")
        return None

    def _correct_best(self, newest: Checkpoint) -> None:
        """Replace a best one that is not the best up to `newest`, from which the run goes on.

        A server killed between the two files of a round leaves an older best; one whose round file is damaged
        leaves a newer one, of a round that is done again.
        """
        is_missed = self._is_best(newest.policy_loss) and newest.measured_on == self._best_measured_on
        if is_missed or self._best_round > newest.round:
            kept = [path for path in _round_files(self._folder) if round_of(path) <= newest.round]
            _replace_best(self.best, kept)
            self._note_best(_whole(self.best))

    def _write(self, path: Path, checkpoint: Checkpoint) -> None:
        tensors, metadata = checkpoint_contents(checkpoint)
        with self._full_disk(path, checkpoint.round):
            write_atomically(path, lambda staging: save_file(tensors, staging, metadata))

    @contextmanager
    def _full_disk(self, path: Path, round_: int) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            free = shutil.disk_usage(self._folder).free / 1e6
            raise CheckpointError(
                f"{path} cannot be written ({error}; {free:.0f} MB are free): round {round_} is not saved, "
                "earlier ones are; make room and resume the run"
            ) from None

    def _is_best(self, policy_loss: float | None) -> bool:
        return policy_loss is not None and policy_loss < self.best_loss

    def _remove_old(self) -> None:
        every = self._settings.keep_every
        for path in _round_files(self._folder)[: -self._settings.keep]:
            round_ = round_of(path)
            if not every or round_ == 0 or round_ % every:
                path.unlink()


def set_checkpoints_back(folder: Path, round_: int) -> None:
    """Make the checkpoint of `round_` the newest: later ones are moved to `folder/set_aside`.

    Raises:
        CheckpointError: there is no checkpoint of `round_`, or it is damaged.
    """
    kept = [path for path in _round_files(folder) if round_of(path) <= round_]
    if not kept or round_of(kept[-1]) != round_:
        known = ", ".join(str(round_of(path)) for path in _round_files(folder)) or "none"
        raise CheckpointError(f"{folder}: no checkpoint of round {round_}; there are those of rounds {known}")
    load_checkpoint(kept[-1])
    aside = folder / "set_aside"
    aside.mkdir(exist_ok=True)
    for path in _round_files(folder):
        if round_of(path) > round_:
            path.replace(aside / path.name)
    best = folder / "best.safetensors"
    if best.exists() and ((found := _whole(best)) is None or found.round > round_):
        best.replace(aside / best.name)
        _replace_best(best, kept)


def _replace_best(best: Path, paths: Sequence[Path]) -> None:
    """Give the checkpoint of lowest policy loss of `paths`, in order of their rounds, the name `best`.

    Only losses that were measured on what the newest was measured on count. Without any it is the newest
    checkpoint, without a loss.
    """
    found: list[tuple[float, str, Path]] = []
    for path in reversed(paths):
        if (checkpoint := _whole(path)) is not None:
            loss = math.inf if checkpoint.policy_loss is None else checkpoint.policy_loss
            found.append((loss, checkpoint.measured_on, path))
    if not found:
        best.unlink(missing_ok=True)
        return
    evaluated = [(loss, measured_on, path) for loss, measured_on, path in found if loss < math.inf]
    comparable = [(loss, path) for loss, measured_on, path in evaluated if measured_on == evaluated[0][1]]
    source = min(comparable)[1] if comparable else found[0][2]
    write_atomically(best, lambda staging: link_or_copy(source, staging))


def _whole(path: Path) -> Checkpoint | None:
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        _log.warning("%s; it is passed over", error)
        return None


def checkpoint_path(folder: Path, round_: int) -> Path:
    """Return the file in `folder` of the checkpoint after `round_`."""
    return folder / f"{ROUND_PREFIX}{round_:04d}.safetensors"


def _round_files(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` in order of their rounds."""
    return sorted(folder.glob(f"{ROUND_PREFIX}*.safetensors"), key=round_of)
