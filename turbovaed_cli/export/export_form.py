"""The student in the form that other runtimes need: rank-4 tensors only, time folded into the batch, no 3-D convolution.

It gives the same numbers as the training form (within rounding) with another graph. A 3-D convolution becomes 2-D convolutions
over its time taps: either one over the taps' concatenated channels ("4d-cat", fewest operations), or one per tap, summed
("4d-sum", least memory). It is built from a trained student and never trained. Inside, x is (T, C, H, W) of one clip, or of
one piece of a clip of any length, whose convolutions are handed the frames before (chunks.py).
"""

import copy
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.choices import check_choice
from turbovaed_cli.models.layers import (
    LAYER_NORM_EPS,
    RMS_EPS,
    ChannelLayerNorm,
    DepthwiseSeparableConv3d,
    ResnetBlock,
    SpaceThenTimeConv3d,
    TimeReplicatedConv3d,
    UpBlock,
    Upsampler3d,
    sum_of,
)
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.settings import LAYOUTS


def export_form(student: StudentDecoder, layout: str = "4d-cat") -> nn.Module:
    """Return a module from latents (1, C, t, h, w) to video (1, 3, T, H, W), equal to `student` and sharing no tensor with it.

    "5d" keeps the 3-D convolutions. Raises SettingsError for an unknown layout.
    """
    check_choice("`layout`", layout, LAYOUTS)
    return copy.deepcopy(student) if layout == "5d" else FoldedDecoder(student, concatenate=layout == "4d-cat").eval()


class Time(Protocol):
    """How a convolution gets the frames before and after its own; x is (T, C, H, W)."""

    def enter(self, x: Tensor, reach: int) -> Tensor:
        """Return the frames (T', C, H, W) that a convolution with `reach` frames to each side computes on, before its norm."""

    def taps(self, x: Tensor, reach: int) -> list[Tensor]:
        """Return the 2 * reach + 1 shifted views, each (T, C, H, W), of the frames that `enter` returned."""

    def beside(self, x: Tensor) -> Tensor:
        """Return the frames (T, C, H, W) of a resnet's input, as `enter` returned it, that its output is added to."""

    def shuffled(self, x: Tensor, factor: int, *, drop: bool) -> Tensor:
        """Return the frames after an upsampler that made `factor` of each; with `drop`, the clip loses its first factor - 1."""


class WholeClip:
    """The frames of a whole clip at once; beyond the ends, the first and last ones are repeated, or only the first if causal."""

    def __init__(self, *, causal: bool) -> None:
        self.causal = causal

    def enter(self, x: Tensor, reach: int) -> Tensor:
        return x

    def taps(self, x: Tensor, reach: int) -> list[Tensor]:
        frames = x.shape[0]
        if frames == 1:  # a slice of everything would become an alias, which Core ML's converter cannot take
            return [x] * (2 * reach + 1)
        before, after = (2 * reach, 0) if self.causal else (reach, reach)
        padded = torch.cat([x[:1]] * before + [x] + [x[-1:]] * after)
        return [padded[i : i + frames] for i in range(2 * reach + 1)]

    def beside(self, x: Tensor) -> Tensor:
        return x

    def shuffled(self, x: Tensor, factor: int, *, drop: bool) -> Tensor:
        return x[factor - 1 :] if drop else x


