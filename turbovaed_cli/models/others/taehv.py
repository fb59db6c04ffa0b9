"""TAEHV: small causal decoders for many VAEs (MIT), in their base, super and wide widths, and LightTAE, the same network.

Written from a description of the published files. Inside, videos are (B, t, C, h, w), and pixels in [0, 1].
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import FrameCountError, SettingsError
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.models.others.family import (
    Memory,
    MemoryStream,
    OtherDecoder,
    Shapes,
    load_exactly,
    shapes_of,
    size_in,
)
from turbovaed_cli.models.others.weights import ForeignWeights
from turbovaed_cli.registry.specs import ModelSpec

WIDTHS = {"base": (256, 128, 64), "super": (512, 256, 128), "wide": (1024, 512, 256)}
_LAST = 64  # channels before the last convolution
_GROUP = 64  # channels of a group in a wide block
PATCHES = {3: 1, 12: 2, 48: 4}  # rows of the last convolution: patch size
_H3_CHANNELS, _H3_GROUP, _H3_SKIPPED = 24, 5, 3  # MiniMax-H3: 5 latents make 20 frames, of which the first 3 are dropped
_HUNYUAN15 = "hunyuan1.5"
# Teachers that channels and ratios name; 16 and 128 channels fit several.
_TEACHERS = {(48, 4, 16): "wan2.2", (32, 4, 16): _HUNYUAN15}

Activation = Callable[[], nn.Module]
Part = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """The numbers of one file: kind ("base", "super" or "wide"), latent channels, patch size and the three time strides.

    `widths` are the channels of the three stages; None: those that the kind was published with.
    """

    kind: str
    channels: int
    patch: int
    strides: tuple[int, int, int]
    widths: tuple[int, int, int] | None = None


class MemoryBlock(nn.Module):
    """Convolutions over each frame and the one before it, plus the frame; `final` is the activation of the sum.

    The frames of a batch are one after another: (B * t, C, h, w).
    """

    def __init__(self, conv: nn.Sequential, final: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.final = final

    def forward(self, x: Tensor, batch: int, memory: Memory | None) -> Tensor:
        clips = x.split(x.shape[0] // batch)
        before = memory.before(self) if memory is not None else None  # (B, 1, C, h, w)
        firsts = [torch.zeros_like(x[:1])] * batch if before is None else list(before)
        if memory is not None:
            memory.keep(self, torch.stack([clip[-1:] for clip in clips]))
        # In four dimensions throughout: in five, `cat` would give up the channels-last layout.
        past = torch.cat([frames for first, clip in zip(firsts, clips, strict=True) for frames in (first, clip[:-1])])
        return cast(Tensor, self.final(x + self.conv(torch.cat([x, past], dim=1))))


class Grow(nn.Module):
    """A 1x1 convolution whose outputs are `stride` frames for each: (N, C, h, w) to (stride * N, C, h, w)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.stride == 1 else x.unflatten(1, (self.stride, -1)).flatten(0, 1)


class _SoftLimit(nn.Module):
    """Limit latents to -3 to 3, smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _upsampled(grow: Grow, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Double height and width, grow in time and convolve: (N, C, h, w) to (stride * N, C', 2h, 2w).

    The three layers are linear, so one convolution of the small frames computes them, with 2.3 times fewer operations: each of
    the four pixels of a doubled one sees only 2x2 of those.
    """
    if torch.compiler.is_exporting():  # a graph keeps the layers and their weights as they are in the file
        return cast(Tensor, conv(functional.interpolate(grow(x), scale_factor=2)))
    stride, following, (_, _, height, width) = grow.stride, conv.out_channels, x.shape
    growing = grow.conv.weight.view(stride, conv.in_channels, -1)  # (stride, C, C)
    weight = torch.einsum("ocij,scd->sodij", conv.weight, growing).flatten(0, 1)  # (stride * C', C, 3, 3)
    weight = torch.stack([_halved(rows, 3) for rows in _halved(weight, 2)])  # (row, column, stride * C', C, 2, 2)
    weight = weight.flatten(0, 2).contiguous(memory_format=torch.channels_last)
    made = functional.conv2d(x, weight, padding=1).unflatten(1, (2, 2, stride, following)).movedim(4, -1)
    rows = []  # (N, stride, h, w, column, C') of each; `made` is (N, row, column, stride, h + 1, w + 1, C')
    for row in (0, 1):
        columns = [made[:, row, column, :, row : row + height, column : column + width] for column in (0, 1)]
        rows.append(torch.stack(columns, dim=4))
    frames = torch.stack(rows, dim=3).flatten(0, 1)  # (stride * N, h, row, w, column, C')
    return frames.flatten(3, 4).flatten(1, 2).movedim(3, 1)


