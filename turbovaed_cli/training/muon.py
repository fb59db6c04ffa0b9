"""Muon: momentum made orthogonal, for convolutions; what it is worth on a small student stands in benchmarks/recipes.md."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from turbovaed_cli.devices import multiplies_bf16

_BIAS_SHARE = 0.03  # of the learning rate, for what is no matrix: Adam's steps have the size of the rate itself
_SQUARE_DECAY = 0.99
_EPS = 1e-8


class Muon(torch.optim.Optimizer):
    """Every weight, seen as a matrix (out, in * kernel), takes a step whose singular values are all about `lr`; biases take Adam's.

    A step cannot grow with the number of inputs, so a network that starts well stays well. Weights decay by `lr * weight_decay`.
    Source: K. Jordan et al., 2024, kellerjordan.github.io/posts/muon.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients at hand; parameters without one stay."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - momentum)
                parameter.mul_(1 - lr * group["weight_decay"])
                if parameter.ndim < 2:
                    square = state.setdefault("square", torch.zeros_like(parameter))
                    square.lerp_(parameter.grad.square(), 1 - _SQUARE_DECAY)
                    parameter.sub_(_BIAS_SHARE * lr * average / (square.sqrt() + _EPS))
                else:
                    update = orthogonal(parameter.grad.lerp(average, momentum).flatten(1))
                    scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                    parameter.sub_(lr * scale * update.view_as(parameter))


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the orthogonal matrix nearest to (M, N): five Newton-Schulz steps bring all singular values near one.

    In bf16 if the device multiplies it natively, else in fp32, which is several times as fast there.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(torch.bfloat16 if multiplies_bf16(matrix.device) else torch.float32)
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
