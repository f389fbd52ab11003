"""Evaluating a round, and what follows: a checkpoint, the way back to the best round, an early end."""

import math
import time

from federation.config import RunConfig
from federation.errors import FederationError
from federation.logs import get_logger
from server.aggregation.adaptation import is_spike
from server.evaluation.held_out import DivergedError, Evaluator
from server.evaluation.plateau import describe_plateau
from server.model import GlobalModel
from server.output.tracking import Tracking, evaluation_scalars
from server.resume import restore_best
from server.run.checkpoint_file import Checkpoint
from server.run.checkpoints import Checkpoints
from server.run.records import RunRecord
from server.run.round_record import RoundRecord

__all__ = [
    "RevertedError",
    "ended_before",
    "evaluate_and_save",
    "evaluate_before_training",
    "stop_after_reverts",
]

_MAX_REVERTS_IN_ROW = 3
_log = get_logger("server.round_evaluation")


class RevertedError(FederationError):
    """Round after round was reverted: the run gets no further as it is set up."""


def evaluate_before_training(
    evaluator: Evaluator,
    model: GlobalModel,
    checkpoints: Checkpoints,
    record: RunRecord,
    tracking: Tracking,
) -> None:
    """Record what the weights are worth as they are; theirs is checkpoint 0."""
    _log.info("evaluates the weights before training")
    evaluation = evaluator.evaluate(model.evaluated)
    record.evaluated(0, evaluation)
    tracking.log(0, evaluation_scalars(evaluation))
    _log.info("policy loss %.4f before training", evaluation["policy_loss"])
    checkpoints.save(0, model, evaluation["policy_loss"], entry=None)


def evaluate_and_save(
    entry: RoundRecord,
    evaluator: Evaluator,
    model: GlobalModel,
    checkpoints: Checkpoints,
    config: RunConfig,
    record: RunRecord,
) -> str:
    """Evaluate the round of `entry` and write its checkpoint, where either is due.

    Returns:
        Why the run ends with it before its last round; "" if it does not.
    """
    last, plateau = entry.round == config.run.num_rounds, ""
    policy_loss = None
    if last or entry.round % config.evaluation.eval_frequency == 0:
        policy_loss = _evaluate_round(evaluator, model, checkpoints, config, record, entry)
        if not last and entry.aggregated and (evaluated := entry.held_out_loss) is not None:
            plateau = describe_plateau([*record.held_out_losses, evaluated], config.evaluation)
    if checkpoints.due(entry.round, policy_loss, last=last or bool(plateau)):
        started = time.monotonic()
        checkpoints.save(entry.round, model, policy_loss, entry)
        entry.seconds["checkpoint"] = time.monotonic() - started
    return plateau


def _evaluate_round(
    evaluator: Evaluator,
    model: GlobalModel,
    checkpoints: Checkpoints,
    config: RunConfig,
    record: RunRecord,
    entry: RoundRecord,
) -> float | None:
    """Evaluate the round of `entry`, reverting it if the policy loss spiked; None: these weights are gone."""
    policy_loss = math.inf
    _log.info("evaluates the round")
    try:
        evaluation = evaluator.evaluate(model.evaluated)
    except DivergedError as error:
        _log.error("%s", error)
    else:
        policy_loss = evaluation["policy_loss"]
        record.evaluated(entry.round, evaluation)
        entry.evaluation = evaluation
        entry.seconds["evaluate"] = evaluation["seconds"]
    if is_spike(policy_loss, checkpoints.best_loss, config.evaluation.rollback_ratio):
        entry.reverted_to = restore_best(model, checkpoints, policy_loss)
        return None
    return policy_loss


def stop_after_reverts(record: RunRecord) -> None:
    """Raise `RevertedError` where the rounds only ever take the weights back."""
    if record.reverts_in_row >= _MAX_REVERTS_IN_ROW:
        raise RevertedError(
            f"{record.reverts_in_row} evaluations in a row took the weights back to the best round: training "
            "diverges; resume the run with a lower training.learning_rate, or, where the losses were finite, "
            "a higher evaluation.rollback_ratio (0: only NaN or infinity takes the weights back)"
        )


def ended_before(checkpoint: Checkpoint | None, config: RunConfig, record: RunRecord) -> str:
    """Return why the run had ended early before it was resumed; "" if it had not, or is to go on."""
    if checkpoint is None or checkpoint.entry is None or checkpoint.entry.evaluation is None:
        return ""
    is_last = checkpoint.round == config.run.num_rounds
    return "" if is_last else describe_plateau(record.held_out_losses, config.evaluation)
