"""First weights of a causal student from those of one that also sees later frames."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def causal_weights(weights: Mapping[str, Tensor], student: nn.Module) -> dict[str, Tensor]:
    """Return the state dict `weights` of a student that is not causal, moved to the past for `student`, a causal one of its shapes.

    The tap of a convolution on a frame itself stays on it, and what later frames would have given is given by that frame. So
    features that stand still stay the same.
    """
    moved = dict(weights)
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            key, reach = f"{name}.weight", module.kernel_size[0] // 2
            weight = weights[key]  # (O, C, taps in time, k, k)
            moved[key] = torch.zeros_like(weight)
            moved[key][:, :, reach : 2 * reach] = weight[:, :, :reach]
            moved[key][:, :, 2 * reach] = weight[:, :, reach:].sum(2)
    return moved
