"""The ClientApp: what a SuperNode answers. The table of contents of a site's part in a run.

Flower starts a new process for every message. So `join` imports neither torch nor LeRobot and is quick from
the second time on; they are imported when there is something to train. Whatever goes wrong is answered with
one line, in which no path of this site stands; the whole story is in this site's own log.
"""

from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.base import locate_base
from client.delivery import receive_policy
from client.device import describe_device
from client.private_paths import hide_paths
from client.recordings.held import judge_recordings
from client.recordings.opened import private_folders
from client.round import answer_train_request
from client.rules.check import check_day, check_rules
from client.rules.traffic import count_traffic
from client.site import Site, read_site
from client.state.contact import note_contact
from federation import logs
from federation.config import RunConfig, parse_run_config
from federation.config_rules import fault_of_run_name
from federation.errors import FederationError, PolicyError, RejectionCode, one_line
from federation.messages import (
    ANSWER,
    CONFIG,
    LAST_UPDATE,
    QUERY_DELIVER,
    QUERY_JOIN,
    QUERY_SHUT_OUT,
    REASON,
    SETTINGS,
    STATISTICS,
    UPDATE,
)
from federation.policy.identity import describe_adapter
from federation.versions import versions
from federation.wire.payload import statistics_to_record

app = ClientApp()
_log = logs.get_logger("client.app")


@app.query(QUERY_JOIN.partition(".")[2])
def join(message: Message, context: Context) -> Message:
    """Say what data this site holds, without showing any of it."""
    return _answer(message, context, _join)


@app.query(QUERY_SHUT_OUT.partition(".")[2])
def shut_out(message: Message, context: Context) -> Message:
    """Put into this site's log why the server takes nothing from it."""
    return _answer(message, context, _shut_out)


@app.query(QUERY_DELIVER.partition(".")[2])
def deliver(message: Message, context: Context) -> Message:
    """Write the policy of a run that is over into this site's policy folder."""
    return _answer(message, context, _deliver)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train `local_steps` steps from the received weights and reply with the update."""
    return _answer(message, context, _train)


def _join(message: Message, config: RunConfig, site: Site) -> RecordDict:
    check_rules(site.rules, config.privacy, site.scratch)
    config = locate_base(config, site)
    held = judge_recordings(site.sources, config.policy, site.scratch)
    first, cameras = held.descriptions[0], held.spell_cameras(config.policy.camera_names)
    for part in held.parts:
        for episode, why in part.description.left_out.items():
            _log.warning("episode %d of %s excluded: %s", episode, part.recording.label, why)
        for warning in part.description.warnings:
            _log.warning("%s", warning)
    what = (len(held.parts), held.episodes, held.frames, ", ".join(cameras))
    _log.info("joins with %d recordings, %d episodes, %d frames, cameras %s", *what)
    facts = {
        "name": site.name,
        "fps": first.fps,  # of all of them, as `mixing_faults` makes sure
        "episodes": held.episodes,
        "left_out": sum(len(description.left_out) for description in held.descriptions),
        "frames": held.frames,
        "simulated": first.simulated,
        "cameras": cameras,
        "versions": [f"{package} {version}" for package, version in versions().items()],
        "device": describe_device(),
    }
    if adapter := describe_adapter(config.policy, site.scratch):
        facts["adapter"] = [f"{name} {value}" for name, value in adapter.items()]
    note_contact(site.scratch, config.run.name, "asked this site to join")
    return RecordDict(
        {ANSWER: ConfigRecord(facts), STATISTICS: statistics_to_record(held.statistics)}  # type: ignore
    )


def _train(message: Message, config: RunConfig, site: Site) -> RecordDict:
    run, verdict = _run_of(message), "accepted: it asks for updates"
    note_contact(site.scratch, run, verdict, update=_last_update(message))
    check_day(site.rules, site.scratch)
    reply = answer_train_request(message, locate_base(config, site), site)
    check_day(site.rules, site.scratch)  # training may have lasted beyond the owner's hours
    sent = sum(len(array.data) for array in reply.array_records[UPDATE].values())
    count_traffic(site.rules, site.scratch, sent=sent)
    return reply


def _deliver(message: Message, config: RunConfig, site: Site) -> RecordDict:
    run = _run_of(message)
    check_day(site.rules, site.scratch)
    digest = receive_policy(message, site)
    note_contact(site.scratch, run, "accepted: it sent the policy", update=_last_update(message))
    return RecordDict({ANSWER: ConfigRecord({"sha256": digest})})


def _run_of(message: Message) -> str:
    """Return the name of the run that a message is of, which goes into logs and files of this site."""
    run = str(message.content.config_records[CONFIG]["run"])
    if fault := fault_of_run_name(run):
        raise FederationError(f"the server names a run {run!r}: {fault}")
    return run


def _last_update(message: Message) -> str | None:
    """Return what became of this site's last update; None if the server does not tell."""
    told = message.content.config_records.get(LAST_UPDATE)
    return None if told is None else one_line(str(told.get("text", "")))


def _shut_out(message: Message, config: RunConfig, site: Site) -> RecordDict:
    reason = one_line(str(message.content.config_records[REASON]["text"]))
    _log.error("the server takes nothing from this site %s", reason)
    note_contact(site.scratch, config.run.name, f"takes nothing from this site {reason}")
    check_day(site.rules, site.scratch)
    return RecordDict({})


def _probe_answer(error: FederationError, message: Message, context: Context) -> str:
    """Return what the server is told of a policy that is a path on this machine; "" of anything else.

    What is wrong with it would tell what lies there.
    """
    settings = {**context.run_config, **message.content.config_records.get(SETTINGS, {})}  # a delivery's last
    named = [str(settings.get(key, "")) for key in ("policy.pretrained", "policy.vlm")]
    if isinstance(error, PolicyError) and any(name and _is_local(name) for name in named):
        return "the policy that the run names by a path cannot be used here; this site's log says why"
    return ""


def _is_local(name: str) -> bool:
    try:
        return name.startswith(("/", "~")) or Path(name).exists()
    except OSError:  # too long for one
        return False


def _answer(
    message: Message, context: Context, work: Callable[[Message, RunConfig, Site], RecordDict]
) -> Message:
    """Do `work`; turn any failure into an error reply, so that the server hears of it at once."""
    logs.configure()
    folders: dict[str, Path] = {}
    try:
        site = read_site(context)
        folders = {**private_folders(site.sources), "scratch": site.scratch}
        logs.bind_context(node=site.name)
        config = parse_run_config(context.run_config, "the run configuration")
        logs.bind_context(run=config.run.name or None)
        return Message(work(message, config, site), reply_to=message)
    except FederationError as error:
        _log.error("%s", error)
        code, told = error.code, one_line(str(error))
        reason = _probe_answer(error, message, context) or hide_paths(str(error), folders)
    except Exception as error:  # anything else would end the process with paths in its message
        _log.exception("failed")
        code = RejectionCode.NODE_FAILED
        told = reason = f"{type(error).__name__}; the log of this SuperNode says more"
    if "scratch" in folders:
        note_contact(folders["scratch"], "", f"not served: {told}")
    return Message(Error(code=int(code), reason=reason), reply_to=message)