def _halved(weight: Tensor, axis: int) -> Tensor:
    """Return the taps that the first and the second of two equal pixels see: (..., 3, ...) to (2, ..., 2, ...)."""
    before, at, after = weight.unbind(axis)
    return torch.stack([torch.stack([before, at + after], axis), torch.stack([before + at, after], axis)])


def _memory_block(kind: str, n: int, activation: Activation) -> MemoryBlock:
    if kind == "base":
        layers: list[nn.Module] = [_conv3(2 * n, n), activation(), _conv3(n, n), activation(), _conv3(n, n)]
        return MemoryBlock(nn.Sequential(*layers), activation())
    if kind == "super":
        layers = [
            nn.Conv2d(2 * n, 2 * n, 7, padding=3, groups=2 * n, bias=False), nn.Conv2d(2 * n, 4 * n, 1), activation(),
            nn.Conv2d(4 * n, n, 1, bias=False),
        ]  # fmt: skip
        return MemoryBlock(nn.Sequential(*layers), nn.Identity())
    layers = [
        nn.Conv2d(2 * n, n, 1), activation(), _conv3(n, n, groups=n // _GROUP), activation(), nn.Conv2d(n, n, 1), activation(),
        _conv3(n, n, groups=n // _GROUP),
    ]  # fmt: skip
    return MemoryBlock(nn.Sequential(*layers), activation())


def _conv3(in_channels: int, out_channels: int, *, bias: bool = True, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias, groups=groups)


def _decoder(layout: Layout, activation: Activation) -> nn.ModuleList:
    """Return the layers in order; their places are the numbers in the keys of the files."""
    widths = layout.widths or WIDTHS[layout.kind]
    is_super = layout.kind == "super"
    if is_super:
        layers: list[nn.Module] = [nn.Conv2d(layout.channels, widths[0], 1, bias=False)]
    else:
        layers = [_SoftLimit(), _conv3(layout.channels, widths[0]), activation()]
    for width, following, stride in zip(widths, (*widths[1:], _LAST), layout.strides, strict=True):
        layers += [_memory_block(layout.kind, width, activation) for _ in range(3)]
        if is_super:
            layers += [_conv3(width, 4 * following), activation(), nn.PixelShuffle(2), Grow(following, stride)]
        else:
            layers += [nn.Upsample(scale_factor=2), Grow(width, stride), _conv3(width, following, bias=False)]
    if not is_super:
        layers.append(activation())
    return nn.ModuleList([*layers, _conv3(_LAST, 3 * layout.patch**2)])


class TAEHV(OtherDecoder):
    """The decoder of one TAEHV file: causal, so that it streams without a lag (but not for MiniMax-H3 and CogVideoX)."""

    family = "taehv"
    licence = "MIT"

    def __init__(self, layout: Layout, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.layout = layout
        self.latent_channels = layout.channels
        self.temporal_compression_ratio, self.spatial_compression_ratio = prod(layout.strides), 8 * layout.patch
        self.teacher = _TEACHERS.get((self.latent_channels, self.temporal_compression_ratio, self.spatial_compression_ratio))
        self.is_h3 = layout.channels == _H3_CHANNELS
        self.has_even_latents = False  # whether an even number of latents is that of a clip without a first frame alone
        self.makes_unit = True  # whether the network makes pixels in [0, 1], not in [-1, 1]
        self.decoder = _decoder(layout, activation)

    def take_raw(self, spec: ModelSpec, name: str | None, space: LatentSpace) -> None:
        super().take_raw(spec, name, space)
        # CogVideoX: its valid clips are 8k + 1 frames, odd numbers of latents, though each latent stands for 4 frames.
        self.has_even_latents = spec.teacher.frames.step > spec.teacher.time_ratio

    def pixel_frames(self, latent_frames: int) -> int:
        """Return T for t latent frames; raise FrameCountError for MiniMax-H3 unless t is 5n + 2."""
        if self.is_h3:
            if latent_frames % _H3_GROUP != 2:
                least = max((latent_frames - 2) // _H3_GROUP * _H3_GROUP + 2, 2)
                raise FrameCountError(
                    f"{latent_frames} latent frames: MiniMax-H3 makes 5n + 2", f"nearest: {least} or {least + _H3_GROUP}"
                )
            return latent_frames // _H3_GROUP * (4 * _H3_GROUP - _H3_SKIPPED) + 5
        return latent_frames * self.temporal_compression_ratio - self._num_dropped(latent_frames)

    def _num_dropped(self, latent_frames: int) -> int:
        """Return the number of frames at the start that no latent stands for."""
        keeps_all = self.has_even_latents and latent_frames % 2 == 0
        return 0 if keeps_all else self.temporal_compression_ratio - 1

    def frames_of(self, latents: Tensor, memory: Memory | None = None) -> Tensor:
        video = self.untrimmed(latents, memory)
        if self.is_h3:
            starts = range(0, video.shape[2], 4 * _H3_GROUP)
            video = torch.cat([video[:, :, at + _H3_SKIPPED : at + 4 * _H3_GROUP] for at in starts], dim=2)
        elif memory is None or not memory.num_latents:
            video = video[:, :, self._num_dropped(latents.shape[2]) :]
        return video * 2 - 1 if self.makes_unit else video

    def untrimmed(self, latents: Tensor, memory: Memory | None = None) -> Tensor:
        """Return every frame (B, 3, ratio * t, H, W) that the network makes, in its own range of pixels."""
        x = latents.movedim(2, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        for part in self._parts(len(latents), memory):
            x = self._run(part, x)
        last = cast(nn.Conv2d, self.decoder[-1])
        with torch.autocast(x.device.type, enabled=False):  # rounded to bf16, colours would shift by up to 1 in 255
            x = last(x.to(last.weight.dtype))
        if self.layout.patch > 1:
            x = functional.pixel_shuffle(x, self.layout.patch)
        return x.unflatten(0, (len(latents), -1)).movedim(1, 2)

    def _parts(self, batch: int, memory: Memory | None) -> Iterator[Part]:
        """Yield the functions of frames (B * t, C, h, w) before the last convolution; those that a fast form merges are one."""
        layers = iter(self.decoder[:-1])
        for layer in layers:
            if isinstance(layer, MemoryBlock):
                yield partial(layer, batch=batch, memory=memory)
            elif isinstance(layer, nn.Upsample):
                yield partial(_upsampled, cast(Grow, next(layers)), cast(nn.Conv2d, next(layers)))
            else:
                yield layer

    def _run(self, part: Part, x: Tensor) -> Tensor:
        return part(x)

    def stream(self) -> MemoryStream | None:
        """Return a new stream; None for MiniMax-H3 and CogVideoX, whose frames depend on the number of latents."""
        return None if self.is_h3 or self.has_even_latents else MemoryStream(self)


class LightTAE(TAEHV):
    """LightTAE: TAEHV's network on raw latents; that of HunyuanVideo 1.5 has another activation and range."""

    family = "lighttae"
    licence = "unknown: that of the file's source"
    teachers: ClassVar[tuple[str, ...]] = ("wan2.1", "wan2.2", "qwen-image", _HUNYUAN15)
    own_latents = "raw"
    latents = "raw"

    def __init__(self, layout: Layout, teacher: str) -> None:
        is_hunyuan = teacher == _HUNYUAN15
        super().__init__(layout, _LeakyReLU if is_hunyuan else nn.ReLU)
        self.teacher, self.makes_unit = teacher, not is_hunyuan


class _LeakyReLU(nn.LeakyReLU):
    def __init__(self) -> None:
        super().__init__(0.2)


# --- files --------------------------------------------------------------------------------------------------------


def is_taehv(shapes: Shapes) -> bool:
    """Whether a file with tensors of these shapes is TAEHV's, or LightTAE's, which has the same."""
    return "decoder.22.weight" in shapes and "decoder.17.conv.0.weight" in shapes


def load_taehv(weights: ForeignWeights) -> TAEHV:
    """Return the TAEHV decoder of a weight file; raises WeightFileError for keys that differ."""
    with torch.device("meta"):
        decoder = TAEHV(_layout_of(weights))
    load_exactly(decoder, weights.state, weights.path, _encoder_shapes(decoder.layout))
    return decoder


def load_lighttae(weights: ForeignWeights, teacher: str | None) -> TAEHV:
    """Return the LightTAE decoder of a weight file. Raises SettingsError unless `teacher` is one that it was published for."""
    if teacher not in LightTAE.teachers:
        found = f"not {teacher}" if teacher else "which its keys do not name"
        raise SettingsError(
            f"LightTAE takes the raw latents of one teacher, {found}", f"`teacher` {' or '.join(LightTAE.teachers)}"
        )
    with torch.device("meta"):
        decoder = LightTAE(_layout_of(weights), teacher)
    load_exactly(decoder, weights.state, weights.path, _encoder_shapes(decoder.layout))
    return decoder


def _layout_of(weights: ForeignWeights) -> Layout:
    """Return the numbers that the shapes of a file's tensors state; keys that are missing are named later."""
    shapes = shapes_of(weights.state)
    kind = "super" if "decoder.0.weight" in shapes else "wide" if "decoder.3.conv.6.weight" in shapes else "base"
    channels = size_in(shapes, f"decoder.{0 if kind == 'super' else 1}.weight", 1)
    grows = [f"decoder.{at}.conv.weight" for at in _grow_places(kind)]
    first, second, third = (2 if size_in(shapes, key, 0) == 2 * size_in(shapes, key, 1) else 1 for key in grows)
    return Layout(kind, channels, PATCHES.get(size_in(shapes, "decoder.22.weight", 0), 1), (first, second, third))


def _grow_places(kind: str) -> tuple[int, int, int]:
    return (7, 14, 21) if kind == "super" else (7, 13, 19)


def _encoder_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the keys of the encoder, which a file has and a decoder does not need."""
    n = 64
    shapes: dict[str, tuple[int, ...]] = {"0.weight": (n, 3 * layout.patch**2, 3, 3), "0.bias": (n,)}
    for number, stride in enumerate(sorted(layout.strides, reverse=True)):
        at = 2 + 5 * number
        shapes |= {f"{at}.conv.weight": (n, n * stride, 1, 1), f"{at + 1}.weight": (n, n, 3, 3)}
        for block in range(at + 2, at + 5):
            shapes |= {f"{block}.conv.0.weight": (n, 2 * n, 3, 3)}
            shapes |= {f"{block}.conv.{place}.weight": (n, n, 3, 3) for place in (2, 4)}
            shapes |= {f"{block}.conv.{place}.bias": (n,) for place in (0, 2, 4)}
    shapes |= {"17.weight": (layout.channels, n, 3, 3), "17.bias": (layout.channels,)}
    return {f"encoder.{key}": shape for key, shape in shapes.items()}
