"""Video DC-AE, the deterministic autoencoder of Open-Sora 2.0, which no diffusers class can load. 4x in time, 32x in space.

Attribute names are the keys of its published file. Stages 0-2 are residual convolutions, 3-5 linear attention with gated
convolutions; between stages space halves, at stages 3 and 4 time too. Not causal; zero padding in all directions.
Source: Open-Sora 2.0 (arXiv:2503.09642) and DC-AE (arXiv:2410.10733).
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

RMS_EPS = 1e-5
ATTENTION_EPS = 1e-15
FIRST_ATTENTION_STAGE = 3
TIME_STAGES = (3, 4)  # stages in which time is halved, and doubled again


class Conv(nn.Module):
    """A convolution of (B, C, t, h, w) with zero padding, then an optional norm and SiLU; keys `conv.*`, `norm.*`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: tuple[int, int, int] | int = 1, groups: int = 1,
        bias: bool = True, norm: bool = False, act: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = Rms3d(out_channels) if norm else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return functional.silu(x) if self.act else x


class Rms3d(nn.Module):
    """Root-mean-square norm over the channels of (B, C, t, h, w) in fp32, with weight and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + RMS_EPS)
        return wide.to(x.dtype) * self.weight.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)


class Residual(nn.Module):
    """`main` plus a shortcut without weights, by default the input; key `main.*`."""

    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main = main

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the tensor that is added to the output of `main`, of the same shape."""
        return x


class ConvPair(nn.Module):
    """Two 3x3x3 convolutions, with SiLU between them and a norm after them: (B, C, t, h, w) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3, act=True)
        self.conv2 = Conv(channels, channels, 3, bias=False, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class LinearAttention(nn.Module):
    """Multi-scale linear attention over (B, C, t, h, w): ReLU(q), ReLU(k), and the sum of the weights as one more row of v."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        wide = 3 * channels
        self.qkv = Conv(channels, wide, 1, bias=False)
        depthwise = nn.Conv3d(wide, wide, 5, padding=2, groups=wide, bias=False)
        pointwise = nn.Conv3d(wide, wide, 1, groups=wide // head_dim, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(depthwise, pointwise)])
        self.proj = Conv(2 * channels, channels, 1, bias=False, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, frames, height, width = x.shape
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, self.aggreg[0](qkv)], dim=1)  # (B, 6C, t, h, w)
        qkv = qkv.float().reshape(batch, -1, 3 * self.head_dim, frames * height * width)  # (B, heads, 3*32, N)
        q, k, v = qkv.split(self.head_dim, dim=2)
        v = functional.pad(v, (0, 0, 0, 1), value=1.0)  # (B, heads, 33, N)
        attended = (v @ functional.relu(k).transpose(-1, -2)) @ functional.relu(q)
        attended = attended[:, :, :-1] / (attended[:, :, -1:] + ATTENTION_EPS)
        return self.proj(attended.reshape(batch, -1, frames, height, width).to(x.dtype))


