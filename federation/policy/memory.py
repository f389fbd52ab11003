"""The GPU memory that a site's training takes at full size: a sum of parts, each with its reason.

The numbers of values are those of `SmolVLAPolicy` as `client.training` sets it up on CUDA; a test counts them
anew. That of the activations was measured: on an H100 a step took 6.41 GB at batch size 16 and 14.46 GB at 64
(tests/benchmarks/step_time_h100.json), with 3.73 GB for a batch of nothing. The parts add up to 3.60 GB for
it, as it was then: all weights and the received ones in fp32, and without the last part, which is outside of
torch.
"""

from federation.settings import PolicyConfig

__all__ = ["TRAINED", "VALUES_OF_A_RANK", "memory_parts", "training_gigabytes"]

_FROZEN_ROUNDED = 301_999_872  # linear layers and convolutions, in bf16
_FROZEN = 48_165_312  # embeddings and norms, in fp32
TRAINED = 99_880_992
VALUES_OF_A_RANK = {"both": 46_416, "b": 23_632}  # that an adapter trains for each of its ranks
_BYTES_OF_A_TRAINED_VALUE = {
    "trained weights": 4,
    "their gradients": 4,
    "moments of Adam": 8,
    "weights as received": 2,  # 4 with wire.download = "fp32"
    "copies for autocast": 2,
}
_ACTIVATIONS_GB = 0.168  # of one sample with two cameras
_REST_GB = 0.6  # CUDA itself and its libraries, about 0.5 outside of what torch counts


def memory_parts(policy: PolicyConfig, batch_size: int) -> dict[str, float]:
    """Return the gigabytes of each part of a training step of the full-size policy.

    Of an adapter's activations nothing was measured: they count as those of the whole policy, which holds
    more of them.
    """
    trained, rounded = TRAINED, _FROZEN_ROUNDED
    if policy.adapter == "lora":
        trained = VALUES_OF_A_RANK[policy.lora_train] * policy.lora_rank
        rounded += TRAINED
    return {
        "frozen weights": (2 * rounded + 4 * _FROZEN) / 1e9,
        **{part: size * trained / 1e9 for part, size in _BYTES_OF_A_TRAINED_VALUE.items()},
        "activations": _ACTIVATIONS_GB * batch_size,
        "the rest": _REST_GB,
    }


def training_gigabytes(policy: PolicyConfig, batch_size: int) -> float:
    """Return how much GPU memory training the full-size policy takes, the sum of `memory_parts`."""
    return sum(memory_parts(policy, batch_size).values())
