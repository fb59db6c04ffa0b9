"""The fitted start: initial weights of a student by least squares, instead of random ones."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.models.layers import (
    DepthwiseSeparableConv3d,
    ResnetBlock,
    SpaceThenTimeConv3d,
    UpBlock,
    pixel_shuffle_3d,
)
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.trainable import Trainable
from turbovaed_cli.training.least_squares import MOST_FEATURES, NUM_ROWS, at_places, fit_convolution, places_in, run_convolution

STARTS = ("plain", "fitted")
# Signals small enough for SiLU to be nearly linear, and the root mean square of all channels with the constants among them,
# which dominate the norms; the best of nine pairs tried.
_SIGNAL, _STEADY = 0.25, 1.8
_ABOVE_ZERO = 4.0  # standard deviations of a signal that are added to it where ReLU follows, which is linear there
_LEAST_SPREAD = 1e-4  # of the signals' targets: less is rounding noise, which must not be scaled up to a signal
_FLAT = 2 / 255  # standard deviation of pixels in [-1, 1]: one level of 8 bits

Layer = Callable[[Tensor], Tensor]


def are_flat(videos: Sequence[Tensor]) -> bool:
    """Whether clips (1, 3, T, H, W) in [-1, 1] all show the same flat colour, so that a decoder cannot be fitted to them."""
    pixels = torch.cat([video.movedim(1, -1).reshape(-1, 3) for video in videos])
    return bool((pixels - pixels.mean(dim=0)).square().mean().sqrt() < _FLAT)


def can_fit(student: Trainable) -> bool:
    """Whether the start of this student can be fitted."""
    return isinstance(student, StudentDecoder)


@torch.no_grad()
def fit_start(student: StudentDecoder, clips: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Set a fresh student, in place, to a nearly linear decoder fitted by least squares, layer by layer.

    `clips` are pairs of latents (1, C, t, h, w) and their video (1, 3, T, H, W) in [-1, 1]. Every residual branch starts at
    zero, so only the layers that change the resolution or the channels remain. Each of these is fitted to the picture at its
    resolution, with the norm and the activation before it as they are. The targets are blocks of pixels, reduced to as many
    principal components as there are channels, and mixed so that no channel is too large for the activation. A norm without
    weights would remove contrast, so some channels carry a constant. Training then starts from a linear decoder instead of noise.
    """
    for module in student.modules():
        if isinstance(module, ResnetBlock):
            last = cast(
                Any, module.conv2.pointwise_conv if isinstance(module.conv2, DepthwiseSeparableConv3d) else _full(module.conv2)
            )
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    fit = _Fit(student, clips)
    fit.layer(student.conv_in, lambda x: x, time=1, space=1)
    fit.pass_through(student.mid_block)
    for block in student.up_blocks:
        assert isinstance(block, UpBlock)
        if hasattr(block, "conv_in"):
            fit.layer(block.conv_in.conv_shortcut, block.conv_in.norm3, time=1, space=1)
        if hasattr(block, "upsamplers"):
            upsampler = cast(Any, block.upsamplers[0])
            fit.layer(upsampler.conv, lambda x: x, time=upsampler.time, space=upsampler.space)
        for resnet in block.resnets:
            fit.pass_through(resnet)

    def ready(x: Tensor) -> Tensor:
        return student.act_out(student.norm_out(x))

    for upsampler2d in student.tail_upsamplers:
        fit.layer(upsampler2d.conv, ready, time=1, space=2)
    fit.layer(student.conv_out, ready, time=1, space=student.patch_out, last=True)


