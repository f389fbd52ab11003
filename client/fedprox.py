"""The proximal term of FedProx (Li et al., MLSys 2020, eq. 2).

A node minimises `F_k(w) + mu/2 * ||w - w_t||^2`, where `w_t` are the weights received this round. The term's
gradient is `mu * (w - w_t)`; adding it to the gradients of the policy loss gives exactly the gradient of the
sum, without a second graph over the parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["add_proximal_gradient"]


@torch.no_grad()
def add_proximal_gradient(
    parameters: Sequence[torch.nn.Parameter], received: Sequence[Tensor], proximal_mu: float
) -> Tensor:
    """Add `proximal_mu * (w - w_t)` to the gradients of `parameters`, in place.

    Call it between `backward()` and gradient clipping. With `proximal_mu` 0 nothing is touched, so the step
    is plain training bit for bit. A parameter without a gradient took no part in the loss and is left alone.

    Args:
        parameters: the trainable parameters `w`.
        received: `w_t`, the same shapes, dtypes and device.

    Returns:
        The proximal loss `mu/2 * ||w - w_t||^2`, a 0-dim fp32 tensor on the parameters' device.
    """
    if proximal_mu == 0:
        return torch.zeros((), device=parameters[0].device)
    taking_part = [
        (p, p.grad, anchor) for p, anchor in zip(parameters, received, strict=True) if p.grad is not None
    ]
    drift = torch._foreach_sub([p for p, _, _ in taking_part], [anchor for _, _, anchor in taking_part])
    torch._foreach_add_([gradient for _, gradient, _ in taking_part], drift, alpha=proximal_mu)
    squared_norm = torch.stack(torch._foreach_norm(drift)).square().sum()
    return 0.5 * proximal_mu * squared_norm
