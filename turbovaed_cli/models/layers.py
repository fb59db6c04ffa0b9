"""The building blocks of the student decoder, in the published form: rank-5 tensors, one module per operation.

Attribute names are the keys of the published weight files (arXiv:2508.09136). Causal convolutions, and those that take space
and time apart, are additions. Videos inside the network are (B, C, t, h, w).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import SettingsError

RMS_EPS = 1e-8
LAYER_NORM_EPS = 1e-6
MANY_OUTPUTS = 8  # channels; below, a 3-D convolution leaves most of a vector empty
SLOW_PATH = 20480  # batch * channels * frames * height up to which torch takes slow_conv3d instead of oneDNN
WORTH_COPYING = 32768  # elements of an input from which the faster convolution is worth the copy it needs


class ChannelRMSNorm(nn.Module):
    """Divide (B, C, ...) by the root mean square over channels, without weights; the variance is taken in fp32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance = (wide * wide).mean(dim=1, keepdim=True)  # the same values as a power, with a cheaper gradient
        return (x * torch.rsqrt(variance + RMS_EPS)).to(x.dtype)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, ...), with weight and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own argument name
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def pad_time(x: Tensor, kernel_size: int, *, causal: bool = False) -> Tensor:
    """Repeat the first and last frame of (B, C, t, h, w), (kernel_size - 1) / 2 times each; only space is padded with zeros.

    For a causal convolution the first frame is repeated kernel_size - 1 times, and the last one not at all.
    """
    reach = (kernel_size - 1) // 2
    if reach == 0:
        return x
    first, last = x[:, :, :1], x[:, :, -1:]
    return torch.cat([first] * (2 * reach) + [x] if causal else [first] * reach + [x] + [last] * reach, dim=2)


class TimeReplicatedConv3d(nn.Module):
    """A k x k x k convolution, stride 1: (B, C, t, h, w) to (B, O, t, h, w). A causal one sees no frame after its own.

    Two cases are computed in another way, several times faster (benchmarks/plain_vs_fast.py). With few outputs, as in the last
    layer, one 2-D convolution per frame makes the outputs of all three taps; these are added up, shifted by a frame. With an
    input so small that torch would take its slow path on a CPU, a 2-D convolution runs over the channels of three frames.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, causal: bool = False) -> None:
        super().__init__()
        reach = kernel_size // 2
        self.kernel_size, self.causal = kernel_size, causal
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=(0, reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        if is_hooked(self.conv):
            return cast(Tensor, self.conv(pad_time(x, self.kernel_size, causal=self.causal)))
        if self._has_few_outputs:  # repeats few outputs, not many inputs
            first, second, third = self._taps(x)
            if self.causal:
                return _later(_later(first) + second) + third
            return _later(first) + second + torch.cat([third[:, :, 1:], third[:, :, -1:]], dim=2)
        padded = pad_time(x, self.kernel_size, causal=self.causal)
        slow = padded.device.type == "cpu" and padded.shape[0] == 1 and padded[0, ..., 0].numel() <= SLOW_PATH
        if self.kernel_size == 3 and slow and padded.numel() >= WORTH_COPYING:
            return self._taps_as_channels(padded)
        return cast(Tensor, self.conv(padded))

    @property
    def _has_few_outputs(self) -> bool:
        return self.kernel_size == 3 and self.conv.out_channels < MANY_OUTPUTS

    def _taps_as_channels(self, padded: Tensor) -> Tensor:
        weight = self.conv.weight.movedim(2, 1).flatten(1, 2)  # (O, 3 * C, 3, 3), tap by tap
        frames = torch.cat([padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]], dim=1)  # (1, 3 * C, T, H, W)
        return unfold_time(functional.conv2d(fold_time(frames), weight, self.conv.bias, padding=1), 1)

    def _taps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what each frame gives by each of the three taps in time, the second with the bias: (B, O, T, H, W) each."""
        num_outputs, bias = self.conv.out_channels, self.conv.bias
        assert bias is not None
        weight = self.conv.weight.movedim(2, 0).flatten(0, 1)  # (3 * O, C, 3, 3), tap by tap
        once = functional.pad(bias, (num_outputs, num_outputs))
        taps = unfold_time(functional.conv2d(fold_time(x), weight, once, padding=1), x.shape[0])  # (B, 3 * O, T, H, W)
        return taps[:, :num_outputs], taps[:, num_outputs : 2 * num_outputs], taps[:, 2 * num_outputs :]


def _later(x: Tensor) -> Tensor:
    """Return (B, C, T, H, W) a frame later; its first frame is there twice."""
    return torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2)


