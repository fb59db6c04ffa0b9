"""TurboV3 of daVinci-MagiHuman and MAGI-2: a decoder of Wan 2.2 latents that works in windows of latent frames.

Written from a description of the published files. Inside, videos are (B, C, t, h, w).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import FrameCountError, SettingsError, ShapeError
from turbovaed_cli.files.documents import fits, shown
from turbovaed_cli.models.layers import (
    ChannelRMSNorm,
    DepthwiseSeparableConv3d,
    TimeReplicatedConv3d,
    Upsampler2d,
    fold_time,
    pad_time,
    unfold_time,
)
from turbovaed_cli.models.loading import HEAD_PREFIX, check_config
from turbovaed_cli.models.others.family import Memory, OtherDecoder, Shapes, load_exactly
from turbovaed_cli.models.others.spaces import space_of
from turbovaed_cli.models.others.weights import ForeignWeights
from turbovaed_cli.registry.blocks import BlockPlan, plan_blocks
from turbovaed_cli.registry.rows import MODELS

_TIME_RATIO = 4
_SHORTCUT_EPS = 1e-6
_MOST_LATENTS = 1000  # of a window
_CHECKED = ("latent_channels", "decoder_block_out_channels", "decoder_layers_per_block", "decoder_is_dw_conv", "decoder_dw_kernel_size", "decoder_spatio_only")  # fmt: skip


@dataclass(frozen=True)
class Windows:
    """The latent frames that are decoded at once: `first` of them at the start of a clip, then `step` at a time."""

    first: int
    step: int

    def padded(self, latent_frames: int) -> int:
        """Return the number of latent frames of whole windows that hold this many."""
        return self.first + max(-(-(latent_frames - self.first) // self.step), 0) * self.step


class _TimeConv(nn.Module):
    """A convolution over three frames, whose first and last one are repeated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 2 * channels, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(pad_time(x, 3)))


class _Upsampler(nn.Module):
    """Double height and width, and with `in_time` the frames; the first one of a clip is then dropped."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        if in_time:
            self.time_conv = _TimeConv(channels)
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, *, is_first: bool) -> Tensor:
        if hasattr(self, "time_conv"):
            x = self.time_conv(x).unflatten(1, (2, x.shape[1])).movedim(1, 3).flatten(2, 3)
            x = x[:, :, 1:] if is_first else x
        return unfold_time(self.resample(fold_time(x)), x.shape[0])


class _Resnet(nn.Module):
    """Norm, activation and convolution, twice, plus the input, through a norm and a convolution if channels change."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | None, *, relu_first: bool = False) -> None:
        super().__init__()
        self.norm, self.first = ChannelRMSNorm(), nn.ReLU() if relu_first else nn.SiLU()
        self.conv1, self.conv2 = _conv(in_channels, out_channels, kernel), _conv(out_channels, out_channels, kernel)
        if in_channels != out_channels:
            self.conv_shortcut = _conv(in_channels, out_channels, kernel and 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        same = x
        if hasattr(self, "conv_shortcut"):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            scale = torch.rsqrt((wide * wide).mean(dim=1, keepdim=True) + _SHORTCUT_EPS)
            same = self.conv_shortcut((x * scale).to(x.dtype))
        x = self.conv1(self.first(self.norm(x)))
        return cast(Tensor, same + self.conv2(functional.silu(self.norm(x))))


def _conv(in_channels: int, out_channels: int, depthwise_kernel: int | None, kernel: int = 3) -> nn.Module:
    if depthwise_kernel is None:
        return TimeReplicatedConv3d(in_channels, out_channels, kernel)
    return DepthwiseSeparableConv3d(in_channels, out_channels, depthwise_kernel)


class _Block(nn.Module):
    """A resnet that changes channels, an upsampler, then resnets; the first two only where the plan has them."""

    def __init__(self, in_channels: int, plan: BlockPlan, kernel: int) -> None:
        super().__init__()
        channels, depthwise = plan.channels, kernel if plan.conv == "depthwise" else None
        if in_channels != channels:
            self.conv_in = _Resnet(in_channels, channels, depthwise)
        upsamples = plan.upsample_space or plan.upsample_time
        if upsamples:
            self.upsamplers = nn.ModuleList([_Upsampler(channels, in_time=plan.upsample_time)])
        self.resnets = nn.ModuleList(_Resnet(channels, channels, depthwise, relu_first=upsamples) for _ in range(plan.num_layers))

    def forward(self, x: Tensor, *, is_first: bool) -> Tensor:
        if hasattr(self, "conv_in"):
            x = self.conv_in(x)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x, is_first=is_first)
        for resnet in self.resnets:
            x = resnet(x)
        return x


