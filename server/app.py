"""The ServerApp: the table of contents of a run.

Flower's SuperExec starts this in a process of its own for each run. What belongs to the machine comes from
its environment: `FEDERATION_OUTPUTS` (where runs are recorded), `FEDERATION_EVALUATION` (held-out datasets),
`FEDERATION_SCRATCH` (caches), `FEDERATION_INSTALLATION` (where closed-loop evaluation is installed).
"""

import gc
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federation import logs
from federation.config import RunConfig, flatten, parse_run_config
from federation.data.description import DatasetDescription
from federation.errors import FederationError, one_line
from federation.policy.earlier_run import earlier_run
from federation.privacy_budget import NOT_COVERED
from server.delivery import FormerPolicy, deliver_only, deliver_quietly
from server.evaluation.datasets import check_samples, find_evaluation_datasets
from server.join_answer import Node
from server.nodes import NodeTable
from server.output.tracking import Tracking, round_scalars
from server.run.accountant import format_max_epsilon, privacy_spent
from server.run.base import locate_base
from server.run.environment import folder_of
from server.run.records import RunRecord, new_run_name
from server.run.round_record import RoundRecord
from server.sampling import sample_nodes

if TYPE_CHECKING:
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    from server.model import GlobalModel

app = ServerApp()
_log = logs.get_logger("server.app")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federated fine-tuning, or what is left of one, from its configuration to its report."""
    config = parse_run_config(context.run_config, "the run configuration")
    name, outputs = config.run.name or new_run_name("run"), folder_of("FEDERATION_OUTPUTS")
    if config.run.deliver == "only":
        logs.bind_context(run=name, node="server", round_=0)
        deliver_only(grid, outputs / name)
        return
    record = RunRecord(outputs, name, config, str(context.run_id))
    logs.configure(record.folder / "server.log")
    logs.bind_context(run=record.name, node="server", round_=0)
    if not config.run.resume:
        record.event("run_started", run=record.name, num_rounds=config.run.num_rounds)
    tracking = None
    try:
        tracking = Tracking(record.folder, config)
        with ExitStack() as endings:
            ended_early = _run(grid, config, record, tracking, endings)
        if config.run.deliver == "end":  # before the run counts as finished: then its SuperLink may go
            deliver_quietly(grid, record.folder)
    except BaseException as error:
        reason = str(error) if isinstance(error, FederationError) else repr(error)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            reason = "the ServerApp was told to stop"
        _log.error("the run failed: %s", reason)
        _end(record, "failed", reason)
        raise
    finally:
        if tracking is not None:
            tracking.close()
    _end(record, "finished", ended_early)


def _end(record: RunRecord, status: str, reason: str = "") -> None:
    """Record the end, and draw the report. What fails in it must not hide why the run failed.

    Raises:
        Exception: that the run has finished cannot be recorded, as on a full disk.
    """
    try:
        record.close(status, reason)
    except Exception as error:  # a full disk, or a figure that JSON cannot hold
        _log.error("the end of the run cannot be recorded: %s", error)
        if status == "finished":
            raise
        return
    try:
        from server.output.report.report import write_report

        write_report(record.folder)
    except Exception as error:  # of the disk, of matplotlib, of our own: the run has ended all the same
        command = f"make report RUN={record.name}"
        _log.exception("the report is not written, %s writes it again: %s", command, one_line(error))
    try:
        record.write_final_event()
    except OSError as error:
        _log.error("the last event cannot be written: %s", error)


def _run(grid: Grid, config: RunConfig, record: RunRecord, tracking: Tracking, endings: ExitStack) -> str:
    """Prepare the run, while the nodes join, then do its rounds; return why it ended early, "" if not."""
    if config.privacy.mode != "none":
        _log.info("differential privacy by %s noise. %s", config.privacy.mode, NOT_COVERED)
    local = locate_base(config, record.folder.parent)
    datasets, descriptions = find_evaluation_datasets(local)
    held_out = {name: description.simulated for name, description in descriptions.items()}
    nodes = NodeTable(grid, local, record, held_out)
    policy, online = _build_while_nodes_join(local, nodes, datasets, descriptions)

    from server import round_evaluation
    from server.evaluation.held_out import Evaluator, measure
    from server.output.after_round import AfterRound
    from server.output.predictions import note_predictions
    from server.resume import begin_or_resume, evaluate_best_anew
    from server.run.checkpoints import Checkpoints

    after_round = endings.enter_context(AfterRound(policy, config, record))
    measured_on = measure(datasets, descriptions, config.evaluation)
    checkpoints = Checkpoints(record.folder / "checkpoints", config.checkpoint, flatten(config), measured_on)
    model, checkpoint = begin_or_resume(policy, online, checkpoints, local, record)
    evaluator = Evaluator(policy, model.statistics, datasets, config.evaluation, descriptions, measured_on)
    if checkpoint is not None and not checkpoints.best_is_comparable:
        evaluate_best_anew(policy, evaluator, checkpoints, record)
    round_evaluation.stop_after_reverts(record)
    if checkpoint is None:
        round_evaluation.evaluate_before_training(evaluator, model, checkpoints, record, tracking)
        after_round.start(0, model)

    former = FormerPolicy(grid, record.folder if _brings_former(config) else None, nodes.late)
    gc.collect()
    gc.freeze()  # torch's million objects stay anyway; without them the collection after each reply is quick
    done = checkpoint.round if checkpoint else 0
    ended_early = round_evaluation.ended_before(checkpoint, config, record)
    while done < config.run.num_rounds and not ended_early:
        former.deliver(nodes.joined())
        entry = _train_round(grid, nodes, model, done + 1, config, record)
        ended_early = round_evaluation.evaluate_and_save(entry, evaluator, model, checkpoints, config, record)
        record.round_finished(entry)
        done = entry.round
        tracking.log(done, round_scalars(entry))
        _log.info("%s", _summary(entry))
        round_evaluation.stop_after_reverts(record)
        if not ended_early:
            after_round.start(done, model)
    if ended_early:
        _log.info("the run ends early: %s", ended_early)
    note_predictions(record.folder, evaluator, model, done)
    after_round.finish(model, checkpoints, done)
    return ended_early


def _brings_former(config: RunConfig) -> bool:
    """Whether sites get the policy of the run before: not where this run starts from what they have."""
    return config.run.deliver == "end" and not earlier_run(config)


def _build_while_nodes_join(
    config: RunConfig,
    nodes: NodeTable,
    datasets: Mapping[str, Path],
    descriptions: Mapping[str, DatasetDescription],
) -> tuple["SmolVLAPolicy", dict[int, Node]]:
    """Return the policy and the nodes that joined meanwhile: torch and LeRobot take long to import.

    A policy or a dataset that cannot be used ends the wait, which may be for days.
    """
    with ThreadPoolExecutor(1) as pool:
        building: Future[SmolVLAPolicy] = pool.submit(_build_policy, config)
        checking = pool.submit(check_samples, config, datasets, descriptions)

        def check() -> None:
            for task in (building, checking):
                if task.done():
                    task.result()

        online = nodes.wait_for_nodes(check)
        policy = building.result()
        checking.result()
    return policy, online


def _train_round(
    grid: Grid, nodes: NodeTable, model: "GlobalModel", round_: int, config: RunConfig, record: RunRecord
) -> RoundRecord:
    """Choose the participants of a round and have them train `model`."""
    from server.rounds import run_round

    logs.bind_context(round_=round_)
    started = time.monotonic()
    online = nodes.wait_for_nodes()
    sampled = sample_nodes(online, config.federation, config.run.seed, round_)
    sample_seconds = time.monotonic() - started
    entry = run_round(grid, model, sampled, round_, config, record, nodes.late)
    nodes.count_rejections(round_, entry.rejected, entry.clients)
    nodes.note_holdings(entry.clients)
    entry.seconds["sample"] = sample_seconds
    if config.privacy.mode != "none":
        entry.privacy = privacy_spent(flatten(config), record.folder)
    return entry


def _build_policy(config: RunConfig) -> "SmolVLAPolicy":
    from federation.policy.build import build_policy, select_device

    cache = folder_of("FEDERATION_SCRATCH")
    return build_policy(config.policy, seed=config.run.seed, device=select_device(), cache=cache)


def _summary(entry: RoundRecord) -> str:
    parts = [f"{len(entry.clients)} updates"]
    if entry.policy_loss:
        parts.append(f"client policy loss {entry.policy_loss['mean']:.4f}")
    if entry.evaluation:
        parts.append(f"held-out policy loss {entry.evaluation['policy_loss']:.4f}")
    if entry.privacy:
        parts.append(format_max_epsilon(entry.privacy))
    if entry.missing or entry.rejected:
        parts.append(f"{len(entry.missing)} missing, {len(entry.rejected)} rejected")
    return ", ".join(parts)
