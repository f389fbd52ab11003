"""Delivery: the exported policy of a run that is over goes to the sites that took part in it.

Only the trained tensors travel, in fp32, out of the run's last checkpoint: a site has the frozen ones, builds
the policy as for training and writes the folder by the function that the export uses. It puts the folder in
place only if its weights have the SHA-256 of the export. A node gets it that SuperLink lists as online under
a registered key, so none that was revoked, and whose join the run has not denied.
"""

import json
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from federation import logs
from federation.errors import FederationError, one_line
from federation.messages import (
    ANSWER,
    CONFIG,
    DELIVERY_SECONDS,
    HEADER,
    LAST_UPDATE,
    QUERY_DELIVER,
    SETTINGS,
    STATISTICS,
    WEIGHTS,
)
from federation.wire.payload import Header, pack_tensors, statistics_to_record
from server.grid.calls import online_nodes
from server.grid.exchange import Exchange, Reply, WaitPolicy
from server.grid.late_replies import LateReplies
from server.output.model_card import model_card
from server.run.deliveries import note_delivery, read_deliveries
from server.run.recorded import is_being_written, is_finished, joined_sites, read_metrics, recorded_runs
from server.run.round_record import last_update_of, recorded_rounds

__all__ = ["FormerPolicy", "deliver_only", "deliver_quietly"]

_EXPORT = "pretrained_model"
_FORMER_SECONDS = 120.0  # that a run which begins waits for sites that take the policy of the one before
_log = logs.get_logger("server.delivery")


def deliver_quietly(
    grid: Grid, folder: Path, sites: Collection[str] | None = None, late: LateReplies | None = None
) -> set[str]:
    """Send the policy of the run in `folder` to those of its `sites` (None: all) that lack it and are online.

    Return those that were; of a delivery that failed as a whole, all of them. What fails is logged: that run
    is over, and nothing of this spoils it or the next.

    Args:
        late: of the run that begins, which waits less long: gets the nodes that may still be at work on it.
    """
    try:
        return _deliver(grid, folder, sites, late)
    except Exception as error:  # of the disk, of a checkpoint, of SuperLink
        _log.error("the policy of %s is not delivered: %s", folder.name, one_line(error))
        return set(sites or ())


def deliver_only(grid: Grid, folder: Path) -> None:
    """Do what is asked of a run that only delivers (`run.deliver = "only"`): also where a site had it before.

    It may have got another policy since, or have lost it.

    Raises:
        FederationError: the run in `folder` has not finished, or has left no policy.
        OSError: the policy cannot be read.
    """
    if is_being_written(folder) or not is_finished(folder):
        raise FederationError(f"{folder} holds no finished run: resume it, its end delivers the policy")
    logs.configure(folder / "server.log")
    _deliver(grid, folder, None, None, again=True)


class FormerPolicy:
    """The policy of the run before this one, for the sites that were off when that ended.

    Args:
        folder: of this run; None: nothing is delivered.
        late: gets the nodes that may still be at work on it.
    """

    def __init__(self, grid: Grid, folder: Path | None, late: LateReplies) -> None:
        self._grid, self._late = grid, late
        self._folder = None if folder is None else _former_run(folder)
        self._tried: set[str] = set()

    def deliver(self, sites: Collection[str]) -> None:
        """Send it to those of `sites` that took part in that run and lack it, once to each."""
        new = set(sites) - self._tried
        if self._folder and new:
            self._tried |= deliver_quietly(self._grid, self._folder, new, self._late)


def _former_run(folder: Path) -> Path | None:
    """Return the newest finished run beside `folder` that delivers its policy; None if there is none."""
    for other in reversed(recorded_runs(folder.parent)):
        try:
            delivers = read_metrics(other)["config"].get("run.deliver", "never") != "never"
            if other != folder and is_finished(other):
                return other if delivers and (other / _EXPORT).is_dir() else None
        except FederationError:  # a damaged record
            continue
    return None


