"""The building blocks of the student decoder, in the published form: rank-5 tensors, one module per operation.

Everything here follows arXiv:2508.09136 and the layout of its published weight files; attribute names are their keys.
Videos inside the network are (B, C, t, h, w).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

RMS_EPS = 1e-8
LAYER_NORM_EPS = 1e-6


class ChannelRMSNorm(nn.Module):
    """Divide by the root mean square over channels (dim 1), without weights; the variance is taken in fp32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.promote_types(x.dtype, torch.float32)).pow(2).mean(dim=1, keepdim=True)
        return (x * torch.rsqrt(variance + RMS_EPS)).to(x.dtype)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over channels (dim 1) with weight and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own argument name
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def pad_time(x: Tensor, kernel_size: int) -> Tensor:
    """Repeat the first and last frame (kernel_size - 1) / 2 times each: time replicates, while space pads zeros."""
    reach = (kernel_size - 1) // 2
    if reach == 0:
        return x
    first, last = x[:, :, :1], x[:, :, -1:]
    return torch.cat([first] * reach + [x] + [last] * reach, dim=2)


class TimeReplicatedConv3d(nn.Module):
    """A k x k x k convolution, stride 1, same size out; not causal."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        reach = kernel_size // 2
        self.kernel_size = kernel_size
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=(0, reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_time(x, self.kernel_size))


class DepthwiseSeparableConv3d(nn.Module):
    """A depthwise k x k x k convolution, then a pointwise one, both with bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        reach = kernel_size // 2
        self.kernel_size = kernel_size
        self.depthwise_conv = nn.Conv3d(in_channels, in_channels, kernel_size, padding=(0, reach, reach), groups=in_channels)
        self.pointwise_conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(pad_time(x, self.kernel_size)))


def pixel_shuffle_3d(x: Tensor, time: int, space: int = 2) -> Tensor:
    """(B, C*space*space*time, t, h, w) -> (B, C, time*t, space*h, space*w), channel index ((c*2 + i)*2 + j)*time + t.

    "Decoupled": time is innermost, so what is left after splitting it off is an ordinary 2-D pixel shuffle per frame.
    """
    batch, channels, frames, height, width = x.shape
    x = x.movedim(2, 1).reshape(batch * frames, channels // time, time, height, width)
    x = x.transpose(1, 2).flatten(0, 1)  # (B*t*time, C*4, h, w): never more than five dimensions
    x = functional.pixel_shuffle(x, space)  # (B*t*time, C, 2h, 2w)
    return x.unflatten(0, (batch, frames * time)).movedim(2, 1)


class Upsampler3d(nn.Module):
    """Convolution to `time * 4` times the channels, then the decoupled 3-D pixel shuffle.

    Where time doubles, the first frame is dropped, so that t frames give 2t - 1 (`drop_first_frame`), as the first
    latent frame of a causal teacher stands for one pixel frame. Video DC-AE is not causal and keeps it.
    """

    def __init__(self, channels: int, *, upsample_time: bool, drop_first_frame: bool) -> None:
        super().__init__()
        self.time = 2 if upsample_time else 1
        self.drop_first_frame = drop_first_frame and upsample_time
        self.conv = TimeReplicatedConv3d(channels, channels * self.time * 4)

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_shuffle_3d(self.conv(x), self.time)
        return x[:, :, 1:] if self.drop_first_frame else x


class Upsampler2d(nn.Module):
    """A 3x3 convolution per frame, then a pixel shuffle by 2: (B, C, T, h, w) -> (B, C / 4, T, 2h, 2w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, frames, _, _ = x.shape
        x = self.conv(x.movedim(2, 1).flatten(0, 1))  # (B*T, C, h, w)
        return functional.pixel_shuffle(x, 2).unflatten(0, (batch, frames)).movedim(2, 1)


class ResnetBlock(nn.Module):
    """RMSNorm, activation, convolution, twice, plus the input (through LayerNorm and 1x1x1 where channels change)."""

    def __init__(self, in_channels: int, out_channels: int, *, depthwise_kernel: int | None, relu_first: bool) -> None:
        super().__init__()
        self.norm1 = ChannelRMSNorm()
        self.act1 = nn.ReLU() if relu_first else nn.SiLU()
        self.conv1 = _conv(in_channels, out_channels, depthwise_kernel)
        self.norm2 = ChannelRMSNorm()
        self.act2 = nn.SiLU()
        self.conv2 = _conv(out_channels, out_channels, depthwise_kernel)
        if in_channels != out_channels:
            self.norm3 = ChannelLayerNorm(in_channels)
            self.conv_shortcut = TimeReplicatedConv3d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv_shortcut(self.norm3(x)) if hasattr(self, "conv_shortcut") else x
        x = self.conv1(self.act1(self.norm1(x)))
        x = self.conv2(self.act2(self.norm2(x)))
        return x + residual


def _conv(in_channels: int, out_channels: int, depthwise_kernel: int | None) -> nn.Module:
    if depthwise_kernel is None:
        return TimeReplicatedConv3d(in_channels, out_channels)
    return DepthwiseSeparableConv3d(in_channels, out_channels, depthwise_kernel)


class MidBlock(nn.Module):
    """Resnets at the latent's own resolution."""

    def __init__(self, channels: int, num_layers: int, *, depthwise_kernel: int | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, depthwise_kernel=depthwise_kernel, relu_first=False) for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class UpBlock(nn.Module):
    """A channel-changing resnet (only where channels change), an upsampler (where there is one), then resnets.

    Behind an upsampler each resnet's first activation is ReLU; everywhere else both are SiLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        *,
        depthwise_kernel: int | None,
        upsample_space: bool,
        upsample_time: bool,
        drop_first_frame: bool,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            self.conv_in = ResnetBlock(in_channels, out_channels, depthwise_kernel=depthwise_kernel, relu_first=False)
        if upsample_space:
            upsampler = Upsampler3d(out_channels, upsample_time=upsample_time, drop_first_frame=drop_first_frame)
            self.upsamplers = nn.ModuleList([upsampler])
        self.resnets = nn.ModuleList(
            ResnetBlock(out_channels, out_channels, depthwise_kernel=depthwise_kernel, relu_first=upsample_space)
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv_in"):
            x = self.conv_in(x)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x)
        for resnet in self.resnets:
            x = resnet(x)
        return x
