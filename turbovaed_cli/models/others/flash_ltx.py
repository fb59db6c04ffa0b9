"""Flash-VAED's student of LTX-Video 0.9: convolutions only, some causal, so that its reach in time is finite.

Written from a description of the published file. Inside, videos are (B, C, t, h, w).
"""

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.models.layers import ChannelLayerNorm, ChannelRMSNorm, fold_time, pad_time, unfold_time
from turbovaed_cli.models.others.family import Memory, MemoryStream, OtherDecoder, Shapes, load_exactly, shapes_of, size_in
from turbovaed_cli.models.others.weights import ForeignWeights
from turbovaed_cli.registry.rows import MODELS

_PATCH, _TIME_RATIO, _SPACE_RATIO = 4, 8, 32
_LAYERS = (4, 3, 3, 3, 4)  # of the mid block and the up blocks
_DROPPED = ("mean_of_means", "std_of_means")  # in the published file, and unused by its code too


class _Full(nn.Module):
    """A 3x3x3 convolution, whose first and last frame are repeated; a stream lags by one frame."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        if memory is None:
            return cast(Tensor, self.conv(pad_time(x, 3)))
        x = _with_frames_before(self, x, memory, num_first=1)
        if memory.ends:
            x = torch.cat([x, x[:, :, -1:]], dim=2)
        if x.shape[2] < 3:
            return x.new_empty(x.shape[0], self.conv.out_channels, 0, *x.shape[3:])
        return cast(Tensor, self.conv(x))


class _CausalSeparable(nn.Module):
    """A depthwise convolution that sees two frames before each (at first, copies of the first one), then a pointwise one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, 3, padding=(0, 1, 1), groups=channels)
        self.pointwise = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        if not x.shape[2]:
            return x
        if memory is None:
            x = torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2)
        else:
            x = _with_frames_before(self, x, memory, num_first=2)
        return cast(Tensor, self.pointwise(self.depthwise(x)))


def _with_frames_before(layer: nn.Module, x: Tensor, memory: Memory, num_first: int) -> Tensor:
    """Put the two frames before `x` in front of it; at the start, `num_first` copies of its first frame."""
    before = memory.before(layer)
    if before is None:
        before = x[:, :, :1].expand(-1, -1, num_first if x.shape[2] else 0, -1, -1)
    x = torch.cat([before, x], dim=2)
    if x.shape[2]:
        memory.keep(layer, x[:, :, -2:])
    return x


class _FrameConv(nn.Conv2d):
    """A 2-D convolution of single frames."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2)

    def forward(self, input: Tensor, memory: Memory | None = None) -> Tensor:  # noqa: A002 - torch's own argument name
        return unfold_time(super().forward(fold_time(input)), input.shape[0]) if input.shape[2] else input


class _Shortcut(nn.Module):
    """A 1x1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x)) if x.shape[2] else x.new_empty(x.shape[0], self.conv.out_channels, *x.shape[2:])


class _Resnet(nn.Module):
    """Norm, SiLU and convolution, twice, plus the input: as it is, or with a norm and a convolution of its own."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module, shortcut: nn.Module | None = None, channels: int = 0) -> None:
        super().__init__()
        self.norm, self.conv1, self.conv2 = ChannelRMSNorm(), conv1, conv2
        if shortcut is not None:
            self.norm3, self.conv_shortcut = ChannelLayerNorm(channels), shortcut

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        same = self.conv_shortcut(self.norm3(x)) if hasattr(self, "conv_shortcut") else x
        x = self.conv1(functional.silu(self.norm(x)), memory)
        x = self.conv2(functional.silu(self.norm(x)), memory)
        if memory is not None:  # the convolutions lag, so the input waits for them
            before = memory.before(self)
            same = same if before is None else torch.cat([before, same], dim=2)
            memory.keep(self, same[:, :, x.shape[2] :])
            same = same[:, :, : x.shape[2]]
        return x + same


def _depthwise_resnet(channels: int) -> _Resnet:
    return _Resnet(_CausalSeparable(channels), _CausalSeparable(channels))


def _full_resnet(in_channels: int, out_channels: int) -> _Resnet:
    convs = _Full(in_channels, out_channels), _Full(out_channels, out_channels)
    return _Resnet(*convs, _Shortcut(in_channels, out_channels), in_channels)


def _frame_resnet(channels: int) -> _Resnet:
    return _Resnet(_FrameConv(channels, 3), _FrameConv(channels, 3), _FrameConv(channels, 1), channels)


class _Upsampler(nn.Module):
    """Double time, height and width, and drop the first frame of the clip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Full(channels, 8 * channels)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        x = self.conv(x, memory)
        batch, channels, frames, height, width = x.shape
        x = x.reshape(batch, channels // 8, 2, 2, 2, frames, height, width)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, channels // 8, 2 * frames, 2 * height, 2 * width)
        if memory is None:
            return x[:, :, 1:]
        is_first = memory.before(self) is None
        if x.shape[2]:
            memory.keep(self, x[:, :, :0])  # a mark: the first frame was dropped
        return x[:, :, 1:] if is_first else x


class _Block(nn.Module):
    """A resnet that changes channels, an upsampler, then resnets; the first two are optional."""

    def __init__(self, resnets: list[_Resnet], conv_in: _Resnet | None = None, upsampler: _Upsampler | None = None) -> None:
        super().__init__()
        if conv_in is not None:
            self.conv_in = conv_in
        if upsampler is not None:
            self.upsamplers = nn.ModuleList([upsampler])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        if hasattr(self, "conv_in"):
            x = self.conv_in(x, memory)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x, memory)
        for resnet in self.resnets:
            x = resnet(x, memory)
        return x


