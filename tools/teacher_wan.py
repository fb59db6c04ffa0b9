"""The second small teacher: an AutoencoderKLWan with residual blocks and patches of two, 48:1, and its linear start.

The class upsamples by repeating pixels and convolving, so within a block it tells places apart only by what neighbours say:
no weights make it the exact inverse of principal components. `start_linear` gets within about two decibels of them, layer
after layer by least squares; training goes on from there.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    patchify,
    unpatchify,
)
from least_squares import Regression, principal, rows_of
from teacher_clips import batch_at
from torch import Tensor, nn
from torch.nn import functional

FRAMES = 9  # of the clips that the start looks at
NUM_VIDEOS = 300
# RMS norm divides the size of a signal away, unless a constant outweighs it; and there SiLU is nearly linear.
_SHIFT = 5.0
_RIDGE = 3e-4  # keeps the start from learning its clips by heart
LATENTS = 16
CONFIG = {
    "base_dim": 24,
    "decoder_base_dim": 32,
    "z_dim": LATENTS,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "latents_mean": [0.0] * LATENTS,
    "latents_std": [1.0] * LATENTS,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}


def build() -> AutoencoderKLWan:
    """The network with random weights; it takes whole clips at once."""
    vae = AutoencoderKLWan(**CONFIG)
    for module in vae.modules():
        if isinstance(module, WanResample):
            module.forward = types.MethodType(_resample_whole, module)
    return vae


def _resample_whole(self: WanResample, x: Tensor, feat_cache: None = None, feat_idx: None = None) -> Tensor:
    """What the class computes on a clip piece by piece, at once: without its cache it would leave time as it is."""
    if self.mode == "upsample3d" and x.shape[2] > 1:
        x = _twice_the_frames(self, x)
    frames = x.shape[2]
    x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).transpose(1, 2)
    if self.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
    return x


def _twice_the_frames(up: WanResample, x: Tensor) -> Tensor:
    """(B, C, t, h, w) -> (B, C, 1 + 2 (t - 1), h, w): two frames of every one but the first."""
    later = up.time_conv(x[:, :, 1:]).unflatten(1, (2, -1)).movedim(1, 3)  # (B, C, t - 1, 2, h, w)
    return torch.cat([x[:, :, :1], later.flatten(2, 3)], dim=2)


def encode(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, each (B, 16, t, h, w), of a video (B, 3, 1 + 4(t - 1), 8h, 8w)."""
    mean, log_variance = vae.quant_conv(vae.encoder(patchify(video, 2))).chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The video of latents, not clamped."""
    return unpatchify(vae.decoder(vae.post_quant_conv(latents), first_chunk=True), 2)


def set_statistics(vae: AutoencoderKLWan, mean: Tensor, std: Tensor) -> None:
    """Keep mean and standard deviation of each latent channel, which pipelines normalise with."""
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


# --- the start ----------------------------------------------------------------------------------------------------

Cut = Callable[[Tensor], Tensor]  # a video (B, 3, T, H, W) to what is looked at per position: (B, D, T', h, w)


def blocks(video: Tensor, frames: int, side: int) -> Tensor:
    """The pixels of blocks: (B, 3, frames, side^2, T', H / side, W / side). The clip's first frame, repeated, is a block of its own."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, frames - 1, -1, -1), video], dim=2)
    x = video.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, frames))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(3, 4)


def whole(frames: int, side: int) -> Cut:
    """All pixels of a block."""
    return lambda video: blocks(video, frames, side).flatten(1, 3)


def mean(frames: int, side: int) -> Cut:
    """A block's mean over time."""
    return lambda video: blocks(video, frames, side).mean(dim=2).flatten(1, 2)


def still(frames: int, side: int) -> Cut:
    """All pixels of a block in which each frame stands still."""
    return lambda video: blocks(video, 1, side).expand(-1, -1, frames, -1, -1, -1, -1).flatten(1, 3)


