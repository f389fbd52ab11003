"""Weights from the server, verified: those of a round, and those of a policy that is delivered."""

from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Message

from federation.config import RunConfig
from federation.errors import FederationError, RejectionCode
from federation.messages import CONFIG, HEADER, WEIGHTS
from federation.wire.payload import Header, Payload, open_payload

if TYPE_CHECKING:
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

__all__ = ["open_weights"]


def open_weights(
    message: Message,
    policy: "SmolVLAPolicy",
    config: RunConfig,
    scratch: Path,
    expected: Header,
    *,
    by_name: bool = False,
) -> Payload:
    """Return the trained weights in `message`, verified; `policy` must have the server's frozen ones.

    Args:
        policy: as it was built by `config`.
        expected: codec, run and round that the weights must be of.
        by_name: they are packed in the order of their names, as in a checkpoint, not in the policy's.

    Raises:
        FederationError: the frozen weights are others than the server's.
        WireError: the weights do not verify.
    """
    from client.state.frozen import kept_fingerprint
    from federation.policy.build import trainable_parameters

    if kept_fingerprint(policy, config, scratch) != message.content.config_records[CONFIG]["fingerprint"]:
        raise FederationError(
            "frozen weights differ from the server's: install the same versions of torch, transformers and "
            "lerobot, and the same policy.pretrained",
            RejectionCode.FROZEN_WEIGHTS,
        )
    shapes = {name: p.shape for name, p in trainable_parameters(policy).items()}
    if by_name:
        shapes = dict(sorted(shapes.items()))
    content = message.content
    return open_payload(content.array_records[WEIGHTS], content.config_records[HEADER], shapes, expected)
