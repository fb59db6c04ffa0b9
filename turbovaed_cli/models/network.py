"""The student's network: the published Turbo-VAED decoder, and cheaper, causal and smaller members of its family.

Attribute names are the keys of the published weight files (which carry the decoder without a prefix). Training-only parts,
the alignment heads, live in `training/alignment.py`; published files hold them too, and loading.py sets them aside.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import FrameCountError, SettingsError, ShapeError
from turbovaed_cli.models.layers import (
    BlockStyle,
    ChannelRMSNorm,
    MidBlock,
    TimeReplicatedConv3d,
    UpBlock,
    Upsampler2d,
    is_hooked,
    pixel_shuffle_3d,
)
from turbovaed_cli.registry.blocks import plan_blocks
from turbovaed_cli.registry.specs import FrameRule

ACTIVATIONS = ("relu", "silu")
TAILS = {"convs": (1, 2, 4), "patches": (1, 2, 4, 8)}  # what makes pixels at the end: the sizes of patches that it can have


class StudentNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The decoder of latents (B, C, t, h, w), in the teacher's raw latent space, to video (B, 3, T, H, W) in [-1, 1].

    Lists in the config are output-first, as published: the network runs `conv_in`, `mid_block`, `up_blocks.0..n` over
    them reversed. A block with `spatio_temporal_scaling` doubles time and space; with `decoder_spatio_only` space alone, with
    `decoder_temporal_only` time alone. The tail has one per-frame 2-D upsampling with `patch_size` 2, two with 4, none with 1;
    all end in norm, SiLU, convolution. With `decoder_change_in_upsampler`, the convolution of an upsampler
    changes the channels, not a resnet before it. Without doubled time, as for an image VAE, T is t.
    Any t >= 1 decodes; T is `pixel_frames(t)`. Raises SettingsError for a config that fits no network.
    Source: arXiv:2508.09136 and its published weights; `patch_size` 2 and `decoder_temporal_only` are additions.
    """

    _supports_gradient_checkpointing = True
    gradient_checkpointing = False  # the name that diffusers' enable_gradient_checkpointing() looks for

    @property
    def device(self) -> torch.device:
        """Where it computes. diffusers' property imports its group offloading, a second; without that, weights are where they are."""
        is_offloaded = "diffusers.hooks.group_offloading" in sys.modules
        return cast(torch.device, super().device) if is_offloaded else next(self.parameters()).device

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 128,
        out_channels: int = 3,
        decoder_block_out_channels: Sequence[int] = (64, 128, 256, 512),
        decoder_layers_per_block: Sequence[int] = (3, 2, 3, 1, 1),
        decoder_is_dw_conv: Sequence[bool] = (False, False, False, True, True),
        decoder_dw_kernel_size: int = 5,
        spatio_temporal_scaling: Sequence[bool] = (True, True, True, False),
        decoder_spatio_only: Sequence[bool] | None = None,
        patch_size: int = 4,
        patch_size_t: int = 1,
        is_video_dc_ae: bool = False,
        scaling_factor: float = 1.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        aligned_feature_projection_mode: str | None = None,
        aligned_feature_projection_dim: Sequence[Sequence[int]] | None = None,
        aligned_blks_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        decoder_causal: bool = False,
        resnet_norm_eps: float = 1e-6,
        teacher: str | None = None,
        decoder_temporal_only: Sequence[bool] | None = None,
        timestep_conditioning: bool = False,
        decoder_conv_types: Sequence[str] | None = None,
        decoder_tail: str = "convs",
        decoder_activation: str | None = None,
        decoder_change_in_upsampler: bool = False,
    ) -> None:
        super().__init__()
        plan = plan_blocks(
            decoder_block_out_channels,
            decoder_layers_per_block,
            decoder_is_dw_conv,
            spatio_temporal_scaling,
            decoder_spatio_only,
            decoder_temporal_only,
            decoder_conv_types,
        )
        _check_tail(decoder_tail, patch_size, plan[-1].channels)
        if decoder_activation is not None:
            check_choice("decoder_activation", decoder_activation, ACTIVATIONS)
        if patch_size_t != 1:
            raise SettingsError("patch_size_t > 1 was never part of the published student")
        if timestep_conditioning:  # pipelines add noise to the latents of a decoder that has it
            raise SettingsError("timestep_conditioning is on: a student takes latents alone")

        style = BlockStyle(depthwise_kernel=decoder_dw_kernel_size, causal=decoder_causal, activation=decoder_activation)
        self.conv_in = TimeReplicatedConv3d(latent_channels, plan[0].channels, causal=decoder_causal)
        self.mid_block = MidBlock(plan[0].channels, plan[0].num_layers, replace(style, conv=plan[0].conv))
        self.up_blocks = nn.ModuleList(
            UpBlock(
                before.channels,
                block.channels,
                block.num_layers,
                replace(style, conv=block.conv),
                upsample_space=block.upsample_space,
                upsample_time=block.upsample_time,
                drop_first_frame=not is_video_dc_ae,
                change_in_upsampler=decoder_change_in_upsampler,
            )
            for before, block in pairwise(plan)
        )
        self.norm_out = ChannelRMSNorm()
        self.act_out = style.make_activation()
        channels, pixels = plan[-1].channels, out_channels
        if decoder_tail == "patches":
            pixels = out_channels * patch_size**2
        else:
            if patch_size > 1:
                self.upsampler2d_1 = Upsampler2d(channels)
            if patch_size > 2:
                self.upsampler2d_2 = Upsampler2d(channels // 4)
            channels //= patch_size**2
        self.conv_out = TimeReplicatedConv3d(channels, pixels, causal=decoder_causal)

        num_space = sum(block.upsample_space for block in plan)
        num_time = sum(block.upsample_time for block in plan)
        self.spatial_compression_ratio = patch_size * 2**num_space
        self.temporal_compression_ratio = 2**num_time
        self.register_to_config(
            **facts_for_pipelines(latent_channels, self.temporal_compression_ratio, self.spatial_compression_ratio)
        )

    @property
    def tail_upsamplers(self) -> list[Upsampler2d]:
        """The 2-D upsamplings of the tail in running order; each doubles the height and width of single frames."""
        return [getattr(self, name) for name in ("upsampler2d_1", "upsampler2d_2") if hasattr(self, name)]

    @property
    def patch_out(self) -> int:
        """The side of the patches of pixels that the last convolution makes; 1: it makes pixels."""
        return int(self.config.patch_size) if self.config.decoder_tail == "patches" else 1

    def pixel_frames(self, latent_frames: int) -> int:
        """Return T, the number of pixel frames that the student makes of t latent frames."""
        if self.config.is_video_dc_ae:
            return latent_frames * int(self.temporal_compression_ratio)
        return (latent_frames - 1) * int(self.temporal_compression_ratio) + 1

    def latent_shape(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (C, t, h, w) of the latents that decode to `frames` pixel frames of `size` (height, width).

        Raises FrameCountError or ShapeError with the nearest possible values.
        """
        ratio, first = int(self.temporal_compression_ratio), 0 if self.config.is_video_dc_ae else 1
        rule = FrameRule(ratio, first)
        if frames < 1 or frames % ratio != first % ratio:
            least = first or ratio
            nearest_frames = sorted({max(rule.at_most(frames), least), max(rule.at_least(frames), least)})
            raise FrameCountError(
                f"this student makes {rule} frames, not {frames}",
                f"nearest: `frames` {' or '.join(map(str, nearest_frames))}",
            )
        space = int(self.spatial_compression_ratio)
        height, width = size
        if height % space or width % space or min(size) < space:
            nearest = [max(round(pixels / space), 1) * space for pixels in (width, height)]
            raise ShapeError(
                f"this student makes multiples of {space} pixels, not {width}x{height}",
                f"nearest: `size` {nearest[0]}x{nearest[1]}",
            )
        return self.config.latent_channels, (frames - first) // ratio + first, height // space, width // space

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1], not clamped."""
        x = self.conv_in(latents)
        x = self._run(self.mid_block, x)
        for block in self.up_blocks:
            x = self._run(block, x)
        return self._run(self._tail, x)

    # Whether `decode` without gradients uses the fast form; None: only on a CPU, where it is known to be faster. If it is
    # False, a stream has the channels-last layout and no other speedup.
    fast: bool | None = None
    fast_form_class: ClassVar[type[Any] | None] = None  # a FastDecoder with a choice of forms; None: FastDecoder itself
    fast_form_of: tuple[object, object] | None = None  # (these weights, their fast form): streaming.py fills it

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles: everything but the fast form."""
        return {name: value for name, value in self.__dict__.items() if name != "fast_form_of"}

    def check_latents(self, latents: Tensor) -> None:
        """Raise ShapeError unless `latents` are (B, latent_channels, t, h, w); any t is valid."""
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ShapeError(
                f"latents are {tuple(latents.shape)}: this student decodes (batch, {channels}, frames, height, width)"
            )

    def features(
        self, latents: Tensor, blocks: Sequence[str], *, with_sample: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Decode latents (B, C, t, h, w) and keep the outputs of `blocks` ("mid_block", "up_blocks.0", ...), in one pass.

        Returns (video (B, 3, T, H, W), {block: (B, C', t', h', w')}). Without `with_sample` it stops after the last of
        `blocks`, and the video is None. Raises SettingsError for an unknown block.
        """
        wanted = dict.fromkeys(blocks)
        found: dict[str, Tensor] = {}
        x = self.conv_in(latents)
        stages = [("mid_block", self.mid_block), *((f"up_blocks.{i}", block) for i, block in enumerate(self.up_blocks))]
        unknown = set(wanted) - {name for name, _ in stages}
        if unknown:
            raise SettingsError(f"this student has no block {sorted(unknown)[0]!r}", f"blocks: {', '.join(n for n, _ in stages)}")
        for name, block in stages:
            x = self._run(block, x)
            if name in wanted:
                found[name] = x
            if not with_sample and len(found) == len(wanted):
                return None, found
        return self._run(self._tail, x), found

    def checkpoint_blocks(self, *, enable: bool) -> None:
        """Switch gradient checkpointing: training keeps the inputs of blocks and computes the rest again; gradients are equal."""
        if enable != self.gradient_checkpointing:
            self._set_gradient_checkpointing(enable, partial(checkpoint, use_reentrant=False, preserve_rng_state=False))

    def _run(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, self._gradient_checkpointing_func(part, x))
        return part(x)

    def before_last(self, x: Tensor) -> Tensor:
        """Return the input of `conv_out`: the part of the tail that works on single frames, of `x` (B, C, T, h, w).

        Its end and `conv_out` keep the precision of their weights under autocast. Rounding to bf16 would shift colours by up
        to 1 in 255, and the student would learn to compensate for that.
        """
        first, others = self.tail_upsamplers[:1], self.tail_upsamplers[1:]
        for upsampler in first:
            x = upsampler(self.act_out(self.norm_out(x)))
        last = self.conv_out.conv  # layerwise casting stores its weights in fewer bits than it computes in
        x = x.to(self.dtype if is_hooked(last) else last.weight.dtype)
        with _no_autocast(x.device):
            for upsampler in others:
                x = upsampler(self.act_out(self.norm_out(x)))
            return cast(Tensor, self.act_out(self.norm_out(x)))

    def _tail(self, x: Tensor) -> Tensor:
        x = self.before_last(x)
        with _no_autocast(x.device):
            return pixel_shuffle_3d(self.conv_out(x), 1, self.patch_out) if self.patch_out > 1 else cast(Tensor, self.conv_out(x))


# Keys of a saved config that follow from the others: pipelines read them from the configs of VAE classes.
DERIVED_KEYS = (
    "block_out_channels",
    "invert_scale_latents",
    "scale_factor_spatial",
    "scale_factor_temporal",
    "spatial_compression_ratio",
    "temporal_compression_ratio",
    "z_dim",
)


def facts_for_pipelines(latent_channels: int, time_ratio: int, space_ratio: int) -> dict[str, Any]:
    """Return the config keys of VAE classes that diffusers pipelines read, for a student of these ratios.

    They are written into config.json for other readers. Loading computes them again, whatever the file has.
    """
    return {
        "temporal_compression_ratio": time_ratio,
        "spatial_compression_ratio": space_ratio,
        "scale_factor_temporal": time_ratio,  # the names of Wan
        "scale_factor_spatial": space_ratio,
        "z_dim": latent_channels,
        "block_out_channels": [latent_channels] * space_ratio.bit_length(),  # CogVideoX reads its length: log2(ratio) + 1
        "invert_scale_latents": False,  # read by image-to-video of CogVideoX, which needs an encoder
    }


def _check_tail(tail: str, patch_size: int, channels: int) -> None:
    """Raise SettingsError for a tail that does not exist, or one whose upsamplings cannot divide the last block's channels."""
    check_choice("decoder_tail", tail, tuple(TAILS))
    if patch_size not in TAILS[tail]:
        *sizes, largest = map(str, TAILS[tail])
        raise SettingsError(
            f"patch_size is {patch_size}; with decoder_tail {tail} it can be {', '.join(sizes)} or {largest}",
            "other ratios come from blocks that upsample",
        )
    if tail == "convs" and channels % patch_size**2:
        raise SettingsError(
            f"decoder_block_out_channels begins with {channels}, which patch_size {patch_size} divides by {patch_size**2}",
            f"give a multiple of {patch_size**2}",
        )


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):  # such as meta, on which only shapes are computed
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def num_params(module: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())