class _Network(nn.Module):
    """The layers by the names in the file."""

    def __init__(self, latent_channels: int, plan: list[BlockPlan], kernel: int, *, unpatchifies: bool) -> None:
        super().__init__()
        last = plan[-1].channels
        self.conv_in = TimeReplicatedConv3d(latent_channels, plan[0].channels)
        self.mid_block = _Block(plan[0].channels, plan[0], kernel)
        self.up_blocks = nn.ModuleList(_Block(before.channels, block, kernel) for before, block in pairwise(plan))
        self.norm_out, self.unpatchifies = ChannelRMSNorm(), unpatchifies
        if not unpatchifies:
            self.upsampler2d_1 = Upsampler2d(last)
        self.conv_out = TimeReplicatedConv3d(last if unpatchifies else last // 4, 12 if unpatchifies else 3)

    def forward(self, x: Tensor, *, is_first: bool) -> Tensor:
        x = self.conv_in(x)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, is_first=is_first)
        x = functional.silu(self.norm_out(x))
        if not self.unpatchifies:
            x = functional.silu(self.norm_out(self.upsampler2d_1(x)))
        x = self.conv_out(x)
        if not self.unpatchifies:
            return x
        batch, _, frames, height, width = x.shape
        x = x.reshape(batch, 3, 2, 2, frames, height, width)  # columns of a patch come first
        return x.permute(0, 1, 4, 5, 3, 6, 2).reshape(batch, 3, frames, 2 * height, 2 * width)


class MagiHuman(OtherDecoder):
    """The decoder of a TurboV3 checkpoint. It decodes, and streams, window by window."""

    family = "magihuman"
    licence = "Apache-2.0"
    teachers: ClassVar[tuple[str, ...]] = ("wan2.2",)
    own_latents = "raw"  # its code takes normalised ones, and converts them first
    clamps = False
    temporal_compression_ratio = _TIME_RATIO

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        plan = plan_blocks(
            config["decoder_block_out_channels"],
            config["decoder_layers_per_block"],
            config["decoder_is_dw_conv"],
            config["decoder_spatio_temporal_scaling"],
            config.get("decoder_spatio_only"),
        )
        self.teacher = "wan2.2"
        self.latent_channels = config["latent_channels"]
        self.spatial_compression_ratio = 2 ** (1 + sum(block.upsample_space for block in plan))
        self.windows = Windows(config.get("first_chunk_size", 3), config.get("step_size", 5))
        unpatchifies, kernel = config.get("use_unpatchify", False), config.get("decoder_dw_kernel_size", 3)
        self.decoder = _Network(self.latent_channels, plan, kernel, unpatchifies=unpatchifies)

    def window(self, latents: Tensor, *, is_first: bool) -> Tensor:
        """Decode n raw latents at once: to 4 (n - 1) + 1 frames at the start of a clip, later to 4 n."""
        return cast(Tensor, self.decoder(latents, is_first=is_first))

    def frames_of(self, latents: Tensor, memory: Memory | None = None) -> Tensor:
        length = latents.shape[2]
        num_repeated = self.windows.padded(length) - length
        latents = torch.cat([latents, latents[:, :, -1:].expand(-1, -1, num_repeated, -1, -1)], dim=2)
        video = torch.cat(list(self._decoded(latents, 0)), dim=2)
        return video[:, :, : self.pixel_frames(length)]

    def _decoded(self, latents: Tensor, begin: int) -> Iterator[Tensor]:
        """Yield the frames of each window of whole clips' latents, from the window that begins at `begin` on."""
        first, step, end = self.windows.first, self.windows.step, latents.shape[2]
        if begin == 0:
            yield self.first_window(latents[:, :, : first + 1], is_last=end == first)
            begin = first
        for at in range(begin, end, step):
            yield self.later_window(latents[:, :, at - 1 : at + step + 1], is_last=at + step == end)

    def first_window(self, latents: Tensor, *, is_last: bool) -> Tensor:
        """Return the frames of the first latents, of which the last one is context unless the clip ends with them."""
        video = self.window(latents, is_first=True)
        return video if is_last else video[:, :, :-_TIME_RATIO]

    def later_window(self, latents: Tensor, *, is_last: bool) -> Tensor:
        """Return the frames of later latents. The first one is context, and the last one unless the clip ends with them."""
        video = self.window(latents, is_first=False)
        return video[:, :, _TIME_RATIO : None if is_last else -_TIME_RATIO]

    def stream(self) -> "WindowStream":
        return WindowStream(self)


