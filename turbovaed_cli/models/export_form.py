"""The student as other runtimes want it: rank-4 tensors only, time folded into the batch, no convolution in 3-D.

Same numbers as the training form (within rounding), other graph: a 3-D convolution becomes 2-D convolutions over its time
taps, either one over the taps' concatenated channels ("4d-cat", fewest operations) or one per tap summed up ("4d-sum",
least memory). Built from a trained student; never trained itself. Inside, x is (T, C, H, W) of one clip.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.layers import (
    LAYER_NORM_EPS,
    RMS_EPS,
    ChannelLayerNorm,
    DepthwiseSeparableConv3d,
    ResnetBlock,
    TimeReplicatedConv3d,
    UpBlock,
    Upsampler3d,
)
from turbovaed_cli.models.student import StudentDecoder

LAYOUTS = ("4d-cat", "4d-sum", "5d")


def export_form(student: StudentDecoder, layout: str = "4d-cat") -> nn.Module:
    """A module from latents (1, C, t, h, w) to video (1, 3, T, H, W), equal to `student` and sharing nothing with it.

    "5d" keeps the 3-D convolutions. Raises SettingsError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise SettingsError(f"--layout {layout} is unknown", f"one of: {', '.join(LAYOUTS)}")
    return copy.deepcopy(student) if layout == "5d" else FoldedDecoder(student, concatenate=layout == "4d-cat").eval()


class FoldedDecoder(nn.Module):
    """The whole decoder over folded time."""

    def __init__(self, student: StudentDecoder, *, concatenate: bool) -> None:
        super().__init__()
        self.patch_size = student.config.patch_size
        self.conv_in = FoldedConv(student.conv_in, concatenate=concatenate)
        modules: list[nn.Module] = [
            FoldedResnet(cast(ResnetBlock, m), concatenate=concatenate) for m in student.mid_block.resnets
        ]
        for block in student.up_blocks:
            modules += _folded_up_block(cast(UpBlock, block), concatenate=concatenate)
        self.blocks = nn.Sequential(*modules)
        if self.patch_size == 4:
            self.upsampler2d_1 = copy.deepcopy(student.upsampler2d_1.conv)
            self.upsampler2d_2 = copy.deepcopy(student.upsampler2d_2.conv)
        self.conv_out = FoldedConv(student.conv_out, concatenate=concatenate)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (1, C, t, h, w) to video (1, 3, T, H, W), not clamped."""
        x = latents.squeeze(0).transpose(0, 1)  # (t, C, h, w)
        x = self.blocks(self.conv_in(x))
        if self.patch_size == 4:
            x = functional.pixel_shuffle(self.upsampler2d_1(functional.silu(rms_norm(x))), 2)
            x = functional.pixel_shuffle(self.upsampler2d_2(functional.silu(rms_norm(x))), 2)
        x = self.conv_out(functional.silu(rms_norm(x)))  # (T, 3, H, W)
        return x.transpose(0, 1).unsqueeze(0)


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over channels; x * x, since a power is slow or missing on some targets."""
    return x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + RMS_EPS)


def _taps(x: Tensor, kernel_size: int) -> list[Tensor]:
    """The `kernel_size` shifted views of x along time, the first and last frame repeated beyond the ends."""
    reach = (kernel_size - 1) // 2
    if reach == 0:
        return [x]
    frames = x.shape[0]
    if frames == 1:  # a slice of everything would become an alias, which Core ML's converter cannot take
        return [x] * kernel_size
    padded = torch.cat([x[:1]] * reach + [x] + [x[-1:]] * reach)
    return [padded[i : i + frames] for i in range(kernel_size)]


class FoldedConv(nn.Module):
    """A k x k x k convolution as 2-D convolutions over its time taps."""

    def __init__(self, source: TimeReplicatedConv3d, *, concatenate: bool) -> None:
        super().__init__()
        weight, bias = source.conv.weight.detach(), source.conv.bias
        self.kernel_size = source.kernel_size
        self.concatenate = concatenate
        if concatenate:
            # (O, C, k, kh, kw) -> (O, k*C, kh, kw), tap by tap
            self.weights = nn.ParameterList([weight.transpose(1, 2).flatten(1, 2).contiguous()])
        else:
            self.weights = nn.ParameterList([weight[:, :, i].contiguous() for i in range(self.kernel_size)])
        assert bias is not None
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        taps = _taps(x, self.kernel_size)
        reach = self.kernel_size // 2
        if self.concatenate:
            joined = torch.cat(taps, dim=1) if len(taps) > 1 else taps[0]
            return functional.conv2d(joined, self.weights[0], self.bias, padding=reach)
        out = functional.conv2d(taps[0], self.weights[0], self.bias, padding=reach)
        for tap, weight in zip(taps[1:], list(self.weights)[1:], strict=True):
            out = out + functional.conv2d(tap, weight, padding=reach)
        return out


