"""How close a video comes to its source. Videos are (3, T, H, W) or batches (B, 3, T, H, W), fp32 in [-1, 1], fixed range.

Nothing here looks at the minimum or maximum of its input: a wrong contrast is an error, and it is measured as one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import MissingWeightsError, ShapeError
from turbovaed_cli.video import to_unit

MAX_PSNR_DB = 100.0  # of identical videos, where the formula says infinity and JSON cannot
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


@dataclass(frozen=True)
class Metric:
    """One row of METRICS."""

    name: str
    unit: str
    higher_is_better: bool
    measure: Callable[[Tensor, Tensor], float]


def psnr(video: Tensor, source: Tensor) -> float:
    """Peak signal-to-noise ratio of a clip in dB: -10 log10 of the mean squared error over all its pixels, range 1.

    Both (3, T, H, W) in [-1, 1]. At most MAX_PSNR_DB.
    """
    error = (to_unit(video.double()) - to_unit(source.double())).square().mean().item()
    return MAX_PSNR_DB if error == 0 else min(-10 * math.log10(error), MAX_PSNR_DB)


def ssim(video: Tensor, source: Tensor) -> float:
    """Structural similarity of a clip (3, T, H, W) in [-1, 1]: the mean over frames and channels; at most 1.

    Source: Wang et al. 2004, with its Gaussian window of 11x11, sigma 1.5, K 0.01 and 0.03, range 1, on each of R, G and
    B, where the window fits whole.
    """
    return float(ssim_value(video[None].double(), source[None].double()))


def ssim_value(video: Tensor, source: Tensor) -> Tensor:
    """`ssim` over a batch (B, 3, T, H, W) in [-1, 1] as a scalar with a gradient. ShapeError below 11x11 pixels."""
    height, width = video.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ShapeError(
            f"SSIM needs {SSIM_WINDOW}x{SSIM_WINDOW} pixels at least; this is {width}x{height}", "use a larger --size"
        )
    a, b = (to_unit(x).movedim(2, 1).reshape(-1, 1, height, width) for x in (video, source))  # (B*T*3, 1, H, W)
    mean_a, mean_b, square_a, square_b, product = (_blur(x) for x in (a, b, a * a, b * b, a * b))
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (numerator / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean()


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window, where it fits whole: along rows, then columns."""
    distance = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    return functional.conv2d(functional.conv2d(x, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))


METRICS: dict[str, Metric] = {
    "psnr": Metric("psnr", "dB", True, psnr),
    "ssim": Metric("ssim", "", True, ssim),
}


# --- LPIPS --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trunk:
    """A backbone of LPIPS: its published file, and its layers as (index in the file, in, out, kernel, stride, padding)."""

    file_name: str  # torchvision's; the part behind the dash is the beginning of its sha256
    num_bytes: int
    url: str
    convolutions: tuple[tuple[int, int, int, int, int, int], ...]
    pools_before: frozenset[int]  # indices of the convolutions that follow a max pool
    pool_kernel: int
    taps: frozenset[int]  # indices of the convolutions whose ReLU is compared


def _vgg_layers() -> tuple[tuple[int, int, int, int, int, int], ...]:
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    channels = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    return tuple((index, channels[i], channels[i + 1], 3, 1, 1) for i, index in enumerate(indices))


TRUNKS = {
    "vgg": Trunk(
        "vgg16-397923af.pth",
        553_433_881,
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        _vgg_layers(),
        frozenset({5, 10, 17, 24}),
        2,
        frozenset({2, 7, 14, 21, 28}),
    ),
    "alex": Trunk(
        "alexnet-owt-7be5be79.pth",
        244_408_911,
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        ((0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1), (8, 384, 256, 3, 1, 1), (10, 256, 256, 3, 1, 1)),
        frozenset({3, 6}),
        3,
        frozenset({0, 3, 6, 8, 10}),
    ),
}


class Lpips(nn.Module):
    """Learned perceptual distance between images (N, 3, H, W) in [-1, 1], (N,); 0 is equal, larger is further.

    Source: Zhang et al. 2018: features of a classifier, unit length over channels, squared difference, learned weights
    per channel, mean over places, sum over layers.
    """

    def __init__(self, trunk: Trunk, state: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
        """`state`: torchvision's state dict of the backbone; `linear`: the weights `lin{i}.model.1.weight`, (1, C, 1, 1)."""
        super().__init__()
        self.trunk = trunk
        self.convolutions = nn.ModuleDict()
        for index, in_channels, out_channels, kernel, stride, padding in trunk.convolutions:
            convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
            convolution.load_state_dict({name: state[f"features.{index}.{name}"] for name in ("weight", "bias")})
            self.convolutions[str(index)] = convolution
        for i in range(len(trunk.taps)):
            self.register_buffer(f"linear_{i}", linear[f"lin{i}.model.1.weight"])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distance of each pair, (N,)."""
        distance = torch.zeros(images.shape[0], device=images.device)
        for i, (a, b) in enumerate(zip(self.features(images), self.features(others), strict=True)):
            weighted = functional.conv2d((_unit_length(a) - _unit_length(b)) ** 2, cast(Tensor, getattr(self, f"linear_{i}")))
            distance = distance + weighted.mean(dim=(1, 2, 3))
        return distance

    def features(self, images: Tensor) -> list[Tensor]:
        """The compared layers, each (N, C, h, w)."""
        x = (images - cast(Tensor, self.shift)) / cast(Tensor, self.scale)
        found = []
        for name, convolution in self.convolutions.items():
            if int(name) in self.trunk.pools_before:
                x = functional.max_pool2d(x, self.trunk.pool_kernel, 2)
            x = functional.relu(convolution(x))
            if int(name) in self.trunk.taps:
                found.append(x)
        return found


def _unit_length(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def trunk_path(name: str) -> Path | None:
    """Where the backbone of LPIPS ("vgg", "alex") lies in torch's hub cache (TORCH_HOME); None where it is not."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / TRUNKS[name].file_name
    return path if path.is_file() else None


@cache
def load_lpips(name: str) -> Lpips:
    """LPIPS with the backbone "vgg" or "alex". Raises MissingWeightsError where that is not on this machine.

    The learned weights come from torchmetrics, which ships them (Apache-2.0).
    """
    path = trunk_path(name)
    if path is None:
        raise MissingWeightsError(
            f"LPIPS needs {TRUNKS[name].file_name}, which is not on this machine", f"turbovaed models pull lpips-{name}"
        )
    linear = files("torchmetrics").joinpath(f"functional/image/lpips_models/{name}.pth")
    with linear.open("rb") as file:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    return Lpips(TRUNKS[name], torch.load(path, map_location="cpu", weights_only=True), weights)


@torch.no_grad()
def lpips_video(network: Lpips, video: Tensor, source: Tensor) -> float:
    """Mean LPIPS over the frames of a clip, both (3, T, H, W) in [-1, 1]; frame by frame, so memory does not grow with T."""
    return float(torch.stack([network(video[:, i][None], source[:, i][None])[0] for i in range(video.shape[1])]).mean())