class WindowStream:
    """A stream that decodes a window as soon as its latents, and the one after them, are there."""

    def __init__(self, decoder: MagiHuman) -> None:
        self._decoder = decoder
        self._start()

    def _start(self) -> None:
        self._waiting: Tensor | None = None  # own latents, from the one before the next window on
        self._is_first, self._num_latents, self._num_frames = True, 0, 0

    @property
    def lookahead_frames(self) -> int:
        """The most pixel frames by which the output lags; `finish` returns them."""
        windows = self._decoder.windows
        return max(windows.first * _TIME_RATIO - 3, windows.step * _TIME_RATIO)

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Take the next latent frames (B, C, n, h, w); return the pixel frames (B, 3, m, H, W) that they determine.

        Raises ShapeError if they do not fit the decoder or the latents before them.
        """
        decoder = self._decoder
        decoder.check_latents(latents)
        own = decoder.own(latents)
        if self._waiting is not None:
            if own.shape[:2] + own.shape[3:] != self._waiting.shape[:2] + self._waiting.shape[3:]:
                raise ShapeError(f"latents are {tuple(latents.shape)}: only the frames may differ from those before them")
            own = torch.cat([self._waiting, own], dim=2)
        self._waiting, self._num_latents = own, self._num_latents + latents.shape[2]
        video = self._made(self._whole_windows())
        self._num_frames += video.shape[2]
        return video

    def _whole_windows(self) -> Iterator[Tensor]:
        assert self._waiting is not None
        first, step = self._decoder.windows.first, self._decoder.windows.step
        if self._is_first and self._waiting.shape[2] > first:
            yield self._decoder.first_window(self._waiting[:, :, : first + 1], is_last=False)
            self._is_first, self._waiting = False, self._waiting[:, :, first - 1 :]
        while not self._is_first and self._waiting.shape[2] > step + 1:
            yield self._decoder.later_window(self._waiting[:, :, : step + 2], is_last=False)
            self._waiting = self._waiting[:, :, step:].clone()  # a view would keep the whole piece

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Return the remaining frames (B, 3, m, H, W); afterwards the next clip can begin.

        Raises FrameCountError if no latent frame was pushed.
        """
        if self._waiting is None or not self._num_latents:
            raise FrameCountError("no latents were pushed, so there is nothing to finish")
        decoder, left = self._decoder, self._waiting
        num_repeated = decoder.windows.padded(self._num_latents) - self._num_latents
        left = torch.cat([left, left[:, :, -1:].expand(-1, -1, num_repeated, -1, -1)], dim=2)
        last = decoder.first_window if self._is_first else decoder.later_window
        video = last(left, is_last=True)[:, :, : decoder.pixel_frames(self._num_latents) - self._num_frames]
        self._start()
        return video

    def _made(self, pieces: Iterator[Tensor]) -> Tensor:
        made = list(pieces)
        if made:
            return made[0] if len(made) == 1 else torch.cat(made, dim=2)
        assert self._waiting is not None
        batch, _, _, height, width = self._waiting.shape
        ratio = self._decoder.spatial_compression_ratio
        return self._waiting.new_empty(batch, 3, 0, height * ratio, width * ratio)


def is_magihuman(shapes: Shapes) -> bool:
    """Whether a file with tensors of these shapes is a TurboV3 checkpoint."""
    names = {key.partition("upsamplers.0.")[2] for key in shapes}
    return {"time_conv.conv.weight", "resample.1.weight"} <= names


def load_magihuman(weights: ForeignWeights, config: Mapping[str, Any]) -> MagiHuman:
    """Return the decoder of a weight file and the JSON of its constructor arguments.

    Raises SettingsError for a config that fits no decoder, WeightFileError for keys that differ.
    """
    check_config({name: config[name] for name in _CHECKED if name in config})
    for name, wanted in {"decoder_spatio_temporal_scaling": list[bool], "use_unpatchify": bool}.items():
        if name in config and not fits(config[name], wanted):
            raise SettingsError(f"the config's {name} is {shown(config[name])}", "give the JSON file of the checkpoint's source")
    for name in ("first_chunk_size", "step_size"):
        value = config.get(name, 1)
        if not fits(value, int) or not 1 <= value <= _MOST_LATENTS:
            raise SettingsError(f"the config's {name} is {shown(value)}", f"it may be 1 to {_MOST_LATENTS}")
    try:
        with torch.device("meta"):
            decoder = MagiHuman(config)
    except KeyError as error:
        raise SettingsError(f"the config has no {error.args[0]}", "give the JSON file of the checkpoint's source") from None
    prefix = "" if any(key.startswith("decoder.") for key in weights.state) else "decoder."
    state = {prefix + key: value for key, value in weights.state.items() if not key.startswith(HEAD_PREFIX)}
    load_exactly(decoder, state, weights.path)
    decoder.space = space_of(MODELS["wan2.2"])
    return decoder