class _Network(nn.Module):
    """The layers by the names in the file; `widths` are those of the first blocks, the third and the fourth."""

    def __init__(self, latent_channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        wide, narrow, last = widths
        self.conv_in = _Full(latent_channels, wide)
        self.mid_block = _Block([_depthwise_resnet(wide) for _ in range(_LAYERS[0])])
        self.up_blocks = nn.ModuleList(
            [
                _Block([_depthwise_resnet(wide) for _ in range(_LAYERS[1])]),
                _Block([_depthwise_resnet(wide) for _ in range(_LAYERS[2])], None, _Upsampler(wide)),
                _Block([_full_resnet(narrow, narrow) for _ in range(_LAYERS[3])], _full_resnet(wide, narrow), _Upsampler(narrow)),
                _Block([_frame_resnet(last) for _ in range(_LAYERS[4])], _full_resnet(narrow, last), _Upsampler(last)),
            ]
        )
        self.norm_out = ChannelRMSNorm()
        self.conv_out = _Full(last, 3 * _PATCH**2)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        x = self.conv_in(x, memory)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, memory)
        x = self.conv_out(functional.silu(self.norm_out(x)), memory)
        batch, _, frames, height, width = x.shape
        x = x.reshape(batch, 3, _PATCH, _PATCH, frames, height, width)  # columns of a patch come first
        x = x.permute(0, 1, 4, 5, 3, 6, 2)
        return x.reshape(batch, 3, frames, _PATCH * height, _PATCH * width)


class FlashLTX(OtherDecoder):
    """The decoder of Flash_VAED_LTX.pth. It takes raw latents; a stream lags by 47 pixel frames."""

    family = "flash-vaed-ltx"
    licence = "unknown: the file's source has no licence; its README names those of Wan and LTX"
    teachers: ClassVar[tuple[str, ...]] = ("ltx",)
    own_latents = "raw"
    latents = "raw"
    temporal_compression_ratio = _TIME_RATIO
    spatial_compression_ratio = _SPACE_RATIO
    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, latent_channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.teacher = "ltx" if latent_channels == MODELS["ltx"].teacher.latent_channels else None
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))
        self.decoder = _Network(latent_channels, widths)

    def frames_of(self, latents: Tensor, memory: Memory | None = None) -> Tensor:
        return cast(Tensor, self.decoder(latents, memory))

    @property
    def lookahead_frames(self) -> int:
        """The number of pixel frames by which a stream lags: those of every convolution that sees the next frame."""
        # Per block: the frames that one of its frames becomes, before and after it; two convolutions in a resnet.
        at_once = 8 + 8  # conv_in, and the upsampler of up_blocks.1, at the rate of the latents
        third = 2 * 4 + 4 + _LAYERS[3] * 2 * 2  # conv_in and upsampler at twice that rate, resnets at four times
        fourth = 2 * 2 + 2
        return at_once + third + fourth + 1

    def stream(self) -> MemoryStream:
        return MemoryStream(self)


def is_flash_ltx(shapes: Shapes) -> bool:
    """Whether a file with tensors of these shapes is Flash-VAED's student of LTX-Video."""
    return "decoder.mid_block.resnets.0.conv1.depthwise.weight" in shapes


def load_flash_ltx(weights: ForeignWeights) -> FlashLTX:
    """Return the decoder of a weight file; raises WeightFileError for keys that differ."""
    shapes = shapes_of(weights.state)
    wide, latent_channels = (size_in(shapes, "decoder.conv_in.conv.weight", axis) for axis in (0, 1))
    narrow, last = (size_in(shapes, f"decoder.up_blocks.{i}.conv_in.conv1.conv.weight", 0) for i in (2, 3))
    with torch.device("meta"):
        decoder = FlashLTX(latent_channels, (wide, narrow, last))
    state = {key: value for key, value in weights.state.items() if key not in _DROPPED}
    load_exactly(decoder, state, weights.path, _encoder_shapes() if _has_encoder(state) else None)
    mean, std = (tuple(value.tolist()) for value in (decoder.latents_mean, decoder.latents_std))
    decoder.space = LatentSpace(latent_channels, mean, std, 1.0, _TIME_RATIO, _SPACE_RATIO)
    return decoder


def _has_encoder(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("encoder.") for key in state)


def _encoder_shapes() -> dict[str, tuple[int, ...]]:
    """Return the keys of the teacher's encoder, which is in the published file."""
    with torch.device("meta"):
        vae = MODELS["ltx"].teacher.family.build(MODELS["ltx"].teacher.config)
    return {key: shape for key, shape in shapes_of(vae.state_dict()).items() if key.startswith("encoder.")}
