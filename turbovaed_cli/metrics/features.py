"""The comparison that LPIPS and ST-LPIPS share: features of a network, their directions, learned weights on the channels."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.metrics.tiled import TiledConvolution, can_tile
from turbovaed_cli.models.scratch import Scratch


class FeatureDistance(nn.Module):
    """Learned perceptual distance (N,) between images (N, 3, H, W) in [-1, 1]; 0 is equal, lower is better.

    Source: Zhang et al. 2018 (arXiv:1801.03924): features of a classifier, unit length over channels, squared
    difference, learned weights per channel, mean over positions, sum over layers. Children give `features`.
    """

    def __init__(self, label: str, min_side: int, linear: Sequence[Tensor]) -> None:
        """Take the learned weights of the channels of each compared layer, each (1, C, 1, 1), and the least side in pixels."""
        super().__init__()
        self.label, self.min_side = label, min_side
        self._tiled: dict[nn.Module, TiledConvolution] = {}
        self._scratch = Scratch()
        for i, weights in enumerate(linear):
            self.register_buffer(f"linear_{i}", weights)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def _apply(self, *arguments: Any, **options: Any) -> Self:
        """Move or convert the network as torch does, and forget what was prepared of its weights."""
        self._tiled.clear()
        return super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor, others: Tensor, *, spatial: bool = False) -> Tensor:
        """Return the distance (N,) of each pair of images (N, 3, H, W) in [-1, 1], with a gradient to `images` alone.

        `spatial` resizes every layer to the size of the image before its mean is taken. Raises ShapeError for small images.
        """
        with torch.no_grad():
            compared_with = list(self.features(others))
        # No direction outlives its difference, as those of a layer take more memory than what a gradient needs of it.
        layers = zip(list(self.features(images)), compared_with, strict=True)
        differences = (_unit_length(a) - _unit_length(b) for a, b in layers)
        return self.weighted(differences, tuple(images.shape[2:]) if spatial else None)

    def weighted(self, differences: Iterable[Tensor], size: tuple[int, ...] | None = None) -> Tensor:
        """Return the distance (N,) by the differences of directions, (N, C, h, w) of each layer; `size` resizes every layer before its mean."""
        distance = torch.zeros((), device=cast(Tensor, self.shift).device)
        for i, difference in enumerate(differences):
            weighted = functional.conv2d(difference**2, cast(Tensor, getattr(self, f"linear_{i}")))
            if size is not None:
                weighted = functional.interpolate(weighted, size=size, mode="bilinear", align_corners=False)
            distance = distance + weighted.mean(dim=(1, 2, 3))
        return distance

    def features(self, images: Tensor, *, tiled: bool = False) -> Iterator[Tensor]:
        """Yield the compared layers, each (N, C, h, w), of images (N, 3, H, W) in [-1, 1].

        `tiled` allows convolutions without gradients that take less time on a CPU, and are equal within rounding.
        """
        raise NotImplementedError

    def convolved(self, x: Tensor, convolution: nn.Module, *, tiled: bool) -> Tensor:
        """Return a convolution of the network, then ReLU, of `x` (N, C, H, W); see `features`."""
        if tiled and x.device.type == "cpu" and isinstance(convolution, nn.Conv2d) and can_tile(convolution):
            if convolution not in self._tiled:
                self._tiled[convolution] = TiledConvolution(convolution, self._scratch)
            return self._tiled[convolution](x).relu_()
        return functional.relu(convolution(x))

    def standardised(self, images: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in the range that the network learnt from. Raises ShapeError for small images."""
        height, width = images.shape[2:]
        if min(height, width) < (least := self.min_side):
            raise ShapeError(
                f"{self.label} needs {least}x{least} pixels at least; this is {width}x{height}", "use a larger `size`"
            )
        return (images - cast(Tensor, self.shift)) / cast(Tensor, self.scale)


def _unit_length(x: Tensor) -> Tensor:
    # Clamped under the root: if all channels are zero, the root has no finite gradient, and NaN would spread.
    return x / (x.square().sum(dim=1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10)


@torch.no_grad()
def mean_distances(network: FeatureDistance, videos: Sequence[Tensor], source: Tensor, *, spatial: bool = False) -> list[float]:
    """Return the mean distance over frames of each video from the source, all (3, T, H, W) in [-1, 1].

    The features of a source frame are computed once, whatever the number of videos. It works frame by frame, so memory does not
    grow with T. Raises ShapeError for small frames.
    """
    device = cast(Tensor, network.shift).device
    size = tuple(source.shape[2:]) if spatial else None
    distances: list[list[Tensor]] = [[] for _ in videos]
    for i in range(source.shape[1]):
        # Dense planes: oneDNN takes a third longer for a frame whose channels lie side by side, as those of videos do.
        original, *frames = (clip[:, i][None].to(device).contiguous() for clip in (source, *videos))
        compared_with = [_unit_length(x) for x in network.features(original, tiled=True)]
        for frame, found in zip(frames, distances, strict=True):
            layers = zip(network.features(frame, tiled=True), compared_with, strict=True)
            found.append(network.weighted((_unit_length(a) - b for a, b in layers), size)[0])
    return [float(torch.stack(found).mean()) for found in distances]
