"""A site that holds a registered key and does not answer as a site should.

It is no SuperNode but speaks to SuperLink through Flower's own Fleet client: its requests are signed, its
objects bear the right SHA-256 and length, and SuperLink takes them. What it does to a request stands in its
plan: `{"join": "not json", "2": "withheld"}` spoils its answer to the join and to round 2, and everything
else it answers as our client does. `FaultyCluster.start_rogues` runs it as a process.
"""

import argparse
import json
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.app import app
from federation.messages import QUERY_JOIN, TRAIN
from tests.integration.faults.network import Network

_REQUEST_SECONDS = 600.0
_SECONDS_BETWEEN_PULLS = 0.5
SLOW_BYTES_PER_SECOND = (
    200.0  # the tiny policy's update takes ten minutes, as the full one's does at 160 kB/s
)
_MANY_OBJECTS = 500  # SuperLink writes each into its database before anybody else may write
_CHUNK_BYTES = 5 * 2**20  # Flower's
_HUGE_BYTES = 300 * 2**20


@dataclass(frozen=True)
class Answer:
    """A reply as it is pushed.

    Attributes:
        message: gives the metadata that SuperLink files it under.
        contents: object id -> bytes, of all that is pushed.
        bytes_per_second: of its upload; 0: as fast as it goes.
    """

    message: Message
    tree: ObjectTree
    contents: Mapping[str, bytes]
    bytes_per_second: float = 0.0


def _honest(reply: Message) -> Answer:
    contents = {id_: part.deflate() for id_, part in get_all_nested_objects(reply).items()}
    return Answer(reply, get_object_tree(reply), contents)


