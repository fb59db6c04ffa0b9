"""Metrics from pixels alone: PSNR, SSIM and flicker. Clips are (3, T, H, W) fp32 in [-1, 1], fixed range.

No input is rescaled by its minimum or maximum: a wrong contrast is an error, and is measured as one.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.video import to_unit

MAX_PSNR_DB = 100.0  # of identical videos: the formula gives infinity, which JSON cannot hold
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
_REACH = SSIM_WINDOW // 2
_K1, _K2 = 0.01, 0.03
_LEVELS = 255  # of a pixel of 8 bits
HALF_RANGE = _LEVELS / 2  # levels of 8 bits per unit of [-1, 1]


def psnr(video: Tensor, source: Tensor) -> float:
    """Return the peak signal-to-noise ratio of a clip in dB: -10 log10 of the mean squared error over all pixels, range 1.

    Both (3, T, H, W) in [-1, 1]. From 0 (black for white) to MAX_PSNR_DB (identical); higher is better. Source: the
    definition, with one mean over the whole clip; a mean of the frames' PSNR is never lower than that.
    """
    errors = [(to_unit(a.double()) - to_unit(b.double())).square().mean() for a, b in _stretches(video, source, 1)]
    error = torch.stack(errors).mean().item()
    return MAX_PSNR_DB if error == 0 else min(-10 * math.log10(error), MAX_PSNR_DB)


def ssim(video: Tensor, source: Tensor) -> float:
    """Return the structural similarity of a clip, from -1 to 1 (identical): the mean over frames and channels.

    Both (3, T, H, W) in [-1, 1]. Source: Wang et al. 2004, with its Gaussian window of 11x11, sigma 1.5, K 0.01 and 0.03,
    range 1, on each of R, G and B, without padding. Raises ShapeError below 11x11 pixels.
    """
    # Frame by frame, so that the planes stay in the processor's cache: ten times faster than the clip at once.
    frames = [ssim_value(video[None, :, i : i + 1].double(), source[None, :, i : i + 1].double()) for i in range(video.shape[1])]
    return float(torch.stack(frames).mean())


def ssim_value(video: Tensor, source: Tensor) -> Tensor:
    """Return `ssim` over a batch, both (B, 3, T, H, W) in [-1, 1], as a scalar tensor with a gradient.

    Raises ShapeError below 11x11 pixels.
    """
    height, width = video.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ShapeError(
            f"SSIM needs {SSIM_WINDOW}x{SSIM_WINDOW} pixels at least; this is {width}x{height}", "use a larger `size`"
        )
    a, b = (to_unit(x).movedim(2, 1).reshape(-1, 1, height, width) for x in (video, source))  # (B*T*3, 1, H, W)
    mean_a, mean_b, squares, product = _blurred(a, b, a * a + b * b, a * b)
    mean_squares, mean_product = mean_a**2 + mean_b**2, mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    numerator = (2 * mean_product + c1) * (2 * (product - mean_product) + c2)
    return (numerator / ((mean_squares + c1) * (squares - mean_squares + c2))).mean()


def _blurred(*images: Tensor) -> Sequence[Tensor]:
    """Blur each image (N, 1, H, W) by the Gaussian window, without padding: to (N, 1, H - 10, W - 10)."""
    weights = _window()
    if images[0].device.type == "cpu":
        return [_blurred_by_sums(image, weights) for image in images]
    kernel = torch.tensor(weights, dtype=images[0].dtype).to(images[0].device)
    blurred: Tensor = _Blur.apply(torch.cat(images), kernel)  # type: ignore[no-untyped-call]
    return blurred.chunk(len(images))


def _window() -> list[float]:
    window = [math.exp(-((i - _REACH) ** 2) / (2 * SSIM_SIGMA**2)) for i in range(SSIM_WINDOW)]
    return [value / sum(window) for value in window]


class _Blur(torch.autograd.Function):
    """The window as two one-channel convolutions, for devices on which each launch costs time: 2 launches instead of 160.

    The convolutions are not grouped: grouped ones are wrong on some versions of MPS. No activations are kept for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        """Blur `x` (N, 1, H, W) to (N, 1, H - 10, W - 10); `kernel` is (11,)."""
        ctx.save_for_backward(kernel)
        return functional.conv2d(functional.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient (N, 1, H, W) of `x`, by the transposed convolutions in reverse order."""
        (kernel,) = ctx.saved_tensors
        rows = functional.conv_transpose2d(gradients[0], kernel.view(1, 1, -1, 1))
        return functional.conv_transpose2d(rows, kernel.view(1, 1, 1, -1)), None


def _blurred_by_sums(x: Tensor, weights: Sequence[float]) -> Tensor:
    """Blur `x` (N, 1, H, W) by shifted sums: on a CPU this takes a tenth of the time of a conv2d."""
    for dim in (-1, -2):
        length = x.shape[dim] - 2 * _REACH
        total = x.narrow(dim, _REACH, length) * weights[_REACH]
        for k in range(_REACH):
            total = total.add(x.narrow(dim, k, length) + x.narrow(dim, 2 * _REACH - k, length), alpha=weights[k])
        x = total
    return x


def flicker(video: Tensor, source: Tensor) -> float:
    """Return the error of a clip's changes from frame to frame: the root mean square, over pixels, of (change - source's change).

    Both (3, T, H, W) in [-1, 1], T at least 2 (ShapeError). In levels of 8 bits, from 0 to 510; lower is better. A constant
    error counts 0; an error that is random in every frame counts 1.41 times its root mean square. Source: dtSSD of Erofeev
    et al., "Perceptually motivated benchmark for video matting", BMVC 2015, on RGB.
    """
    if video.shape[1] < 2:
        raise ShapeError("flicker needs two frames at least", "use more `frames`")
    errors = [(to_unit(a.double()) - to_unit(b.double())) * _LEVELS for a, b in _stretches(video, source, 2)]
    return float(torch.stack([error.diff(dim=1).square().mean() for error in errors]).mean().sqrt())


def _stretches(video: Tensor, source: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both clips in windows of `length` frames, one starting at each frame: little memory on a GPU, and a CPU's cache.

    Raises ShapeError for clips of different shapes, and for fewer frames.
    """
    if video.shape != source.shape or video.shape[1] < length:
        raise ShapeError(
            f"a clip {tuple(video.shape)} cannot be compared with one {tuple(source.shape)}", "as many frames, of the same size"
        )
    for i in range(video.shape[1] - length + 1):
        yield video[:, i : i + length], source[:, i : i + length]