class GatedConv(nn.Module):
    """A gated convolution of (B, C, t, h, w): widen to 8C, convolve depthwise, gate one half by the other, return to C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inverted_conv = Conv(channels, 8 * channels, 1, act=True)
        self.depth_conv = Conv(8 * channels, 8 * channels, 3, groups=8 * channels)
        self.point_conv = Conv(4 * channels, channels, 1, bias=False, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.depth_conv(self.inverted_conv(x)).chunk(2, dim=1)
        return self.point_conv(x * functional.silu(gate))


class AttentionBlock(nn.Module):
    """Linear attention, then a gated convolution, both residual: (B, C, t, h, w) to the same shape."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.context_module = Residual(LinearAttention(channels, head_dim))
        self.local_module = Residual(GatedConv(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.local_module(self.context_module(x))


def _unshuffle(x: Tensor, time: int) -> Tensor:
    """Fold (B, C, t*time, 2h, 2w) to (B, C*time*4, t, h, w), channel order (c, t, h, w)."""
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels, frames // time, time, height // 2, 2, width // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, -1, frames // time, height // 2, width // 2)


def _shuffle(x: Tensor, time: int) -> Tensor:
    """Unfold (B, C*time*4, t, h, w) to (B, C, t*time, 2h, 2w): the inverse of _unshuffle."""
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels // (4 * time), time, 2, 2, frames, height, width)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, -1, frames * time, height * 2, width * 2)


def _group_mean(x: Tensor, channels: int) -> Tensor:
    """Return the mean of each group of n neighbouring channels, (B, C, ...) of (B, C*n, ...)."""
    return x.unflatten(1, (channels, -1)).mean(dim=2)


class Downsample(Residual):
    """A strided convolution plus pixels folded into channels and averaged. Time stays if `halve_time` is False or T is 1."""

    def __init__(self, in_channels: int, out_channels: int, *, halve_time: bool) -> None:
        super().__init__(Conv(in_channels, out_channels, 3, stride=(2 if halve_time else 1, 2, 2)))
        self.out_channels, self.halve_time = out_channels, halve_time

    def shortcut(self, x: Tensor) -> Tensor:
        """Fold pixels of (B, C, T, H, W) into channels and average these in groups: (B, O, T or T/2, H/2, W/2)."""
        time = 2 if self.halve_time and x.shape[2] > 1 else 1
        return _group_mean(_unshuffle(x, time), self.out_channels)


class UpsampleConv(nn.Module):
    """Nearest-neighbour enlargement and a convolution: (B, C, t, h, w) to (B, O, t or 2t, 2h, 2w); key `conv.*`."""

    def __init__(self, in_channels: int, out_channels: int, *, double_time: bool) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels, 3)
        self.double_time = double_time

    def forward(self, x: Tensor) -> Tensor:
        time = 2 if self.double_time and x.shape[2] > 1 else 1
        return self.conv(functional.interpolate(x, scale_factor=(time, 2, 2), mode="nearest"))


class Upsample(Residual):
    """An enlarging convolution plus repeated channels unfolded into pixels."""

    def __init__(self, in_channels: int, out_channels: int, *, double_time: bool) -> None:
        super().__init__(UpsampleConv(in_channels, out_channels, double_time=double_time))
        self.out_channels, self.double_time = out_channels, double_time

    def shortcut(self, x: Tensor) -> Tensor:
        """Repeat the channels of (B, C, t, h, w) and unfold them into pixels: (B, O, t or 2t, 2h, 2w)."""
        time = 2 if self.double_time and x.shape[2] > 1 else 1
        return _shuffle(x.repeat_interleave(self.out_channels * 4 * time // x.shape[1], dim=1), time)


class AveragedShortcut(Residual):
    """`main` plus the input's channels averaged in groups."""

    def __init__(self, main: nn.Module, out_channels: int) -> None:
        super().__init__(main)
        self.out_channels = out_channels

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the means of groups of channels: (B, O, t, h, w) of (B, C, t, h, w)."""
        return _group_mean(x, self.out_channels)


class RepeatedShortcut(Residual):
    """`main` plus the input's channels repeated."""

    def __init__(self, main: nn.Module, repeats: int) -> None:
        super().__init__(main)
        self.repeats = repeats

    def shortcut(self, x: Tensor) -> Tensor:
        """Repeat every channel `repeats` times in a row: (B, C, t, h, w) to (B, C * repeats, t, h, w)."""
        return x.repeat_interleave(self.repeats, dim=1)


class OpList(nn.Module):
    """Modules in sequence; key `op_list.*`."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.op_list:
            x = module(x)
        return x


def _blocks(stage: int, channels: int, depth: int, head_dim: int) -> list[nn.Module]:
    if stage < FIRST_ATTENTION_STAGE:
        return [Residual(ConvPair(channels)) for _ in range(depth)]
    return [AttentionBlock(channels, head_dim) for _ in range(depth)]


class Encoder(nn.Module):
    """The encoder of video (B, 3, T, H, W) to latents (B, C, T/4, H/32, W/32)."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], latent_channels: int, head_dim: int) -> None:
        super().__init__()
        self.project_in = Conv(3, widths[0], 3)
        stages = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            modules = _blocks(stage, width, depth, head_dim)
            if stage + 1 < len(widths):
                modules.append(Downsample(width, widths[stage + 1], halve_time=stage in TIME_STAGES))
            stages.append(OpList(modules))
        self.stages = nn.ModuleList(stages)
        self.project_out = AveragedShortcut(OpList([Conv(widths[-1], latent_channels, 3)]), latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x)
        for stage in self.stages:
            x = stage(x)
        return self.project_out(x)


class Decoder(nn.Module):
    """The decoder of latents (B, C, t, h, w) to video (B, 3, 4t, 32h, 32w); the last stage runs first."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], latent_channels: int, head_dim: int) -> None:
        super().__init__()
        self.project_in = RepeatedShortcut(Conv(latent_channels, widths[-1], 3), widths[-1] // latent_channels)
        stages = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            modules: list[nn.Module] = []
            if stage + 1 < len(widths):
                modules.append(Upsample(widths[stage + 1], width, double_time=stage in TIME_STAGES))
            stages.append(OpList(modules + _blocks(stage, width, depth, head_dim)))
        self.stages = nn.ModuleList(stages)
        self.project_out = OpList([Rms3d(widths[0]), nn.ReLU(), Conv(widths[0], 3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x)
        for stage in reversed(list(self.stages)):
            x = stage(x)
        return self.project_out(x)


class VideoDCAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The autoencoder. `encode` and `decode` take and return plain tensors: it has no distribution and no scaling.

    T is 4k with k >= 2, or 1, which keeps one latent frame. With 2 or 4 the time stages collapse to one frame, so Teacher
    refuses them.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        width_list: Sequence[int] = (128, 256, 512, 512, 1024, 1024),
        latent_channels: int = 128,
        encoder_depth: Sequence[int] = (2, 2, 2, 3, 3, 3),
        decoder_depth: Sequence[int] = (3, 3, 3, 3, 3, 3),
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(width_list, encoder_depth, latent_channels, head_dim)
        self.decoder = Decoder(width_list, decoder_depth, latent_channels, head_dim)

    def encode(self, x: Tensor) -> Tensor:
        """Encode video (B, 3, T, H, W) in [-1, 1] to latents (B, C, T/4, H/32, W/32)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents (B, C, t, h, w) to video (B, 3, 4t, 32h, 32w) in [-1, 1], not clamped; t = 1 gives one frame."""
        return self.decoder(z)