class FoldedDepthwiseSeparable(nn.Module):
    """A depthwise k x k x k convolution as the sum of k depthwise 2-D ones, then the pointwise one with both biases."""

    def __init__(self, source: DepthwiseSeparableConv3d) -> None:
        super().__init__()
        depthwise, pointwise = source.depthwise_conv, source.pointwise_conv
        self.kernel_size = source.kernel_size
        self.weights = nn.ParameterList([depthwise.weight.detach()[:, :, i].contiguous() for i in range(self.kernel_size)])
        weight = pointwise.weight.detach()[:, :, 0]  # (O, C, 1, 1)
        assert depthwise.bias is not None and pointwise.bias is not None
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(pointwise.bias.detach() + weight[:, :, 0, 0] @ depthwise.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        channels, reach = x.shape[1], self.kernel_size // 2
        taps = _taps(x, self.kernel_size)
        out = functional.conv2d(taps[0], self.weights[0], padding=reach, groups=channels)
        for tap, weight in zip(taps[1:], list(self.weights)[1:], strict=True):
            out = out + functional.conv2d(tap, weight, padding=reach, groups=channels)
        return functional.conv2d(out, self.weight, self.bias)


class FoldedLayerNorm(nn.Module):
    """LayerNorm over channels without permuting."""

    def __init__(self, source: ChannelLayerNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(source.weight.detach().view(1, -1, 1, 1).clone())
        self.bias = nn.Parameter(source.bias.detach().view(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)
        return x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + LAYER_NORM_EPS) * self.weight + self.bias


class FoldedResnet(nn.Module):
    """Norm, activation, convolution, twice, plus the input."""

    def __init__(self, source: ResnetBlock, *, concatenate: bool) -> None:
        super().__init__()
        self.relu_first = isinstance(source.act1, nn.ReLU)
        self.conv1 = _folded_conv(source.conv1, concatenate=concatenate)
        self.conv2 = _folded_conv(source.conv2, concatenate=concatenate)
        self.has_shortcut = hasattr(source, "conv_shortcut")
        if self.has_shortcut:
            self.norm3 = FoldedLayerNorm(source.norm3)
            self.conv_shortcut = FoldedConv(source.conv_shortcut, concatenate=concatenate)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv_shortcut(self.norm3(x)) if self.has_shortcut else x
        x = rms_norm(x)
        x = self.conv1(functional.relu(x) if self.relu_first else functional.silu(x))
        x = self.conv2(functional.silu(rms_norm(x)))
        return x + residual


def _folded_conv(source: nn.Module, *, concatenate: bool) -> nn.Module:
    if isinstance(source, DepthwiseSeparableConv3d):
        return FoldedDepthwiseSeparable(source)
    assert isinstance(source, TimeReplicatedConv3d)
    return FoldedConv(source, concatenate=concatenate)


class FoldedUpsampler(nn.Module):
    """Convolution, then time out of the channels by a plain reshape, then a pixel shuffle."""

    def __init__(self, source: Upsampler3d, *, concatenate: bool) -> None:
        super().__init__()
        self.time, self.drop_first_frame = source.time, source.drop_first_frame
        self.conv = FoldedConv(source.conv, concatenate=concatenate)
        # Published: time innermost of the output channels. With time outermost the time shuffle needs no permute.
        for parameter in (*self.conv.weights, self.conv.bias):
            parameter.data = parameter.data.unflatten(0, (-1, self.time)).transpose(0, 1).flatten(0, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        frames, _, height, width = x.shape
        x = self.conv(x)
        if self.time > 1:
            x = x.reshape(frames * self.time, -1, height, width)
        x = functional.pixel_shuffle(x, 2)
        return x[self.time - 1 :] if self.drop_first_frame else x


def _folded_up_block(source: UpBlock, *, concatenate: bool) -> list[nn.Module]:
    modules: list[nn.Module] = []
    if hasattr(source, "conv_in"):
        modules.append(FoldedResnet(source.conv_in, concatenate=concatenate))
    if hasattr(source, "upsamplers"):
        modules.append(FoldedUpsampler(cast(Upsampler3d, source.upsamplers[0]), concatenate=concatenate))
    return modules + [FoldedResnet(cast(ResnetBlock, m), concatenate=concatenate) for m in source.resnets]
