"""What becomes of the policy while and after a run: exported folders, closed-loop evaluation, the Hub.

Nothing that goes wrong between the rounds ends a run; what can be known to go wrong is reported before it.
A policy that cannot be exported after the last round does: it is the run's result, and a resume exports it.
"""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from federation.config import RunConfig
from federation.errors import one_line
from federation.logs import get_logger
from server.evaluation.worker import Simulations, require_simulator
from server.model import GlobalModel
from server.output.export import export_best, export_last, export_policy, write_cards
from server.output.hub import Hub
from server.run.checkpoint_file import CheckpointError
from server.run.checkpoints import Checkpoints
from server.run.recorded import read_metrics
from server.run.records import RunRecord

__all__ = ["AfterRound"]

_log = get_logger("server.output.after_round")


class AfterRound:
    """Used as a context: leaving it ends the evaluations that still run, as when the run fails.

    Raises:
        ConfigError: the simulator or the Hub is asked for and cannot be used.
    """

    def __init__(self, policy: SmolVLAPolicy, config: RunConfig, record: RunRecord) -> None:
        self._policy, self._config, self._record = policy, config, record
        if config.evaluation.sim_frequency:
            require_simulator(config.evaluation.sim_variants)
        self._simulations = Simulations(record.folder, config.evaluation, record.simulated)
        self._hub = Hub(config.hub, record.name) if config.hub.repo else None
        self._to_push = record.folder / "to_push"
        shutil.rmtree(self._to_push, ignore_errors=True)  # of a server that was killed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._simulations.stop()
        if self._hub is not None:
            self._hub.close()

    def start(self, round_: int, model: GlobalModel) -> None:
        """Start what is due after `round_`, 0 being before training, and record what has ended.

        What is due after the last round is `finish`'s.
        """
        last = round_ == self._config.run.num_rounds
        if not last and self._simulations.due(round_):
            self._simulations.start(round_, lambda folder: self._export(folder, model, round_))
        if self._hub is not None and not last and round_ and self._hub.due(round_):
            self._hub.drop_waiting()
            folder = self._to_push / f"round_{round_}"
            try:
                folder.parent.mkdir(exist_ok=True)
                self._export(folder, model, round_)
            except Exception as error:  # of the disk, of safetensors, of LeRobot: the run goes on
                _log.error("round %d does not go to the Hub: export failed: %s", round_, one_line(error))
            else:
                self._hub.push(folder, round_, remove=True)
        self._collect()

    def finish(self, model: GlobalModel, checkpoints: Checkpoints, last: int) -> None:
        """Export the best policy and that of `last`, the last round; evaluate the last, push it.

        The export comes first, because an evaluation may take an hour in which the server can die. A run
        that is resumed after its last round comes here too, and evaluates what it has not yet.
        """
        folder = self._record.folder
        try:
            best = export_best(folder, self._policy, checkpoints, read_metrics(folder))
            _log.info("pretrained_model is round %d, pretrained_model_best round %d", last, best)
        except CheckpointError as error:
            _log.error("no pretrained_model_best: %s", error)
            best = None
        export_last(folder, self._policy, model, read_metrics(folder), last)
        if self._simulations.due(last, last=True) and not self._record.is_simulated(last):
            self._simulations.start(last, lambda folder: self._export(folder, model, last))
        self._simulations.wait()
        # What was exported before the last evaluations quotes these too.
        write_cards(folder, read_metrics(folder), last, best)
        if self._hub is not None:
            self._hub.push(folder / "pretrained_model", last)
            self._hub.close()
        self._collect()

    def _export(self, folder: Path, model: GlobalModel, round_: int) -> None:
        export_policy(folder, self._policy, model, read_metrics(self._record.folder), round_)

    def _collect(self) -> None:
        self._simulations.collect()
        if self._hub is not None:
            for report in self._hub.reports():
                self._record.event(**report)