def changes(frames: int, side: int) -> Cut:
    """The mean change between the two frames of each pair of a block, over two."""

    def of(video: Tensor) -> Tensor:
        pairs = blocks(video, frames, side).unflatten(2, (-1, 2)).mean(dim=2)
        return (pairs[:, :, 1] - pairs[:, :, 0]).flatten(1, 2) / 2

    return of


def change(frames: int, side: int) -> Cut:
    """By how much the second half of a block differs from its first, over two."""

    def of(video: Tensor) -> Tensor:
        halves = blocks(video, frames, side).unflatten(2, (2, -1)).mean(dim=3)
        return (halves[:, :, 1] - halves[:, :, 0]).flatten(1, 2) / 2

    return of


class Components:
    """The first principal components of what a cut gives, each with variance one: a video to (B, count, T', h, w)."""

    def __init__(self, videos: Sequence[Tensor], cut: Cut, count: int) -> None:
        self.cut = cut
        rows = torch.cat([rows_of(cut(video), 3) for video in videos])
        self.mean = rows.mean(0)
        vectors, variances = principal(rows - self.mean)
        self.weights = vectors[:, :count] / variances[:count].clamp(min=1e-7).sqrt()

    def __call__(self, video: Tensor, cut: Cut | None = None) -> Tensor:
        return (((cut or self.cut)(video).movedim(1, -1) - self.mean) @ self.weights).movedim(-1, 1)


@contextmanager
def _without_branches() -> Iterator[None]:
    """Leave residual branches out, which add nothing yet, while the start is fitted."""
    forwards = {kind: kind.forward for kind in (WanResidualBlock, WanAttentionBlock)}
    WanResidualBlock.forward = lambda self, x, **_: self.conv_shortcut(x)
    WanAttentionBlock.forward = lambda self, x: x
    try:
        yield
    finally:
        for kind, forward in forwards.items():
            kind.forward = forward


@torch.no_grad()
def start_linear(vae: AutoencoderKLWan, clips: Sequence[np.ndarray], extra: Sequence[np.ndarray]) -> None:
    """Set the network to nearly its best linear autoencoder: latents are 16 principal components of blocks of 4x8x8 pixels."""
    for name, parameter in vae.named_parameters():
        if ".conv2." in name or ".proj." in name:
            parameter.zero_()
    with _without_branches():
        _start(vae, clips, extra)


def _start(vae: AutoencoderKLWan, clips: Sequence[np.ndarray], extra: Sequence[np.ndarray]) -> None:
    videos = [batch_at(clips, extra, 0, -1 - i, size=1, crop=96, frames=FRAMES) for i in range(NUM_VIDEOS)]
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        _copy(convolution, convolution.weight.shape[1])
    latents = Components(videos, whole(4, 8), LATENTS)
    _start_encoder(vae.encoder, videos, latents)
    _start_decoder(vae, videos)


