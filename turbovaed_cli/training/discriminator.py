"""The adversarial stage: a 3-D PatchGAN, its hinge losses, and the weight that balances it against reconstruction."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_ADAPTIVE_WEIGHT = 1e4
_EPS = 1e-4
_SCALE = 2.0**10  # of both losses: a mean over a clip's pixels has gradients too small for fp16


class _Conv3d(nn.Conv3d):
    """A convolution padded by one zero on every side; the padding in time is explicit.

    With built-in padding of two frames, torch 2.13 on a CPU computes a bf16 weight gradient from uninitialised memory.
    """

    def __init__(self, before: int, after: int, kernel: Any, **options: Any) -> None:
        super().__init__(before, after, kernel, padding=(0, 1, 1), **options)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own argument name
        return super().forward(functional.pad(input, (0, 0, 0, 0, 1, 1)))


class PatchDiscriminator3d(nn.Module):
    """Judge overlapping patches of a video (B, 3, T, H, W) in [-1, 1]: logits (B, 1, t, h, w), high for real.

    Three strided convolutions each halve space; two of them halve time. GroupNorm is used because batches are small.
    Sources: PatchGAN of Isola et al. 2017, arXiv:1611.07004; 3-D and hinge as in arXiv:2508.09136.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        widths = [channels, channels * 2, channels * 4, channels * 8]
        layers: list[nn.Module] = [_Conv3d(3, widths[0], (3, 4, 4), stride=(1, 2, 2)), nn.LeakyReLU(0.2)]
        for before, width in itertools.pairwise(widths):
            last = width == widths[-1]
            kernel, stride = ((3, 3, 3), (1, 1, 1)) if last else ((3, 4, 4), (2, 2, 2))
            layers += [
                _Conv3d(before, width, kernel, stride=stride, bias=False),
                nn.GroupNorm(8, width),
                nn.LeakyReLU(0.2),
            ]
        layers.append(_Conv3d(widths[-1], 1, 3))
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        return self.layers(video)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss, a scalar, from logits (B, 1, t, h, w): half of relu(1 - real) + relu(1 + fake)."""
    return 0.5 * (functional.relu(1 - real.float()).mean() + functional.relu(1 + fake.float()).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Return the generator's hinge loss, a scalar, from logits (B, 1, t, h, w): minus the mean logit."""
    return -fake.float().mean()


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_weight: Tensor,
    mean: Callable[[list[Tensor]], list[Tensor]] = lambda pulls: pulls,
) -> Tensor:
    """Return |d reconstruction / d last_weight| over |d adversarial / d last_weight|, a scalar without gradient.

    Both losses are scalars. `mean` averages the two gradients over all processes, if each has a part of the batch. With a
    weight of 0.05, the adversarial loss pulls the last convolution a twentieth as hard as all other losses together. Source:
    Esser et al. 2021, arXiv:2012.09841, equation 7.
    """
    pulls = mean(
        [torch.autograd.grad(loss * _SCALE, last_weight, retain_graph=True)[0].float() for loss in (reconstruction, adversarial)]
    )
    return (pulls[0].norm() / (pulls[1].norm() + _EPS * _SCALE)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()
