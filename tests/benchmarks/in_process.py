"""What benchmarks that federate without Flower share: pooled datasets, updates as the server gets them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset

from federation.wire.payload import Header, Payload, open_payload, pack_tensors

__all__ = ["Pooled", "as_received"]


class Pooled(ConcatDataset[dict[str, Any]]):
    """The samples of several sites as one dataset."""

    name = "pooled"


def as_received(update: Mapping[str, Tensor]) -> Payload:
    """`update`, packed in fp32 and opened again."""
    shapes = {name: tensor.shape for name, tensor in update.items()}
    record, header, sealed = pack_tensors(update.items(), Header("fp32", "benchmark", 1, ""))
    return open_payload(record, header, shapes, sealed)