def _copy(convolution: nn.Conv3d, count: int) -> None:
    """Let a convolution pass its first `count` channels on, and nothing else."""
    convolution.weight.zero_()
    convolution.bias.zero_()
    time, height, width = convolution.kernel_size
    for channel in range(count):
        convolution.weight[channel, channel, time - 1, height // 2, width // 2] = 1


def _set(convolution: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Give the first channels of a convolution these weights (out, in * kernel), and the others zeros."""
    count = len(bias)
    convolution.weight.zero_()
    convolution.bias.zero_()
    convolution.weight[:count] = weight.unflatten(1, convolution.weight.shape[1:])
    convolution.bias[:count] = bias


def _seen(x: Tensor, step: int = 1) -> Tensor:
    """What a causal convolution of 3x3x3 sees at every `step`-th position: (N, C * 27)."""
    x = functional.pad(x, (1, 1, 1, 1, 2, 0)).unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
    return x.movedim(1, 4).flatten(4).flatten(0, 3)[::step]


def _frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B * T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _start_encoder(encoder: nn.Module, videos: Sequence[Tensor], latents: Components) -> None:
    """Down from pixels to components of blocks of 2x4x4, of 4x8x8, and to the latents."""
    _copy(encoder.conv_in, 12)
    first, second, _ = encoder.down_blocks
    width, wide = CONFIG["base_dim"], 2 * CONFIG["base_dim"]
    _copy(second.resnets[0].conv_shortcut, width)
    entering = [encoder.conv_in(patchify(video, 2)) for video in videos]
    of_two, of_four = Components(videos, whole(2, 4), width), Components(videos, mean(4, 8), wide - 20)
    entering = _start_down(first, entering, videos, lambda video: of_two(video, still(2, 4)), of_two)
    alone = _both(lambda video: of_four(video, mean(2, 8)), Components(videos, change(2, 8), 12))
    together = _both(of_four, Components(videos, change(4, 8), 8), Components(videos, changes(4, 8), 4))
    entering = _start_down(second, entering, videos, alone, together, shift=_SHIFT)
    for bias in (second.downsampler.time_conv.bias, second.downsampler.resample[1].bias):
        bias[-8:] = _SHIFT
    fit = Regression()
    for x, video in zip(entering, videos, strict=True):
        x[:, -8:] += _SHIFT
        hidden = encoder.mid_block(encoder.down_blocks[2](x))
        fit.add(_seen(functional.silu(encoder.norm_out(hidden))), rows_of(latents(video)))
    _set(encoder.conv_out, *fit.solve(_RIDGE))
    encoder.conv_out.bias[LATENTS:] = -7.0


def _start_down(
    block: nn.Module, entering: Sequence[Tensor], videos: Sequence[Tensor], alone: Cut, together: Cut, shift: float = 0
) -> list[Tensor]:
    """Fit a block's downsampler in space, to what is wanted of each step `alone`, as of a clip's first, then in time; return its outputs.

    `shift` is added to what is fitted.
    """
    down, space, time = block.downsampler, Regression(), Regression()
    for x, video in zip(entering, videos, strict=True):
        below = _frames(block.resnets[0](x)).unfold(2, 2, 2).unfold(3, 2, 2)  # (T, C, h, w, 2, 2)
        steps = block.avg_shortcut(_frames(x)[:, :, None])[:, :, 0].transpose(0, 1)[None]  # (1, C, T, h, w)
        wanted = alone(video)
        space.add(below.movedim(1, 3).flatten(3).flatten(0, 2), rows_of(wanted - steps[:, : wanted.shape[1]]))
    weight, bias = space.solve(_RIDGE)
    count = len(bias)
    down.resample[1].weight.zero_()
    down.resample[1].bias.zero_()
    down.resample[1].weight[:count, :, :2, :2] = weight.unflatten(1, (-1, 2, 2))
    down.resample[1].bias[:count] = bias + shift
    for x, video in zip(entering, videos, strict=True):
        frames = down.resample(_frames(block.resnets[0](x)))[None].transpose(1, 2).unfold(2, 3, 2)  # (1, C, t, h, w, 3)
        rest = together(video) + shift - block.avg_shortcut(x)[:, :count]
        time.add(frames.movedim(1, 4).flatten(4).flatten(0, 3), rows_of(rest[:, :, 1:]))
    _set(down.time_conv, *time.solve(_RIDGE))
    return [block(x) for x in entering]


def _start_decoder(vae: AutoencoderKLWan, videos: Sequence[Tensor]) -> None:
    """Carry the latents up, beside components of the mean and the change of blocks of 8x8 pixels over four frames, two, and one; then pixels.

    A block adds what enters to what leaves, so a channel that is passed on doubles, in a clip's first frame as in all others.
    """
    decoder, channels, signals = vae.decoder, 2 * CONFIG["decoder_base_dim"], CONFIG["decoder_base_dim"] // 2 - 4
    num_changes = channels // 5
    place = Components(videos, mean(4, 8), channels - LATENTS - num_changes)
    difference = Components(videos, change(2, 8), num_changes)
    pairs = [(encode(vae, video)[0], video) for video in videos]
    fit = Regression()
    for latents, video in pairs:
        nothing = latents.new_zeros(1, num_changes, *latents.shape[2:])
        fit.add(_seen(latents), rows_of(torch.cat([latents, nothing, place(video)], dim=1)))
    _set(decoder.conv_in, *fit.solve(_RIDGE))
    inputs = [decoder.mid_block(decoder.conv_in(latents)) for latents, _ in pairs]

    def of_two(video: Tensor, x: Tensor) -> Tensor:
        of_latent = x[:, :, 1:].repeat_interleave(2, dim=2)
        doubled = 2 * place(video, mean(2, 8))[:, :, 1:] - of_latent[:, LATENTS + num_changes :]
        return torch.cat([of_latent[:, :LATENTS], difference(video)[:, :, 1:], doubled], dim=1)

    def of_one(video: Tensor, x: Tensor) -> Tensor:
        kept = x[:, : LATENTS + num_changes, 1:].repeat_interleave(2, dim=2)
        doubled = 2 * place(video, mean(1, 8))[:, :, 1:]
        return torch.cat([kept, doubled.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)], dim=1)

    first, second, last = decoder.up_blocks
    _copy_in_space(first.upsampler.resample[1])
    inputs = _start_up(first, inputs, videos, of_two)
    inputs = _start_up(second, inputs, videos, of_one, lambda video: patchify(video, 2))
    shortcut = last.resnets[0].conv_shortcut
    shortcut.weight.zero_()
    shortcut.bias.zero_()
    for signal in range(signals):  # each twice, as SiLU(a) - SiLU(-a) = a
        shortcut.weight[2 * signal, signal] = 1
        shortcut.weight[2 * signal + 1, signal] = -1
    shortcut.bias[2 * signals :] = 4.0
    fit = Regression()
    for x, video in zip(inputs, videos, strict=True):
        hidden = functional.silu(decoder.norm_out(last(x)))
        fit.add(_seen(hidden, 7), rows_of(patchify(video, 2), 7))
    _set(decoder.conv_out, *fit.solve(_RIDGE))


def _both(*cuts: Cut) -> Cut:
    return lambda video: torch.cat([cut(video) for cut in cuts], dim=1)


def _copy_in_space(convolution: nn.Conv2d) -> None:
    convolution.weight.zero_()
    convolution.bias.zero_()
    for channel in range(len(convolution.bias)):
        convolution.weight[channel, channel, 1, 1] = 1


def _through(block: nn.Module, x: Tensor) -> Tensor:
    for resnet in block.resnets:
        x = resnet(x)
    return x


def _start_up(
    block: nn.Module,
    inputs: Sequence[Tensor],
    videos: Sequence[Tensor],
    in_time: Callable[[Tensor, Tensor], Tensor],
    in_space: Cut | None = None,
) -> list[Tensor]:
    """Fit a block's upsampler in time, and in space if anything is wanted there; return the block's outputs.

    `in_time` is what is wanted, (B, C, 2t, h, w), of a video and the block's input (B, C, 1 + t, h, w).
    """
    up, time, space = block.upsampler, Regression(), Regression()
    for x, video in zip(inputs, videos, strict=True):
        wanted = in_time(video, x).unflatten(2, (-1, 2)).movedim(3, 1).flatten(1, 2)  # (B, 2 C, t, h, w)
        taps = functional.pad(_through(block, x)[:, :, 1:], (0, 0, 0, 0, 2, 0)).unfold(2, 3, 1)
        time.add(taps.movedim(1, 4).flatten(4).flatten(0, 3), rows_of(wanted))
    _set(up.time_conv, *time.solve(_RIDGE))
    if in_space is not None:
        for x, video in zip(inputs, videos, strict=True):
            wanted = in_space(video)
            fine = up.resample[0](_frames(_twice_the_frames(up, _through(block, x))))
            taps = functional.unfold(fine, 3, padding=1).transpose(1, 2).flatten(0, 1)
            rest = wanted - block.avg_shortcut(x, first_chunk=True)[:, : wanted.shape[1]]
            space.add(taps[::5], rows_of(rest, 5))
        _set(up.resample[1], *space.solve(_RIDGE))
    return [block(x, first_chunk=True) for x in inputs]