class FoldedDecoder(nn.Module):
    """The whole decoder over folded time."""

    def __init__(self, student: StudentDecoder, *, concatenate: bool) -> None:
        super().__init__()
        self.causal, self.patch = bool(student.config.decoder_causal), student.patch_out
        self.conv_in = FoldedConv(student.conv_in, concatenate=concatenate)
        modules: list[nn.Module] = [
            FoldedResnet(cast(ResnetBlock, m), concatenate=concatenate) for m in student.mid_block.resnets
        ]
        for block in student.up_blocks:
            modules += _folded_up_block(cast(UpBlock, block), concatenate=concatenate)
        self.blocks = nn.ModuleList(modules)
        self.act_out = copy.deepcopy(student.act_out)
        tail = student.tail_upsamplers
        for number, upsampler in enumerate(tail, start=1):
            self.add_module(f"upsampler2d_{number}", copy.deepcopy(upsampler.conv))
        self.norms_out = nn.ModuleList(RMSNorm() for _ in range(len(tail) + 1))
        self.conv_out = FoldedConv(student.conv_out, concatenate=concatenate)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (1, C, t, h, w) to video (1, 3, T, H, W), not clamped."""
        return self.through(latents, WholeClip(causal=self.causal))

    def through(self, latents: Tensor, time: Time) -> Tensor:
        """Decode latents (1, C, t, h, w) to video (1, 3, T, H, W), not clamped; `time` gives the neighbouring frames."""
        x = latents.squeeze(0).transpose(0, 1)  # (t, C, h, w)
        x = self.conv_in(time.enter(x, self.conv_in.reach), time)
        for block in self.blocks:
            x = block(x, time)
        *tail, last = self.norms_out
        for norm, upsampler in zip(tail, self.tail(), strict=True):
            x = functional.pixel_shuffle(upsampler(self.act_out(norm(x))), 2)
        x = self.conv_out(self.act_out(last(time.enter(x, self.conv_out.reach))), time)
        if self.patch > 1:
            x = functional.pixel_shuffle(x, self.patch)  # (T, 3, H, W)
        return x.transpose(0, 1).unsqueeze(0)

    def tail(self) -> list[nn.Conv2d]:
        """Return the 2-D convolutions before the last convolution; they see single frames."""
        return [cast(nn.Conv2d, self.get_submodule(f"upsampler2d_{number}")) for number in range(1, len(self.norms_out))]


class RMSNorm(nn.Module):
    """Divide (T, C, H, W) by the root mean square over channels; x * x, since a power is slow or missing on some targets."""

    eps: float = RMS_EPS

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + self.eps)


class FoldedConv(nn.Module):
    """A k x k x k convolution as 2-D convolutions over its time taps, on (T, C, H, W)."""

    def __init__(self, source: TimeReplicatedConv3d, *, concatenate: bool) -> None:
        super().__init__()
        weight, bias = source.conv.weight.detach(), source.conv.bias
        self.reach = source.kernel_size // 2
        self.concatenate = concatenate
        if concatenate:
            # (O, C, k, kh, kw) -> (O, k*C, kh, kw), tap by tap
            self.weights = nn.ParameterList([weight.transpose(1, 2).flatten(1, 2).clone()])
        else:
            self.weights = nn.ParameterList([weight[:, :, i].clone() for i in range(source.kernel_size)])
        assert bias is not None
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor, time: Time) -> Tensor:
        taps = time.taps(x, self.reach) if self.reach else [x]
        if self.concatenate:
            joined = torch.cat(taps, dim=1) if len(taps) > 1 else taps[0]
            return functional.conv2d(joined, self.weights[0], self.bias, padding=self.reach)
        out = functional.conv2d(taps[0], self.weights[0], self.bias, padding=self.reach)
        for tap, weight in zip(taps[1:], list(self.weights)[1:], strict=True):
            out = out + functional.conv2d(tap, weight, padding=self.reach)
        return out

    def scale(self, by: float, bias_by: float) -> None:
        """Multiply the weights by `by` and the bias by `bias_by`, in place."""
        for weight in self.weights:
            weight.data *= by
        self.bias.data *= bias_by

    def reorder(self, time: int) -> None:
        """Move time, which is innermost in the output channels, outermost."""
        for parameter in (*self.weights, self.bias):
            parameter.data = _time_outermost(parameter.data, time)


def _time_outermost(x: Tensor, time: int) -> Tensor:
    """Return (O, ...) with the time of its channels outermost instead of innermost."""
    return x.unflatten(0, (-1, time)).transpose(0, 1).flatten(0, 1).contiguous()


class FoldedDepthwise(nn.Module):
    """A depthwise k x k x k convolution as the sum of k depthwise 2-D ones, without its bias, on (T, C, H, W)."""

    def __init__(self, source: nn.Conv3d) -> None:
        super().__init__()
        kernel_size = source.weight.shape[2]
        self.reach = kernel_size // 2
        self.weights = nn.ParameterList([source.weight.detach()[:, :, i].clone() for i in range(kernel_size)])

    def forward(self, x: Tensor, time: Time) -> Tensor:
        taps = time.taps(x, self.reach)
        out = functional.conv2d(taps[0], self.weights[0], padding=self.reach, groups=x.shape[1])
        for tap, weight in zip(taps[1:], list(self.weights)[1:], strict=True):
            out = out + functional.conv2d(tap, weight, padding=self.reach, groups=x.shape[1])
        return out


class FoldedDepthwiseSeparable(nn.Module):
    """The depthwise convolution, then the pointwise one with both biases, on (T, C, H, W)."""

    def __init__(self, source: DepthwiseSeparableConv3d) -> None:
        super().__init__()
        depthwise, pointwise = source.depthwise_conv, source.pointwise_conv
        self.depthwise = FoldedDepthwise(depthwise)
        self.reach = self.depthwise.reach
        weight = pointwise.weight.detach()[:, :, 0]  # (O, C, 1, 1)
        assert depthwise.bias is not None and pointwise.bias is not None
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(pointwise.bias.detach() + weight[:, :, 0, 0] @ depthwise.bias.detach())

    def forward(self, x: Tensor, time: Time) -> Tensor:
        return functional.conv2d(self.depthwise(x, time), self.weight, self.bias)

    def scale(self, by: float, bias_by: float) -> None:
        """Multiply the pointwise weight by `by` and the bias by `bias_by`, in place."""
        self.weight.data *= by
        self.bias.data *= bias_by

    def scale_between(self, by: float) -> None:
        """Multiply the values between the depthwise and the pointwise convolution; the output stays the same."""
        for weight in self.depthwise.weights:
            weight.data *= by
        self.weight.data /= by


class FoldedSpaceThenTime(nn.Module):
    """The 1 x 3 x 3 convolution of single frames, then the sum of three of them with factors per channel, on (T, C, H, W)."""

    reach = 1

    def __init__(self, source: SpaceThenTimeConv3d) -> None:
        super().__init__()
        spatial = source.spatial_conv
        self.spatial = nn.Conv2d(spatial.in_channels, spatial.out_channels, 3, padding=1, dtype=spatial.weight.dtype)
        self.spatial.load_state_dict({"weight": spatial.weight[:, :, 0], "bias": cast(Tensor, spatial.bias)})
        factors = source.temporal_conv.weight.detach()[:, 0, :, 0, 0]  # (O, 3)
        self.factors = nn.ParameterList([factors[:, i].view(1, -1, 1, 1).clone() for i in range(3)])

    def forward(self, x: Tensor, time: Time) -> Tensor:
        taps = time.taps(self.spatial(x), self.reach)
        return sum_of(tap * factor for tap, factor in zip(taps, self.factors, strict=True))

    def scale(self, by: float, bias_by: float) -> None:
        """Multiply the weights by `by` and the bias by `bias_by`, in place."""
        self.spatial.weight.data *= by
        cast(Tensor, self.spatial.bias).data *= bias_by

    def scale_between(self, by: float) -> None:
        """Multiply the values between space and time; the output stays the same."""
        self.scale(by, by)
        for factor in self.factors:
            factor.data /= by

    def reorder(self, time: int) -> None:
        """Move time, which is innermost in the output channels, outermost."""
        for parameter in self.spatial.parameters():
            parameter.data = _time_outermost(parameter.data, time)
        for factor in self.factors:
            factor.data = _time_outermost(factor.data.flatten(), time).view(1, -1, 1, 1)


class FoldedLayerNorm(nn.Module):
    """LayerNorm over the channels of (T, C, H, W) without permuting."""

    eps = LAYER_NORM_EPS

    def __init__(self, source: ChannelLayerNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(source.weight.detach().view(1, -1, 1, 1).clone())
        self.bias = nn.Parameter(source.bias.detach().view(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)
        return x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + self.eps) * self.weight + self.bias


class FoldedResnet(nn.Module):
    """Norm, activation and convolution, twice, plus the input, on (T, C, H, W)."""

    def __init__(self, source: ResnetBlock, *, concatenate: bool) -> None:
        super().__init__()
        self.act1, self.act2 = copy.deepcopy(source.act1), copy.deepcopy(source.act2)
        self.norm1, self.norm2 = RMSNorm(), RMSNorm()
        self.conv1 = _folded_conv(source.conv1, concatenate=concatenate)
        self.conv2 = _folded_conv(source.conv2, concatenate=concatenate)
        self.has_shortcut = hasattr(source, "conv_shortcut")
        if self.has_shortcut:
            self.norm3 = FoldedLayerNorm(source.norm3)
            self.conv_shortcut = FoldedConv(source.conv_shortcut, concatenate=concatenate)

    def forward(self, x: Tensor, time: Time) -> Tensor:
        x = time.enter(x, self.conv1.reach)
        beside = time.beside(x)
        residual = self.conv_shortcut(self.norm3(beside), time) if self.has_shortcut else beside
        x = self.conv1(self.act1(self.norm1(x)), time)
        x = self.conv2(self.act2(self.norm2(time.enter(x, self.conv2.reach))), time)
        return x + residual


FoldedAny = FoldedConv | FoldedDepthwiseSeparable | FoldedSpaceThenTime


def _folded_conv(source: nn.Module, *, concatenate: bool) -> FoldedAny:
    if isinstance(source, DepthwiseSeparableConv3d):
        return FoldedDepthwiseSeparable(source)
    return _folded_full(source, concatenate=concatenate)


def _folded_full(source: nn.Module, *, concatenate: bool) -> FoldedConv | FoldedSpaceThenTime:
    """Return the folded form of a convolution that may be an upsampler's."""
    if isinstance(source, SpaceThenTimeConv3d):
        return FoldedSpaceThenTime(source)
    assert isinstance(source, TimeReplicatedConv3d)
    return FoldedConv(source, concatenate=concatenate)


