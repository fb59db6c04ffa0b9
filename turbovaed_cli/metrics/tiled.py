"""Convolutions of a metric's network with fewer multiplications, on a CPU: Winograd's minimal filtering of tiles of 4 x 4 pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.models.kernels import minimal_filter

_SIZE = 4  # pixels of a tile along both sides
_WORTH = 64  # channels, in and out, from which the transforms are worth their time
_TAPS = (3, 5)
_AT_ONCE = 2**12  # tiles that are transformed at once: of a large image, some rows


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
    """A convolution for which `can_tile` holds, without gradients, equal to it within rounding: F(4x4, 3x3) or F(4x4, 5x5).

    A tile of 4 x 4 pixels takes 36 or 64 products instead of 144 or 400. The weights must not change any more.

    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv:1509.09308).
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take the convolution and transform its weights, in fp64."""
        assert convolution.bias is not None
        weight = convolution.weight.detach()
        self.bias, self.padding, self.taps = convolution.bias.detach(), convolution.padding, weight.shape[-1]
        to_points, of_weights, from_points = (_matrix(rows) for rows in minimal_filter(_SIZE, self.taps))
        transformed = torch.einsum("ai,bj,ocij->abco", of_weights, of_weights, weight.double())
        self.weights = transformed.flatten(0, 1).to(weight.dtype).contiguous()  # (points, in, out)
        self.to_points, self.from_points = (torch.kron(one, one).to(weight.dtype) for one in (to_points, from_points))

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the convolution (N, O, H', W') of images (N, C, H, W), in channels_last memory."""
        number, _, *sides = x.shape
        more = [2 * int(pad) - self.taps + 1 for pad in self.padding]
        height, width = (side + extra for side, extra in zip(sides, more, strict=True))
        down, across = (-(-side // _SIZE) for side in (height, width))
        top, left = map(int, self.padding)
        bottom, right = (
            count * _SIZE + self.taps - 1 - side - pad
            for count, side, pad in zip((down, across), sides, (top, left), strict=True)
        )
        padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom)).contiguous()
        made = padded.new_empty(number, down * _SIZE, across * _SIZE, len(self.bias))
        rows = max(_AT_ONCE // (number * across), 1)
        for first in range(0, down, rows):
            last = min(first + rows, down)
            self._band(padded[:, first * _SIZE : last * _SIZE + self.taps - 1], made[:, first * _SIZE : last * _SIZE])
        return (made[:, :height, :width] + self.bias).permute(0, 3, 1, 2)

    def _band(self, padded: Tensor, made: Tensor) -> None:
        """Write whole tiles `made` (N, h, w, O), without the bias, from all that they need, (N, h + taps - 1, w + taps - 1, C)."""
        (number, height, width, _), channels = made.shape, padded.shape[-1]
        down, across, points = height // _SIZE, width // _SIZE, _SIZE + self.taps - 1
        image, row, column, _ = padded.stride()
        tiles = padded.as_strided(
            (points, points, number, down, across, channels),
            (row, column, image, row * _SIZE, column * _SIZE, 1),
        )
        values = self.to_points @ tiles.reshape(points**2, -1)
        values = values.view(points**2, -1, channels) @ self.weights  # one product of matrices for each point
        values = (self.from_points @ values.flatten(1)).view(_SIZE, _SIZE, number, down, across, -1)
        made.unflatten(2, (across, _SIZE)).unflatten(1, (down, _SIZE)).copy_(values.permute(2, 3, 0, 4, 1, 5))


def _matrix(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