def _object(kind: str, body: bytes, children: Iterable[str] = ()) -> tuple[str, bytes]:
    """An object with a head that SuperLink finds nothing wrong with: its id and its bytes."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body
    return get_object_id(content), content


def _rooted(reply: Message, kind: str, body: bytes, children: Mapping[str, bytes]) -> Answer:
    """An answer whose root is an object of `kind`, right above its `children`."""
    root, content = _object(kind, body, children)
    tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=id_) for id_ in children])
    return Answer(reply, tree, {**children, root: content})


def _body(reply: Message) -> bytes:
    """Of the message object itself: its metadata."""
    return reply.deflate().split(b"\x00", 1)[1]


def _with_content(reply: Message, kind: str, body: bytes) -> Answer:
    """An honest message whose content is an object of `kind`."""
    return _rooted(reply, "Message", _body(reply), dict([_object(kind, body)]))


def _many_objects(reply: Message) -> Answer:
    """A reply that would do but for its size, were it pushed; only the first record is."""
    records = {f"{number}": MetricRecord({"x": number}) for number in range(_MANY_OBJECTS)}
    answer = _honest(_replaced(reply, RecordDict(records)))
    return replace(answer, contents=dict([next(iter(answer.contents.items()))]))


def _huge(reply: Message) -> Answer:
    """Of honest chunks, but of so many that they fill the memory of whoever takes them all."""
    chunks = (
        _object("ArrayChunk", i.to_bytes(4) + bytes(_CHUNK_BYTES)) for i in range(_HUGE_BYTES // _CHUNK_BYTES)
    )
    return _rooted(reply, "Message", _body(reply), dict(chunks))


def _absent_child(reply: Message) -> Answer:
    """The message names a content that is not in its tree."""
    root, content = _object("Message", _body(reply), ["0" * 64])
    return Answer(reply, ObjectTree(object_id=root), {root: content})


def _withheld(reply: Message) -> Answer:
    """All but the first object that is pushed: a chunk."""
    answer = _honest(reply)
    first = next(iter(iterate_object_tree(answer.tree))).object_id
    return replace(answer, contents={id_: c for id_, c in answer.contents.items() if id_ != first})


def _slow(reply: Message) -> Answer:
    return replace(_honest(reply), bytes_per_second=SLOW_BYTES_PER_SECOND)


def _replaced(reply: Message, content: RecordDict) -> Message:
    changed = Message(content, reply_to=reply)
    changed.__dict__["_metadata"] = reply.metadata
    return changed


# What cannot be read: SuperLink checks the head, the length and the hash of an object and never its body.
UNREADABLE: dict[str, Callable[[Message], Answer]] = {
    "not json": lambda reply: _with_content(reply, "RecordDict", b"not json"),
    "no protobuf": lambda reply: _rooted(reply, "Message", b"\xff" * 9, {}),
    "no content": lambda reply: _rooted(reply, "Message", _body(reply), {}),
    "content of another type": lambda reply: _with_content(reply, "ArrayChunk", b"a chunk"),
    "root of another type": lambda reply: _rooted(reply, "ConfigRecord", b"", {}),
    "absent child": _absent_child,
    "many objects": _many_objects,
    "not json in a record": lambda reply: _rooted(reply, "RecordDict", b"[1]", {}),
}
WAYS: dict[str, Callable[[Message], Answer]] = {
    **UNREADABLE,
    "honest": _honest,
    "withheld": _withheld,
    "slow": _slow,
    "huge": _huge,
}
_NEEDS_UPDATE = {"honest", "withheld", "slow", "twice", "unasked"}


class Fleet:
    """A connection to SuperLink, as a SuperNode has one. It may take its time: a slow line is no error."""

    def __init__(self, port: int, keys: Path) -> None:
        key = load_ssh_private_key((keys / "node.key").read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        self._client = FleetHttpClient(
            f"https://127.0.0.1:{port}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
            verify=ssl.create_default_context(cafile=str(keys / "ca.crt")),
            timeout=_REQUEST_SECONDS,
            retry_invoker=make_simple_http_retry_invoker(),
        )
        activated = self._client.ActivateNode(
            ActivateNodeRequest(
                public_key=public_key_to_bytes(key.public_key()),
                heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL,
            )
        )
        self.node = Node(node_id=activated.node_id)
        HeartbeatSender(self._send_heartbeat).start()

    def _send_heartbeat(self) -> bool:
        request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            return bool(self._client.SendNodeHeartbeat(request).success)
        except httpx.HTTPError:
            return False

    def pull(self) -> Message | None:
        """The next message, whole; None if there is none, or SuperLink's database is locked."""
        try:
            answer = self._client.PullMessages(PullMessagesRequest(node=self.node))
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise
            return None
        if not answer.messages_list:
            return None
        metadata = message_from_proto(answer.messages_list[0]).metadata
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self.node, metadata.run_id)
        parts = iterate_object_tree(answer.message_object_trees[0])
        contents = pull_objects([part.object_id for part in parts], pull)
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, self.node, metadata.run_id
        )
        confirm(metadata.message_id)
        message = inflate_object_from_contents(metadata.message_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = metadata.message_id
        return message

    def app_settings(self, run_id: int) -> tuple[Any, str]:
        """The configuration of a run, and its series."""
        run = run_from_proto(self._client.GetRun(GetRunRequest(node=self.node, run_id=run_id)).run)
        request = GetFabRequest(node=self.node, hash_str=run.fab_hash, run_id=run_id)
        fab = fab_from_proto(self._client.GetFab(request).fab)
        return get_fused_config_from_fab(fab.content, run), run.series_id

    def push(self, answer: Answer) -> int:
        """File a reply and push what there is of its objects; return how many SuperLink asked for."""
        message, run_id = answer.message, answer.message.metadata.run_id
        message.metadata.__dict__["_message_id"] = answer.tree.object_id
        request = PushMessagesRequest(
            node=self.node,
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[answer.tree],
            clientapp_runtime_list=[1.0],
        )
        filed = self._client.PushMessages(request)
        push = make_push_object_fn_protobuf(self._client.PushObject, self.node, run_id, filed.session_id)
        wanted = set(filed.objects_to_push)
        for id_ in dict.fromkeys(part.object_id for part in iterate_object_tree(answer.tree)):
            if id_ in wanted and id_ in answer.contents:
                push(id_, answer.contents[id_])
        return len(wanted)


@dataclass
class Rogue:
    """What a site answers.

    Attributes:
        plan: "join" or the number of a round -> a key of `WAYS`, "twice", "unasked" or "silent".
        line: to SuperLink, which can be slowed down.
    """

    fleet: Fleet
    node_config: dict[str, str]
    plan: Mapping[str, str]
    line: Network
    _settings: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def work(self) -> None:
        """Answer what comes, one message after the other, as a SuperNode does."""
        while True:
            message = self.fleet.pull()
            if message is None:
                time.sleep(_SECONDS_BETWEEN_PULLS)
                continue
            way = self._way(message)
            print(f"{message.metadata.message_type} {message.metadata.group_id}: {way}", flush=True)
            if way != "silent":
                self._answer(message, way)

    def _way(self, message: Message) -> str:
        if message.metadata.message_type == QUERY_JOIN:
            return self.plan.get("join", "honest")
        if message.metadata.message_type == TRAIN:
            return self.plan.get(message.metadata.group_id, "honest")
        return "honest"

    def _answer(self, message: Message, way: str) -> None:
        if message.metadata.message_type == TRAIN and way in WAYS.keys() - _NEEDS_UPDATE:
            reply = Message(RecordDict({}), reply_to=message)
        else:
            reply = app(message, self._context(message))
        if way == "unasked":
            self._push(_to_another_message(reply))
        self._push(WAYS.get(way, _honest)(reply))
        if way == "twice":
            self._push(_honest(Message(reply.content, reply_to=message)))

    def _context(self, message: Message) -> Context:
        run_id = message.metadata.run_id
        if run_id not in self._settings:
            self._settings[run_id] = self.fleet.app_settings(run_id)
        run_config, series_id = self._settings[run_id]
        return Context(
            run_id=run_id,
            node_id=self.fleet.node.node_id,
            node_config=dict(self.node_config),
            state=RecordDict({}),
            run_config=run_config,
            series_id=series_id,
        )

    def _push(self, answer: Answer) -> None:
        self.line.upload_bytes_per_second = answer.bytes_per_second
        try:
            wanted = self.fleet.push(answer)
            print(f"SuperLink asked for {wanted} objects and got {len(answer.contents)}", flush=True)
        except ObjectPushError:
            print("SuperLink takes no more of it", flush=True)
        self.line.upload_bytes_per_second = 0.0


def _to_another_message(reply: Message) -> Answer:
    """The same reply, to a message that nobody sent."""
    moved = Message(reply.content, reply_to=reply)
    moved.metadata.__dict__.update(reply.metadata.__dict__ | {"_reply_to_message_id": "0" * 64})
    return _honest(moved)


def main() -> None:
    """Answer until somebody ends this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=int, required=True, help="SuperLink's port")
    parser.add_argument("--port", type=int, required=True, help="of the line to it that can be slowed down")
    for name in ("keys", "node-config", "plan"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    with Network(arguments.port, target=arguments.target) as line:
        fleet = Fleet(line.port, Path(arguments.keys))
        print("SuperNode ID:", fleet.node.node_id, flush=True)
        Rogue(fleet, json.loads(arguments.node_config), json.loads(arguments.plan), line).work()


if __name__ == "__main__":
    main()
