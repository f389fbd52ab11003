"""Updates as the server gets them, for benchmarks that federate without Flower."""

from collections.abc import Mapping

from torch import Tensor

from federation.wire.payload import Header, Payload, open_payload, pack_tensors

__all__ = ["as_received"]


def as_received(update: Mapping[str, Tensor]) -> Payload:
    """`update`, packed in fp32 and opened again."""
    shapes = {name: tensor.shape for name, tensor in update.items()}
    record, header, sealed = pack_tensors(update.items(), Header("fp32", "benchmark", 1, ""))
    return open_payload(record, header, shapes, sealed)
