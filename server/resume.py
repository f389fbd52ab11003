"""The state that a run goes on from: a new model, a checkpoint, or after a spike the best round's."""

from collections.abc import Mapping

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from federation.config import RunConfig
from federation.data.normalisation import choose_normalisation
from federation.errors import ConfigError
from federation.logs import get_logger
from federation.policy.build import frozen_fingerprint, trainable_parameters
from server.aggregation.collector import make_server_optimizer
from server.evaluation.held_out import Evaluator
from server.join_answer import Node
from server.model import GlobalModel
from server.run.checkpoint_file import Checkpoint, load_checkpoint, restore_model
from server.run.checkpoints import Checkpoints
from server.run.records import RunRecord

__all__ = ["begin_or_resume", "evaluate_best_anew", "restore_best"]

_log = get_logger("server.resume")


def begin_or_resume(
    policy: SmolVLAPolicy,
    online: Mapping[int, Node],
    checkpoints: Checkpoints,
    config: RunConfig,
    record: RunRecord,
) -> tuple[GlobalModel, Checkpoint | None]:
    """Return the model to go on with, and the checkpoint it is from; None if not even round 0 is complete.

    Raises:
        ConfigError: the run is to have fewer rounds than are complete.
    """
    checkpoint = checkpoints.newest() if config.run.resume else None
    weights = {name: p.detach().cpu().clone() for name, p in trainable_parameters(policy).items()}
    model = GlobalModel(
        weights=weights,
        # Those of the nodes that began the run: one normalisation from its first round to its last.
        statistics=checkpoint.statistics
        if checkpoint
        else choose_normalisation(config.policy, [node.statistics for node in online.values()]),
        fingerprint=frozen_fingerprint(policy),
        optimizer=make_server_optimizer(config.aggregation, weights),
        average={n: w.clone() for n, w in weights.items()} if config.evaluation.ema_decay else None,
    )
    if checkpoint is None:
        if config.run.resume:
            record.resume_after(None, None)
        return model, None
    if config.run.num_rounds < checkpoint.round:
        raise ConfigError(
            f"run.num_rounds = {config.run.num_rounds}: the run has {checkpoint.round} rounds behind it; "
            "resume it with as many or more, or go back with make rollback first"
        )
    restore_model(model, checkpoint)
    record.resume_after(checkpoint.round, checkpoint.entry)
    _log.info("resumed after round %d", checkpoint.round)
    return model, checkpoint


def restore_best(model: GlobalModel, checkpoints: Checkpoints, policy_loss: float) -> int:
    """Put `model`, whose loss spiked, into the state of the best round; return that round."""
    best = load_checkpoint(checkpoints.best)
    restore_model(model, best)
    _log.warning(
        "policy loss %.4f, after %.4f in round %d: the weights go back to that round",
        policy_loss,
        checkpoints.best_loss,
        best.round,
    )
    return best.round


def evaluate_best_anew(
    policy: SmolVLAPolicy, evaluator: Evaluator, checkpoints: Checkpoints, record: RunRecord
) -> None:
    """Give a resumed run figures that those to come can be compared with.

    Its held-out data, or how they are evaluated, are others than before: a new round measured against the
    best loss of old would be reverted for nothing, or kept for nothing.
    """
    _log.warning(
        "the held-out data or evaluation.* have changed: the weights before training and the best are "
        "evaluated anew, earlier figures leave the record"
    )
    # Nothing was loaded into the policy yet: it is as it was built, from the run's own seed.
    initial = {name: p.detach().cpu().clone() for name, p in trainable_parameters(policy).items()}
    best = load_checkpoint(checkpoints.best)
    baseline = evaluator.evaluate(initial)
    evaluation = evaluator.evaluate(best.average or best.weights)
    changed = "the held-out data or evaluation.* have changed"
    record.evaluated_anew(baseline, best.round, evaluation, changed=changed)
    checkpoints.measured_anew(best, evaluation["policy_loss"])
    _log.info(
        "policy loss %.4f before training, %.4f after the best round, %d",
        baseline["policy_loss"],
        evaluation["policy_loss"],
        best.round,
    )
