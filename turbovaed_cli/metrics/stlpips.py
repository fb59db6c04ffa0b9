"""ST-LPIPS: a learned perceptual distance that hardly counts shifts of a pixel or two. It is a metric of its own, not LPIPS.

Source: Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022 (arXiv:2207.13686): LPIPS with networks that
blur before they subsample, reflect at borders, and were trained anew. The layers are those of the weight files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import WeightFileError
from turbovaed_cli.files.tensors import read_weights
from turbovaed_cli.metrics.features import FeatureDistance
from turbovaed_cli.registry.st_lpips import st_lpips_path


@dataclass(frozen=True)
class Block:
    """The layers up to a compared one: a max pool of stride 1 and a blur (0: neither), then convolutions of stride 1 with ReLU."""

    pool_kernel: int
    convolutions: tuple[tuple[int, int, int, int, int], ...]  # (index in the file, in, out, kernel, padding)


@dataclass(frozen=True)
class Layout:
    """A network of ST-LPIPS."""

    label: str
    blocks: tuple[Block, ...]
    is_blurred_first: bool  # the first convolution is blurred and subsampled before its ReLU
    min_side: int  # pixels: in smaller images, a blur has fewer than three pixels to reflect


def _vgg_block(pool_kernel: int, first: int, *channels: int) -> Block:
    pairs = pairwise(channels)
    return Block(pool_kernel, tuple((first + 2 * i, before, after, 3, 1) for i, (before, after) in enumerate(pairs)))


LAYOUTS = {
    "alex": Layout(
        "ST-LPIPS",
        (
            Block(0, ((0, 3, 64, 11, 2),)),
            Block(3, ((5, 64, 192, 5, 2),)),
            Block(3, ((9, 192, 384, 3, 1),)),
            Block(0, ((11, 384, 256, 3, 1),)),
            Block(0, ((13, 256, 256, 3, 1),)),
        ),
        True,
        21,
    ),
    "vgg": Layout(
        "ST-LPIPS-VGG",
        (
            _vgg_block(0, 0, 3, 64, 64),
            _vgg_block(2, 6, 64, 128, 128),
            _vgg_block(2, 12, 128, 256, 256, 256),
            _vgg_block(2, 20, 256, 512, 512, 512),
            _vgg_block(2, 28, 512, 512, 512, 512),
        ),
        False,
        18,
    ),
}


class StLpips(FeatureDistance):
    """ST-LPIPS: the distance by the features of an AlexNet or a VGG16 that tolerates shifts."""

    def __init__(self, layout: Layout, state: dict[str, Tensor]) -> None:
        """Take the weights `net.slice{block}.{index}.{weight, bias}` and `lin{block}.model.1.weight`, each (1, C, 1, 1)."""
        super().__init__(layout.label, layout.min_side, [state[f"lin{i}.model.1.weight"] for i in range(len(layout.blocks))])
        self.layout = layout
        self.blocks = nn.ModuleList()
        for number, block in enumerate(layout.blocks, 1):
            layers = nn.ModuleList()
            for index, in_channels, out_channels, kernel, padding in block.convolutions:
                convolution = nn.Conv2d(in_channels, out_channels, kernel, 1, padding)
                key = f"net.slice{number}.{index}"
                convolution.load_state_dict({name: state[f"{key}.{name}"] for name in ("weight", "bias")})
                layers.append(BlurredConvolution(convolution) if layout.is_blurred_first and index == 0 else convolution)
            self.blocks.append(layers)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor, *, tiled: bool = False) -> Iterator[Tensor]:
        """Yield the compared layers, each (N, C, h, w), of images (N, 3, H, W) in [-1, 1]; see FeatureDistance for `tiled`.

        Raises ShapeError for images smaller than the network needs.
        """
        x = self.standardised(images)
        if x.device.type == "cpu":  # where a max pool of this layout takes a tenth of the time
            x = x.contiguous(memory_format=torch.channels_last)
        for block, layers in zip(self.layout.blocks, self.blocks, strict=True):
            if block.pool_kernel:
                pooled = (
                    largest(x, block.pool_kernel)
                    if tiled and x.device.type == "cpu"
                    else functional.max_pool2d(x, block.pool_kernel, 1)
                )
                x = blurred(pooled)
            for convolution in layers:  # type: ignore[attr-defined]
                x = self.convolved(x, convolution, tiled=tiled)
            yield x


def largest(x: Tensor, kernel: int) -> Tensor:
    """Return max_pool2d of stride 1 and without padding, in a third of its time on a CPU; gradients differ where values are equal."""
    for dim in (-2, -1):
        shifted = [x.narrow(dim, k, x.shape[dim] - kernel + 1) for k in range(kernel)]
        x = reduce(torch.maximum, shifted)
    return x


def blurred(x: Tensor) -> Tensor:
    """Blur `x` (N, C, H, W) by 1 2 1 in both directions at every second pixel, reflected by two: (N, C, H // 2 + 1, ...).

    Sides are at least 3. An odd side gives (side + 1) // 2 + 1.
    """
    # Not a padding that reflects, whose gradient on CUDA differs from run to run, nor a grouped convolution, which is wrong on
    # some versions of MPS. The first blurred pixel reflects to the second; so does the last one of an odd side.
    for dim in (-2, -1):
        size = x.shape[dim]
        step = [slice(None, None, 2) if axis == dim + 4 else slice(None) for axis in range(4)]
        before, middle, after = (x.narrow(dim, k, size - 2)[tuple(step)] for k in range(3))
        inner = (before + 2 * middle + after) / 4
        last = inner.narrow(dim, -1, 1) if size % 2 else (x.narrow(dim, size - 2, 1) + x.narrow(dim, size - 1, 1)) / 2
        x = torch.cat([inner.narrow(dim, 0, 1), inner, last], dim)
    return x


class BlurredConvolution(nn.Module):
    """A convolution of stride 1, then `blurred`, as one convolution of stride 2 with a blurred kernel: a fifth of the time.

    The last pixels of an even side are blurred by 1 1, as what they reflect is their neighbour: they have kernels of their own.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take the convolution, whose kernel is square."""
        super().__init__()
        self.size, self.padding = convolution.kernel_size[0], int(convolution.padding[0])
        assert convolution.bias is not None
        self.bias = nn.Parameter(convolution.bias.detach())
        blurs = {"inner": torch.tensor([0.25, 0.5, 0.25]), "last": torch.tensor([0.5, 0.5])}
        self.kernels = nn.ParameterDict()
        for rows, vertical in blurs.items():
            for columns, horizontal in blurs.items():
                blur = torch.outer(vertical, horizontal)
                kernel = convolution.weight.detach().flatten(0, 1)[:, None]  # (out * in, 1, k, k)
                kernel = functional.conv2d(kernel, blur[None, None], padding=(len(vertical) - 1, len(horizontal) - 1))
                self.kernels[f"{rows}_{columns}"] = nn.Parameter(kernel.unflatten(0, convolution.weight.shape[:2])[:, :, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Return the blurred convolution of images (N, C, H, W)."""
        x = functional.pad(x, [self.padding] * 4)
        inner = self._along_rows(x, "inner")
        last = inner[:, :, -1:] if self._is_odd(x, 2) else self._along_rows(x[:, :, -self.size - 1 :], "last")
        return torch.cat([inner[:, :, :1], inner, last], 2)

    def _along_rows(self, x: Tensor, rows: str) -> Tensor:
        inner = functional.conv2d(x, self.kernels[f"{rows}_inner"], self.bias, stride=2)
        if self._is_odd(x, 3):
            last = inner[..., -1:]
        else:
            last = functional.conv2d(x[..., -self.size - 1 :], self.kernels[f"{rows}_last"], self.bias, stride=2)
        return torch.cat([inner[..., :1], inner, last], 3)

    def _is_odd(self, x: Tensor, dim: int) -> bool:
        """Whether the convolution has an odd side before the blur."""
        return (x.shape[dim] - self.size + 1) % 2 == 1


@cache
def load_st_lpips(name: str) -> StLpips:
    """Load ST-LPIPS with the network "alex" or "vgg" from the installed package stlpips-pytorch (BSD-2-Clause).

    Raises MissingWeightsError without the package, CorruptFileError if its file is not the known one.
    """
    return read_st_lpips(name, st_lpips_path(name))


def read_st_lpips(name: str, path: Path) -> StLpips:
    """Load ST-LPIPS from its file. Raises WeightFileError for a missing key, another shape, NaN or infinity."""
    hint = "turbovaed models pull st-lpips brings the file"
    try:
        network = StLpips(LAYOUTS[name], read_weights(path))
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip() if isinstance(error, RuntimeError) else f"it lacks {error}"
        raise WeightFileError(f"{path} does not make {LAYOUTS[name].label}: {reason}", hint) from error
    if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
        raise WeightFileError(f"{path} holds NaN or infinity", hint)
    return network
