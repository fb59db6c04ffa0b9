"""Convolutions of a metric's network with fewer multiplications, on a CPU: in tiles of 4 x 4 pixels."""

from typing import cast

import torch
from torch import Tensor, nn

from turbovaed_cli.models.scratch import Scratch
from turbovaed_cli.models.winograd import SpatialTiles

_WORTH = 64  # channels, in and out, from which the transforms are worth their time
_TAPS = (3, 5)


def can_tile(convolution: nn.Conv2d) -> bool:
    """Whether a convolution can be computed tile by tile, in less time than at once."""
    is_plain = convolution.stride == convolution.dilation == (1, 1) and convolution.groups == 1
    is_square = convolution.kernel_size in [(taps, taps) for taps in _TAPS] and not isinstance(convolution.padding, str)
    is_wide = min(convolution.in_channels, convolution.out_channels) >= _WORTH
    is_exact = convolution.weight.dtype in (torch.float32, torch.float64)  # half precision would lose too much
    return (
        is_plain and is_square and is_wide and is_exact and convolution.padding_mode == "zeros" and convolution.bias is not None
    )


class TiledConvolution:
    """A convolution for which `can_tile` holds, without gradients, equal to it within rounding. The weights must not change any more."""

    def __init__(self, convolution: nn.Conv2d, scratch: Scratch) -> None:
        """Prepare the weights of the convolution, whose temporary memory is in `scratch`."""
        assert convolution.bias is not None
        self.padding, self.scratch = cast(tuple[int, int], convolution.padding), scratch
        self.tiles = SpatialTiles(convolution.weight.detach().unsqueeze(2), convolution.bias.detach())

    def __call__(self, x: Tensor) -> Tensor:
        """Return the convolution (N, O, H', W') of images (N, C, H, W), in channels_last memory."""
        return self.tiles(x.permute(0, 2, 3, 1), self.padding, self.scratch).permute(0, 3, 1, 2)