def is_hooked(module: nn.Module) -> bool:
    """Whether accelerate or diffusers move or cast the weights of `module`, as offloading does.

    The weights are then in place only while the module's own `forward` runs, so nothing else may read them.
    """
    return "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module)


def fold_time(x: Tensor) -> Tensor:
    """Fold (B, C, T, H, W) to (B*T, C, H, W), channels innermost in memory: the fastest layout for few channels."""
    return x.movedim(2, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def unfold_time(x: Tensor, batch: int) -> Tensor:
    """Return (B*T, C, H, W) as (B, C, T, H, W), a view."""
    return x.unflatten(0, (batch, -1)).movedim(2, 1)


class DepthwiseSeparableConv3d(nn.Module):
    """A depthwise k x k x k convolution, then a pointwise one, both with bias: (B, C, t, h, w) to (B, O, t, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 5, *, causal: bool = False) -> None:
        super().__init__()
        reach = kernel_size // 2
        self.kernel_size, self.causal = kernel_size, causal
        self.depthwise_conv = nn.Conv3d(in_channels, in_channels, kernel_size, padding=(0, reach, reach), groups=in_channels)
        self.pointwise_conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise_conv(pad_time(x, self.kernel_size, causal=self.causal))
        if is_hooked(self.pointwise_conv):
            return cast(Tensor, self.pointwise_conv(x))
        # Over (T * H, W) in 2-D: as fast as in 3-D, and its gradient twice as fast.
        weight, bias = self.pointwise_conv.weight.squeeze(2), self.pointwise_conv.bias
        return functional.conv2d(x.flatten(2, 3), weight, bias).unflatten(2, x.shape[2:4])


class SpaceThenTimeConv3d(nn.Module):
    """A full 1 x 3 x 3 convolution in space, then a depthwise 3 x 1 x 1 one in time, (2+1)-D: (B, C, t, h, w) to (B, O, t, h, w).

    The first one has the bias. In time, the second one begins as the identity.
    """

    kernel_size = 3  # in time

    def __init__(self, in_channels: int, out_channels: int, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.spatial_conv = nn.Conv3d(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))
        self.temporal_conv = nn.Conv3d(out_channels, out_channels, (3, 1, 1), groups=out_channels, bias=False)
        with torch.no_grad():
            self.temporal_conv.weight.zero_()[:, :, 2 if causal else 1] = 1

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_time(self.spatial_conv(x), self.kernel_size, causal=self.causal)
        if is_hooked(self.temporal_conv):
            return cast(Tensor, self.temporal_conv(padded))
        frames = padded.shape[2] - 2
        taps = self.temporal_conv.weight.unbind(2)  # three products and sums: several times faster than the convolution
        made = sum_of(padded[:, :, i : i + frames] * tap.view(1, -1, 1, 1, 1) for i, tap in enumerate(taps))
        return made.to(padded.dtype)  # under autocast, weights in fp32 would make it fp32, unlike any convolution


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape, from the first one on."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


StudentConv = TimeReplicatedConv3d | DepthwiseSeparableConv3d | SpaceThenTimeConv3d


@dataclass(frozen=True)
class BlockStyle:
    """How the convolutions and activations of a block are made."""

    conv: str = "3d"  # of registry/blocks.py's CONV_TYPES
    depthwise_kernel: int = 5
    causal: bool = False
    activation: str | None = None  # "relu" or "silu" everywhere; None: as published

    def __post_init__(self) -> None:
        """Raise SettingsError for a kernel without a middle."""
        if self.depthwise_kernel % 2 == 0:
            raise SettingsError(f"decoder_dw_kernel_size is {self.depthwise_kernel}", "give an odd number, such as 3 or 5")

    def make_conv(self, in_channels: int, out_channels: int) -> StudentConv:
        """Return a convolution of a resnet."""
        if self.conv == "depthwise":
            return DepthwiseSeparableConv3d(in_channels, out_channels, self.depthwise_kernel, causal=self.causal)
        return self.make_full_conv(in_channels, out_channels)

    def make_full_conv(self, in_channels: int, out_channels: int) -> TimeReplicatedConv3d | SpaceThenTimeConv3d:
        """Return the convolution of an upsampler, which is never depthwise-separable."""
        if self.conv == "2+1d":
            return SpaceThenTimeConv3d(in_channels, out_channels, causal=self.causal)
        return TimeReplicatedConv3d(in_channels, out_channels, causal=self.causal)

    def make_activation(self, published: str = "silu") -> nn.Module:
        """Return the activation at a place where the published student has `published`."""
        return nn.ReLU() if (self.activation or published) == "relu" else nn.SiLU()


def pixel_shuffle_3d(x: Tensor, time: int, space: int = 2) -> Tensor:
    """Shuffle (B, C*space*space*time, t, h, w) to (B, C, time*t, space*h, space*w); channel ((c*2 + i)*2 + j)*time + t.

    "Decoupled": time is innermost, so after it is split off, the rest is an ordinary 2-D pixel shuffle per frame.
    """
    batch, channels, frames, height, width = x.shape
    x = x.movedim(2, 1).reshape(batch * frames, channels // time, time, height, width)
    x = x.transpose(1, 2).flatten(0, 1)  # (B*t*time, C*4, h, w): never more than five dimensions
    x = functional.pixel_shuffle(x, space)  # (B*t*time, C, 2h, 2w)
    return x.unflatten(0, (batch, frames * time)).movedim(2, 1)


class Upsampler3d(nn.Module):
    """A convolution to more channels, then the decoupled 3-D pixel shuffle: (B, C, t, h, w) to (B, C, T, H, W).

    It doubles time, space or both: `time` and `space` are the factors, and the convolution makes `time * space * space` times
    `out_channels` (by default, the channels stay). If time doubles, `drop_first_frame` drops the first frame, so that T is 2t - 1: the first latent frame of a
    causal teacher is one pixel frame. Video DC-AE is not causal and keeps it.
    """

    def __init__(
        self,
        channels: int,
        style: BlockStyle,
        *,
        upsample_space: bool,
        upsample_time: bool,
        drop_first_frame: bool,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.time, self.space = 2 if upsample_time else 1, 2 if upsample_space else 1
        self.drop_first_frame = drop_first_frame and upsample_time
        self.conv = style.make_full_conv(channels, (out_channels or channels) * self.time * self.space**2)

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_shuffle_3d(self.conv(x), self.time, self.space)
        return x[:, :, 1:] if self.drop_first_frame else x


class Upsampler2d(nn.Module):
    """A 3x3 convolution per frame, then a pixel shuffle by 2: (B, C, T, h, w) -> (B, C / 4, T, 2h, 2w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return unfold_time(functional.pixel_shuffle(self.conv(fold_time(x)), 2), x.shape[0])


class ResnetBlock(nn.Module):
    """RMSNorm, activation and convolution, twice, plus the input (through LayerNorm and 1x1x1 if channels change).

    (B, C, t, h, w) to (B, O, t, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, style: BlockStyle, *, relu_first: bool = False) -> None:
        super().__init__()
        self.norm1 = ChannelRMSNorm()
        self.act1 = style.make_activation("relu" if relu_first else "silu")
        self.conv1 = style.make_conv(in_channels, out_channels)
        self.norm2 = ChannelRMSNorm()
        self.act2 = style.make_activation()
        self.conv2 = style.make_conv(out_channels, out_channels)
        if in_channels != out_channels:
            self.norm3 = ChannelLayerNorm(in_channels)
            self.conv_shortcut = TimeReplicatedConv3d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv_shortcut(self.norm3(x)) if hasattr(self, "conv_shortcut") else x
        x = self.conv1(self.act1(self.norm1(x)))
        x = self.conv2(self.act2(self.norm2(x)))
        return x + residual


class MidBlock(nn.Module):
    """Resnets at the resolution of the latents: (B, C, t, h, w) to the same shape."""

    def __init__(self, channels: int, num_layers: int, style: BlockStyle) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, style) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class UpBlock(nn.Module):
    """A resnet that changes channels (if they change), an upsampler (if the block has one), then resnets.

    With `change_in_upsampler`, an upsampler's convolution changes the channels, and no resnet stands before it. After an upsampler, the first activation of each published resnet is ReLU; everywhere else both are SiLU. (B, C, t, h, w)
    to (B, O, T, H, W), of the same or the doubled size in time, space or both.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        style: BlockStyle,
        *,
        upsample_space: bool,
        upsample_time: bool,
        drop_first_frame: bool,
        change_in_upsampler: bool = False,
    ) -> None:
        super().__init__()
        upsamples = upsample_space or upsample_time
        directly = upsamples and change_in_upsampler
        if in_channels != out_channels and not directly:
            self.conv_in = ResnetBlock(in_channels, out_channels, style)
        if upsamples:
            upsampler = Upsampler3d(
                in_channels if directly else out_channels,
                style,
                upsample_space=upsample_space,
                upsample_time=upsample_time,
                drop_first_frame=drop_first_frame,
                out_channels=out_channels,
            )
            self.upsamplers = nn.ModuleList([upsampler])
        self.resnets = nn.ModuleList(
            ResnetBlock(out_channels, out_channels, style, relu_first=upsamples) for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv_in"):
            x = self.conv_in(x)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x)
        for resnet in self.resnets:
            x = resnet(x)
        return x
