"""Muon: orthogonalised momentum, for convolutions; benchmarks/recipes.md measures its benefit on a small student."""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from turbovaed_cli.machine.devices import multiplies_bf16

_BIAS_SHARE = 0.03  # of the learning rate, for parameters that are no matrix: Adam's steps have the size of the rate itself
_SQUARE_DECAY = 0.99
_EPS = 1e-8


class Muon(torch.optim.Optimizer):
    """An optimizer whose step of a weight, as a matrix (out, in * kernel), has singular values of about `lr`; biases take Adam's.

    A step cannot grow with the number of inputs, so a network that starts well stays well. Weights decay by `lr * weight_decay`.
    Parameters are stepped together, and matrices of equal shape as one batch, as kernel launches take most of the time on a GPU.
    Source: K. Jordan et al., 2024, kellerjordan.github.io/posts/muon.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step from the current gradients; parameters without one stay."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            averages = self._kept("average", parameters)
            torch._foreach_lerp_(averages, _gradients(parameters), 1 - momentum)
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
            self._step_biases([p for p in parameters if p.ndim < 2], lr)
            self._step_weights([p for p in parameters if p.ndim >= 2], lr, momentum)

    def _kept(self, name: str, parameters: list[Tensor]) -> list[Tensor]:
        """Return the tensors of that name in the state of `parameters`; zeros at the first step."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]

    def _step_biases(self, parameters: list[Tensor], lr: float) -> None:
        if not parameters:
            return
        gradients, squares = _gradients(parameters), self._kept("square", parameters)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - _SQUARE_DECAY)
        sizes = torch._foreach_add(torch._foreach_sqrt(squares), _EPS)
        steps = torch._foreach_mul(self._kept("average", parameters), _BIAS_SHARE * lr)
        torch._foreach_sub_(parameters, torch._foreach_div(steps, sizes))

    def _step_weights(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        alike: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            alike.setdefault(parameter.shape, []).append(parameter)
        for shape, some in alike.items():
            ahead = torch.stack(torch._foreach_lerp(_gradients(some), self._kept("average", some), momentum))
            updates = orthogonal(ahead.flatten(2))
            updates *= lr * max(1.0, shape[0] / shape[1:].numel()) ** 0.5
            torch._foreach_sub_(some, updates.view_as(ahead).unbind())


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [cast(Tensor, parameter.grad) for parameter in parameters]


def orthogonal(matrices: Tensor) -> Tensor:
    """Return roughly the nearest orthogonal matrix to each of (K, M, N): all singular values are near one.

    Five Newton-Schulz steps run in bf16 if the device multiplies it natively, else in fp32, which is several times as fast there.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if multiplies_bf16(matrices.device) else torch.float32)
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = torch.bmm(x, x.mT)
        # Fused sums and products are rounded once: half the error of separate operations.
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)
