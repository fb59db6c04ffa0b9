"""The first small teacher, of the embedded pair: an AutoencoderKLLTXVideo, 12:1, and its linear start."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo
from least_squares import Regression, principal, rows_of
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.video import to_model

FRAMES = 9  # of the clips that the start looks at
CONFIG = {
    "latent_channels": 32,
    "patch_size": 4,
    "block_out_channels": (64, 128),
    "down_block_types": ("LTXVideo095DownBlock3D",),
    "layers_per_block": (1, 1),
    "spatio_temporal_scaling": (True,),
    "downsample_type": ("spatiotemporal",),
    "decoder_block_out_channels": (128,),
    "decoder_layers_per_block": (4, 2),  # from the output back: four resnets after the upsampling, two before it
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False),
    # Residual down- and upsampling learns about ten times faster, and lets the network start linear.
    "upsample_residual": (True,),
    "upsample_factor": (2,),
    "encoder_causal": True,
    "decoder_causal": False,
}
_PATCH_PIXELS = 48  # 3 x 4 x 4, what the first and last convolution see per position


def build() -> AutoencoderKLLTXVideo:
    """The network with random weights."""
    return AutoencoderKLLTXVideo(**CONFIG)


def encode(model: AutoencoderKLLTXVideo, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, each (B, 32, t, h, w), of a video (B, 3, 1 + 2(t - 1), 8h, 8w)."""
    posterior = model.encode(video).latent_dist
    return posterior.mean, posterior.logvar


def decode(model: AutoencoderKLLTXVideo, latents: Tensor) -> Tensor:
    """The video of latents, not clamped."""
    return model.decode(latents).sample


def set_statistics(model: AutoencoderKLLTXVideo, mean: Tensor, std: Tensor) -> None:
    """Keep mean and standard deviation of each latent channel, which pipelines normalise with."""
    model.latents_mean.copy_(mean)
    model.latents_std.copy_(std)


# --- the start ----------------------------------------------------------------------------------------------------


