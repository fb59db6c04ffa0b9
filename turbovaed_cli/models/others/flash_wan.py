"""Flash-VAED's student of Wan 2.1: causal convolutions, and attention within each frame.

Written from a description of the published file. Inside, videos are (B, C, t, h, w).
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.models.layers import fold_time, unfold_time
from turbovaed_cli.models.others.family import Memory, MemoryStream, OtherDecoder, Shapes, load_exactly
from turbovaed_cli.models.others.spaces import space_of
from turbovaed_cli.models.others.weights import ForeignWeights
from turbovaed_cli.registry.rows import MODELS

_CHANNELS, _WIDTHS = 16, (384, 192, 24, 12)
_KEPT = 2  # frames that a convolution over three sees of those before


class _Norm(nn.Module):
    """Scale the channels of (B, C, ...) to a length of sqrt(C), then by `gamma`, which has `num_axes` more axes of 1."""

    def __init__(self, channels: int, num_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * num_axes))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * self.gamma.shape[0] ** 0.5 * self.gamma


class _Causal(nn.Conv3d):
    """A convolution that sees two frames before each, which are zeros at the start of a clip."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int] = (3, 3, 3), groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2), groups=groups)

    def forward(self, input: Tensor, memory: Memory | None = None) -> Tensor:  # noqa: A002 - torch's own argument name
        if self.kernel_size[0] == 1:
            return super().forward(input)
        before = memory.before(self) if memory is not None else None
        if before is None:
            before = torch.zeros_like(input[:, :, :1]).expand(-1, -1, _KEPT, -1, -1)
        x = torch.cat([before, input], dim=2)
        if memory is not None:
            memory.keep(self, x[:, :, -_KEPT:])
        return super().forward(x)


class _Separable(nn.Module):
    """A causal depthwise convolution, then a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.depthwise_conv = _Causal(in_channels, in_channels, (kernel,) * 3, groups=in_channels)
        self.pointwise_conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        return cast(Tensor, self.pointwise_conv(self.depthwise_conv(x, memory)))


class _Residual(nn.Module):
    """Norm, SiLU and a separable convolution, twice, plus the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # The places in the list are in the keys; that of a dropout is empty.
        self.residual = nn.ModuleList(
            [
                _Norm(in_channels), nn.SiLU(), _Separable(in_channels, out_channels),
                _Norm(out_channels), nn.SiLU(), nn.Identity(), _Separable(out_channels, out_channels),
            ]
        )  # fmt: skip
        self.shortcut = _Separable(in_channels, out_channels, kernel=1) if in_channels != out_channels else None

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        y = x
        for layer in self.residual:
            y = layer(y, memory) if isinstance(layer, _Separable) else layer(y)
        return y + (x if self.shortcut is None else self.shortcut(x, memory))


class _FrameResidual(nn.Module):
    """The same in 2-D, over single frames; the input always passes a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _Norm(channels, 2), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            _Norm(channels, 2), nn.SiLU(), nn.Identity(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = fold_time(x)
        return unfold_time(self.shortcut(frames) + self.residual(frames), x.shape[0])


class _Attention(nn.Module):
    """Attention with one head among the positions of each frame, plus the frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _Norm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = fold_time(x)
        query, key, value = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # (B * t, h * w, C)
        seen = functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        seen = seen.transpose(1, 2).unflatten(2, frames.shape[2:])
        return unfold_time(frames + self.proj(seen), x.shape[0])


class _Upsample(nn.Module):
    """Double height and width, and with `in_time` every frame but that of the first latent."""

    def __init__(self, in_channels: int, out_channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.time_conv = _Causal(in_channels, 2 * in_channels, (3, 1, 1)) if in_time else None

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        if self.time_conv is not None:
            num_alone = 1 if memory is None or not memory.num_latents else 0
            alone, others = x[:, :, :num_alone], x[:, :, num_alone:]
            if others.shape[2]:  # the stream of the time convolution begins with the second latent
                x = torch.cat([alone, self._doubled(others, memory)], dim=2)
        return unfold_time(self.resample(fold_time(x)), x.shape[0])

    def _doubled(self, x: Tensor, memory: Memory | None) -> Tensor:
        assert self.time_conv is not None
        pairs = self.time_conv(x, memory).unflatten(1, (2, x.shape[1]))  # (B, 2, C, t, h, w)
        return cast(Tensor, pairs.movedim(1, 3).flatten(2, 3))


class _Network(nn.Module):
    """The layers by the names in the file."""

    def __init__(self) -> None:
        super().__init__()
        wide, middle, narrow, last = _WIDTHS
        self.conv1 = _Causal(_CHANNELS, wide)
        self.middle = nn.ModuleList([_Residual(wide, wide), _Attention(wide), _Residual(wide, wide)])
        self.upsamples = nn.ModuleList(
            [
                *(_Residual(wide, wide) for _ in range(3)), _Upsample(wide, middle, in_time=True),
                _Residual(middle, wide), _Residual(wide, wide), _Residual(wide, wide), _Upsample(wide, narrow, in_time=True),
                *(_FrameResidual(narrow) for _ in range(3)), _Upsample(narrow, last, in_time=False),
                *(_FrameResidual(last) for _ in range(3)),
            ]
        )  # fmt: skip
        self.head = nn.ModuleList([_Norm(last), nn.SiLU(), _Causal(last, 3)])

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        for layer in (self.conv1, *self.middle, *self.upsamples, *self.head):
            x = layer(x, memory) if isinstance(layer, _Causal | _Residual | _Upsample) else layer(x)
        return x


class FlashWan(OtherDecoder):
    """The decoder of Flash_VAED_Wan.pth: causal, so that it streams without a lag.

    In the published code the memory of a stream is lost after 21 latents, which is 81 frames; here it never is.
    """

    family = "flash-vaed-wan"
    licence = "unknown: the file's source has no licence; its README names those of Wan and LTX"
    teachers: ClassVar[tuple[str, ...]] = ("wan2.1", "qwen-image")
    own_latents = "raw"  # its code takes normalised ones, and converts them first
    latent_channels = _CHANNELS
    temporal_compression_ratio = 4
    spatial_compression_ratio = 8

    def __init__(self) -> None:
        super().__init__()
        self.teacher = "wan2.1"
        self.conv2 = nn.Conv3d(_CHANNELS, _CHANNELS, 1)
        self.decoder = _Network()

    def frames_of(self, latents: Tensor, memory: Memory | None = None) -> Tensor:
        return cast(Tensor, self.decoder(self.conv2(latents), memory))

    def stream(self) -> MemoryStream:
        return MemoryStream(self)


def is_flash_wan(shapes: Shapes) -> bool:
    """Whether a file with tensors of these shapes is Flash-VAED's student of Wan 2.1."""
    return {"decoder.upsamples.3.time_conv.weight", "decoder.middle.0.residual.2.depthwise_conv.weight"} <= shapes.keys()


def load_flash_wan(weights: ForeignWeights) -> FlashWan:
    """Return the decoder of a weight file; raises WeightFileError for keys that differ."""
    with torch.device("meta"):
        decoder = FlashWan()
    encoder = {"conv1.weight": (2 * _CHANNELS, 2 * _CHANNELS, 1, 1, 1), "conv1.bias": (2 * _CHANNELS,)}
    load_exactly(decoder, weights.state, weights.path, encoder)
    decoder.space = space_of(MODELS["wan2.1"])
    return decoder