class _Fit:
    """The activations of every clip before the next layer, and the upsampling that is left up to pixels."""

    def __init__(self, student: StudentDecoder, clips: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.drops_first = not student.config.is_video_dc_ae
        self.latents = [latents for latents, _ in clips]
        self.videos = [video for _, video in clips]
        self.now = self.latents
        self.time, self.space = int(student.temporal_compression_ratio), int(student.spatial_compression_ratio)
        self.first = True
        self.has_relu = student.config.decoder_activation == "relu"

    def pass_through(self, layer: nn.Module) -> None:
        self.now = [layer(x) for x in self.now]

    def layer(self, layer: nn.Module, before: Layer, *, time: int, space: int, last: bool = False) -> None:
        """Fit a convolution to the picture after it, which has `time` and `space` times its input's resolution; then run it."""
        convolution, causal = _full(layer), bool(getattr(layer, "causal", False))
        self.time, self.space = self.time // time, self.space // space
        channels = convolution.out_channels // (time * space * space)
        inputs = [before(x) for x in self.now]
        targets = [self._target(index, channels, time, last) for index in range(len(inputs))]
        if not last:
            targets = self._as_channels(targets, channels)
        targets = [unshuffle(target, time, space) for target in targets]
        _solve(convolution, inputs, targets, causal=causal)
        first = time - 1 if self.drops_first else 0
        outputs = [run_convolution(convolution, x, causal=causal) for x in inputs]
        self.now = outputs if time == space == 1 else [pixel_shuffle_3d(x, time, space)[:, :, first:] for x in outputs]
        self.first = False

    def _target(self, index: int, channels: int, time: int, last: bool) -> Tensor:
        """Return a layer's target for one clip: blocks of pixels (1, 3 * time * space * space, t, h, w), or first the latents."""
        if self.first and channels > self.latents[index].shape[1]:
            return self.latents[index]
        # The first latent frame of a causal teacher stands for one frame, which the student's upsampling doubles and drops.
        missing = (self.time * time - 1) if self.drops_first else 0
        video = torch.cat([self.videos[index][:, :, :1]] * missing + [self.videos[index]], dim=2)
        return video if last else unshuffle(video, self.time, self.space)

    def _as_channels(self, targets: Sequence[Tensor], channels: int) -> list[Tensor]:
        """Return mixed principal components of the targets at a common scale, and constants in the channels left over."""
        num_signals = min(targets[0].shape[1], channels - channels // 5)
        rows = torch.cat([_rows(target)[:: max(1, target[0, 0].numel() // NUM_ROWS)] for target in targets]).cpu()
        rows = rows.double() if rows.shape[1] <= MOST_FEATURES else rows[:: max(1, len(rows) // MOST_FEATURES)]
        center = rows.mean(dim=0)
        basis = _principal(rows - center, num_signals)
        basis = basis @ _mixture(basis.shape[1]).to(rows)
        squares = ((rows - center) @ basis).square().mean(dim=0)
        scale = _SIGNAL / squares.mean().sqrt().clamp(min=_LEAST_SPREAD)
        above = _ABOVE_ZERO * scale * squares.sqrt() if self.has_relu else torch.zeros_like(squares)
        offset = above.float().to(targets[0].device)
        constant = _STEADY * (channels / max(channels - num_signals, 1)) ** 0.5
        center, basis, made = center.float().to(targets[0].device), (basis * scale).float().to(targets[0].device), []
        for target in targets:
            signals = torch.einsum("bcthw,cs->bsthw", target - center.view(-1, 1, 1, 1), basis) + offset.view(1, -1, 1, 1, 1)
            constants = signals.new_full((1, channels - signals.shape[1], *signals.shape[2:]), constant)
            made.append(torch.cat([signals, constants], dim=1))
        return made


def _principal(rows: Tensor, num: int) -> Tensor:
    """Return the directions of largest variance of centered rows (N, dims), as (dims, num), the largest first."""
    if rows.shape[1] <= MOST_FEATURES:
        _, vectors = torch.linalg.eigh(rows.T @ rows)
        return vectors.flip(1)[:, :num]
    # For students with high compression, blocks of ten thousand pixels: their covariance would take gigabytes and an hour.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.pca_lowrank(rows, q=min(num, *rows.shape), center=False, niter=4)[2]


def _mixture(num: int) -> Tensor:
    """Return the (num, num) orthogonal map from principal components, the largest first, to channels that share their energy.

    Its rows are cosines, the largest component's the one that is equally strong in every channel. The mean over channels, which
    a layer norm removes, is the smallest component.
    """
    frequencies = sorted(range(num), key=lambda frequency: (frequency == 0, abs(frequency - num / 2)))
    angles = torch.pi / num * torch.tensor(frequencies, dtype=torch.float64)[:, None] * (torch.arange(num) + 0.5)
    return functional.normalize(angles.cos(), dim=1)


def _rows(x: Tensor) -> Tensor:
    """Reshape (B, C, ...) to (places, C)."""
    return x.movedim(1, -1).flatten(0, -2)


def unshuffle(x: Tensor, time: int, space: int) -> Tensor:
    """Reshape (B, C, T, H, W) to (B, C * space * space * time, t, h, w), the inverse of the student's decoupled pixel shuffle."""
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))  # (B, C, t, time, h, space, w, space)
    return x.permute(0, 1, 5, 7, 3, 2, 4, 6).flatten(1, 4)


def _full(layer: nn.Module) -> nn.Conv2d | nn.Conv3d:
    """Return the convolution that is fitted: of one that takes space and time apart that of space, as time begins as the identity."""
    inner = layer.spatial_conv if isinstance(layer, SpaceThenTimeConv3d) else getattr(layer, "conv", layer)
    return cast(nn.Conv2d | nn.Conv3d, inner)


def _solve(
    convolution: nn.Conv2d | nn.Conv3d, inputs: Sequence[Tensor], targets: Sequence[Tensor], *, causal: bool = False
) -> None:
    """Set weight and bias to the least squares map from the neighbourhoods of `inputs` to `targets`, both (1, C, t, h, w)."""
    generator = torch.Generator().manual_seed(0)
    places = [places_in(target.shape[2:], generator) for target in targets]
    rows = [at_places(target.cpu(), where) for target, where in zip(targets, places, strict=True)]
    fit_convolution(convolution, inputs, places, rows, causal=causal)