def fold_patches(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> (B, 48, T, H/4, W/4), in the channel order of LTX's patches."""
    batch, channels, frames, height, width = video.shape
    x = video.reshape(batch, channels, frames, 1, height // 4, 4, width // 4, 4)
    return x.permute(0, 1, 3, 7, 5, 2, 4, 6).flatten(1, 4)


def fold_blocks(patches: Tensor) -> Tensor:
    """(B, C, T, h, w) -> (B, 8C, (T + 1) / 2, h/2, w/2), as LTX's downsampler does, which repeats the first frame."""
    x = torch.cat([patches[:, :, :1], patches], dim=2)
    x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def solve(features: Sequence[Tensor], targets: Sequence[Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    """Weights (out, in) and bias of the least squares map from (N, in) to (N, out)."""
    fit = Regression()
    fit.add(torch.cat(list(features)), torch.cat(list(targets)))
    return fit.solve(ridge)


@torch.no_grad()
def start_linear(model: AutoencoderKLLTXVideo, clips: Sequence[np.ndarray], extra: Sequence[np.ndarray]) -> None:
    """Set the network to a linear autoencoder: 32 principal components of blocks of 2x8x8 pixels, variance one.

    Residual branches start at zero. A norm without affine parameters divides contrast away, so some channels get a
    constant that outweighs the signal; the decoder carries every component twice, as +a and -a, because
    SiLU(a) - SiLU(-a) = a. What stays not linear is fitted by least squares in the two last convolutions.
    """
    for name, module in model.named_modules():
        if "resnets" in name and name.endswith("conv2.conv"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    videos = [to_model(clip[i : i + FRAMES, :256, :256])[None] for clip in clips for i in range(0, len(clip) - FRAMES, 40)]
    patches = [fold_patches(video) for video in videos]
    patch_basis, _ = principal(torch.cat([rows_of(x, 7) for x in patches]))  # (48, 48)
    block_basis, variances = principal(torch.cat([rows_of(fold_blocks(x), 2) for x in patches]))  # (384, 384)
    num_latents = model.config.latent_channels
    analysis = block_basis[:, :num_latents] / variances[:num_latents].sqrt()  # (384, 32)
    synthesis = (block_basis[:, :num_latents] * variances[:num_latents].sqrt()).T  # (32, 384)
    _start_encoder(model.encoder, patches[::2], patch_basis, analysis)
    _start_decoder(model, videos[::2], patches[::2], patch_basis, synthesis)


def _start_encoder(encoder: torch.nn.Module, patches: list[Tensor], patch_basis: Tensor, analysis: Tensor) -> None:
    first = encoder.conv_in.conv
    first.weight.zero_()
    first.bias.zero_()
    first.weight[:_PATCH_PIXELS, :, -1, 1, 1] = torch.eye(_PATCH_PIXELS)  # causal: the last tap is the present
    first.weight[_PATCH_PIXELS:].normal_(std=0.02)
    down = encoder.down_blocks[0].downsamplers[0].conv.conv
    num_components = 13  # of 16 channels per position; the others are constant
    down.weight.zero_()
    down.weight[:num_components, :_PATCH_PIXELS, -1, 1, 1] = 2 * patch_basis[:, :num_components].T
    down.bias[:num_components] = 4.0
    down.bias[num_components:] = 10.0
    features, targets = [], []
    for x in patches:
        hidden = encoder.mid_block(encoder.down_blocks[0](encoder.conv_in(x)))
        features.append(functional.silu(encoder.norm_out(hidden.movedim(1, -1))).flatten(0, -2))
        targets.append(rows_of(fold_blocks(x)) @ analysis)
    last, num_latents = encoder.conv_out.conv, analysis.shape[1]
    last.weight.zero_()
    last.weight[:num_latents, :, -1, 1, 1], last.bias[:num_latents] = solve(features, targets, 1e-6)
    last.bias[num_latents] = -7.0  # the log variance that all latents share


def _start_decoder(
    model: AutoencoderKLLTXVideo, videos: list[Tensor], patches: list[Tensor], patch_basis: Tensor, synthesis: Tensor
) -> None:
    decoder, num_latents, num_components, channels = model.decoder, len(synthesis), 24, 64
    first = decoder.conv_in.conv
    first.weight.mul_(0.05)
    first.bias.zero_()
    first.weight[:num_latents] = 0
    first.weight[:num_latents, :, 1, 1, 1] = torch.eye(num_latents)
    up = decoder.up_blocks[0].upsamplers[0].conv.conv
    wanted = torch.zeros(up.weight.shape[1], channels, 8)  # from channel, to (channel, place among 2x2x2)
    components = torch.einsum("lcp,ck->lkp", synthesis.unflatten(1, (_PATCH_PIXELS, 8)), patch_basis[:, :num_components])
    wanted[:num_latents, :num_components] = components
    wanted[:num_latents, num_components : 2 * num_components] = -components
    shortcut = torch.zeros_like(wanted)  # the upsampler's residual copies channel 8c + p to (16r + c, p)
    num_copied = up.weight.shape[1] // 8
    for channel in range(channels):
        for place in range(8):
            shortcut[channel % num_copied * 8 + place, channel, place] = 1
    up.weight.mul_(0.05)
    up.weight[:, :num_latents] = 0
    up.weight[:, :, 1, 1, 1] = (wanted - shortcut).flatten(1).T
    constants = torch.zeros(channels, 8)
    constants[2 * num_components :] = 3.0
    up.bias.copy_(constants.flatten())
    features, targets = [], []
    for video, x in zip(videos, patches, strict=True):
        hidden = decoder.mid_block(decoder.conv_in(model.encode(video).latent_dist.mean), None)
        hidden = decoder.up_blocks[0](hidden, None)
        features.append(functional.silu(decoder.norm_out(hidden.movedim(1, -1))).flatten(0, -2)[::5])
        targets.append(rows_of(x, 5))
    last = decoder.conv_out.conv
    last.weight.zero_()
    last.weight[:, :, 1, 1, 1], bias = solve(features, targets, 1e-5)
    last.bias.copy_(bias)