def _deliver(
    grid: Grid,
    folder: Path,
    sites: Collection[str] | None,
    late: LateReplies | None,
    *,
    again: bool = False,
) -> set[str]:
    """Return those of `sites` that are online, whether they took part in that run or not."""
    present = {n.node_id: n.name for n in online_nodes(grid) if sites is None or n.name in sites}
    if not present:
        return set()
    joined = joined_sites(folder)
    if names := {node_id: name for node_id, name in present.items() if name in joined}:
        _send(grid, folder, names, late, again=again)
    return set(present.values())


def _send(grid: Grid, folder: Path, names: dict[int, str], late: LateReplies | None, *, again: bool) -> None:
    from federation.policy.folder import policy_digest

    digest, delivered = policy_digest(folder / _EXPORT), {} if again else read_deliveries(folder)
    lacking = {id_: n for id_, n in names.items() if delivered.get(n, {}).get("sha256") != digest}
    if not lacking:
        return
    rounds = recorded_rounds(read_metrics(folder))
    sent: dict[str, int] = {}

    def make_content() -> RecordDict:
        content = delivery_request(folder, digest)
        sent["round"] = int(content.config_records[CONFIG]["round"])  # type: ignore[arg-type]
        sent["bytes"] = sum(len(array.data) for array in content.array_records[WEIGHTS].values())
        return content

    def address(content: RecordDict, node_id: int) -> RecordDict:
        return RecordDict(
            {**content, LAST_UPDATE: ConfigRecord({"text": last_update_of(rounds, names[node_id])})}
        )

    policy = WaitPolicy(DELIVERY_SECONDS if late is None else _FORMER_SECONDS)
    exchange = Exchange(grid, make_content, QUERY_DELIVER, "deliver", policy, address=address)
    for reply in exchange.send(list(lacking)).replies():
        _record_reply(folder, names[reply.node_id], reply, digest, sent)
    if late is not None:
        late.watch(exchange)


def delivery_request(folder: Path, digest: str) -> RecordDict:
    """Return what a site is sent: the weights after the last round of the run in `folder`.

    Args:
        digest: SHA-256 of the exported file that the site is to come to.

    Raises:
        FederationError: the checkpoint of that round is missing or damaged.
    """
    from server.run.checkpoint_file import load_checkpoint
    from server.run.checkpoints import checkpoint_path

    metrics = read_metrics(folder)
    last = int(metrics["rounds"][-1]["round"]) if metrics["rounds"] else 0
    checkpoint = load_checkpoint(checkpoint_path(folder / "checkpoints", last))
    header = Header("fp32", folder.name, last, base="")
    tensors = sorted((checkpoint.average or checkpoint.weights).items())
    weights, packed_header, _ = pack_tensors(tensors, header)
    card = model_card(metrics, last)  # without the plot, which does not travel
    facts: dict[str, Any] = {"run": folder.name, "round": last, "sha256": digest, "card": card}
    return RecordDict(
        {
            WEIGHTS: weights,
            HEADER: packed_header,
            STATISTICS: statistics_to_record(checkpoint.statistics),
            CONFIG: ConfigRecord(facts | {"fingerprint": checkpoint.fingerprint}),
            SETTINGS: ConfigRecord(metrics["config"]),
        }
    )


def _record_reply(folder: Path, name: str, reply: Reply, digest: str, sent: dict[str, int]) -> None:
    """Note whether site `name` has the policy now."""
    found = ""
    if reply.content is not None:
        found = str(reply.content.config_records.get(ANSWER, {}).get("sha256"))  # type: ignore[call-overload]
    error = reply.error or ("" if found == digest else f"it answers with {json.dumps(found)[:80]}")
    note_delivery(
        folder,
        name,
        {
            **sent,
            "sha256": "" if error else digest,
            "seconds": round(reply.seconds, 3),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "error": one_line(error),
        },
    )
    if error:
        _log.warning("the policy of %s is not delivered to %s: %s", folder.name, name, one_line(error))
    else:
        megabytes, seconds = sent["bytes"] / 1e6, reply.seconds
        _log.info("%s has the policy of %s: %.1f MB, %.1f s", name, folder.name, megabytes, seconds)