class FoldedUpsampler(nn.Module):
    """A convolution, then a reshape that moves time out of the channels, then a pixel shuffle: (T, C, H, W) in, upsampled out.

    Each step is there only if it changes something: no reshape without doubled time, no shuffle without doubled space.
    """

    def __init__(self, source: Upsampler3d, *, concatenate: bool) -> None:
        super().__init__()
        self.time, self.space, self.drop_first_frame = source.time, source.space, source.drop_first_frame
        self.conv = _folded_full(source.conv, concatenate=concatenate)
        self.conv.reorder(self.time)  # so that the time shuffle needs no permute

    def forward(self, x: Tensor, time: Time) -> Tensor:
        x = self.conv(time.enter(x, self.conv.reach), time)
        frames, _, height, width = x.shape
        if self.time > 1:
            x = x.reshape(frames * self.time, -1, height, width)
        if self.space > 1:
            x = functional.pixel_shuffle(x, self.space)
        return time.shuffled(x, self.time, drop=self.drop_first_frame)


def _folded_up_block(source: UpBlock, *, concatenate: bool) -> list[nn.Module]:
    modules: list[nn.Module] = []
    if hasattr(source, "conv_in"):
        modules.append(FoldedResnet(source.conv_in, concatenate=concatenate))
    if hasattr(source, "upsamplers"):
        modules.append(FoldedUpsampler(cast(Upsampler3d, source.upsamplers[0]), concatenate=concatenate))
    return modules + [FoldedResnet(cast(ResnetBlock, m), concatenate=concatenate) for m in source.resnets]
