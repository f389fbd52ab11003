"""What is compared: the whole policy, adapters of several ranks, and ways to average them.

Every arm starts from the same base of its seed and takes the same steps on the same frames in the same order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from federation.policy.memory import TRAINED, VALUES_OF_A_RANK

__all__ = ["ARMS", "Arm", "full_size_rank"]


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    policy: Mapping[str, Any] = field(default_factory=dict)  # settings of the policy section
    refactored: bool = False  # the mean is taken of the products, and split into factors again

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is trained, not the whole policy."""
        return bool(self.policy)


def _lora(rank: int, **settings: Any) -> dict[str, Any]:
    return {"adapter": "lora", "lora_rank": rank, **settings}


# Also in the vision encoder and the rest of the VLM, which the base has seen other scenes with.
_EVERYWHERE = r".*\.(q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj)"

ARMS = (
    Arm("dense"),
    Arm("r=2", _lora(2)),
    Arm("r=8", _lora(8)),
    Arm("r=16", _lora(16)),
    Arm("r=8, A frozen", _lora(8, lora_train="b")),
    Arm("r=16, A frozen", _lora(16, lora_train="b")),
    Arm("r=8, product re-factored", _lora(8), refactored=True),
    *(Arm(f"r={rank}, every linear layer", _lora(rank, lora_targets=_EVERYWHERE)) for rank in (3, 2, 8)),
)


def full_size_rank(arm: Arm, share: float) -> int:
    """Return the rank at full size whose adapter is the same `share` of what is trained without one."""
    return round(share * TRAINED / VALUES_OF_A_RANK[arm.policy.get("lora_train", "both")])
