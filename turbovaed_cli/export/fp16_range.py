"""Keep every value of an export form within fp16's range, by powers of two folded into its weights.

The residual stream of a student may grow beyond 255, whose square overflows fp16, or beyond fp16's range itself. The stream
feeds norms that do not depend on scale. So a stream scaled by 2^-e, with the norm's eps scaled by 4^-e, gives the same video:
exactly, since powers of two do not round. A small stream is scaled up, since squares of small values underflow.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from turbovaed_cli.export.export_form import (
    FoldedDecoder,
    FoldedDepthwiseSeparable,
    FoldedResnet,
    FoldedSpaceThenTime,
    FoldedUpsampler,
    RMSNorm,
)
from turbovaed_cli.models.layers import RMS_EPS

LARGEST = 128.0  # of any value: 512 times below fp16's largest
LARGEST_SQUARES = 8192.0  # of a sum of squares over channels, which a mean takes
SMALLEST_EPS = 2.0**-24  # fp16's smallest number above zero: an eps rounded to zero would allow a division by zero


def keep_in_range(form: FoldedDecoder, latents: Sequence[Tensor]) -> dict[str, int]:
    """Fold powers of two into `form`, in place, so that no value between its layers comes near fp16's largest on `latents`.

    Returns the exponents by the place they apply to: values there are multiplied by 2^-exponent. The video stays the same
    within the rounding of eps. `latents` are (1, C, t, h, w), of any number and sizes; only real ones give the true range.
    """
    ranges = _ranges(form, latents)
    exponents: dict[str, int] = {}

    def exponent(place: str, *names: str) -> int:
        names = names or (place,)
        exponents[place] = _exponent(max(ranges[name][0] for name in names), max(ranges[name][1] for name in names))
        return exponents[place]

    stretches = _stretches(form)
    stream = exponent("conv_in", *stretches["conv_in"])
    form.conv_in.scale(2.0**-stream, 2.0**-stream)
    for index, block in enumerate(form.blocks):
        name = f"blocks.{index}"
        before = stream
        if name in stretches:
            stream = exponent(name, *stretches[name])
        if isinstance(block, FoldedUpsampler):
            block.conv.scale(2.0 ** (before - stream), 2.0**-stream)
            if isinstance(block.conv, FoldedSpaceThenTime):  # the values between were scaled with the output
                block.conv.scale_between(2.0 ** (stream - exponent(f"{name}.conv.spatial")))
            continue
        assert isinstance(block, FoldedResnet)
        inside = exponent(f"{name}.conv1")
        block.conv1.scale(2.0**-inside, 2.0**-inside)
        block.conv2.scale(2.0**-stream, 2.0**-stream)
        for which, conv, outer in (("conv1", block.conv1, inside), ("conv2", block.conv2, stream)):
            if isinstance(conv, FoldedDepthwiseSeparable):
                conv.scale_between(2.0 ** -exponent(f"{name}.{which}.depthwise"))
            elif isinstance(conv, FoldedSpaceThenTime):
                conv.scale_between(2.0 ** (outer - exponent(f"{name}.{which}.spatial")))
        block.norm1.eps, block.norm2.eps = _eps(block.norm1.eps, before), _eps(block.norm2.eps, inside)
        if block.has_shortcut:
            block.norm3.eps = _eps(block.norm3.eps, before)
            block.conv_shortcut.scale(2.0**-stream, 2.0**-stream)
    for index, upsampler in enumerate(form.tail()):
        cast(RMSNorm, form.norms_out[index]).eps = _eps(RMS_EPS, stream)
        stream = exponent(f"tail.{index}")
        upsampler.weight.data *= 2.0**-stream
        assert upsampler.bias is not None
        upsampler.bias.data *= 2.0**-stream
    cast(RMSNorm, form.norms_out[-1]).eps = _eps(RMS_EPS, stream)
    return exponents


def _eps(eps: float, exponent: int) -> float:
    return max(eps * 4.0**-exponent, SMALLEST_EPS)


def _exponent(peak: float, squares: float) -> int:
    """Return the exponent whose power of two brings both values just below their limits, from above or below."""
    if not 0 < peak < math.inf:
        return 0
    return max(math.ceil(math.log2(peak / LARGEST)), math.ceil(math.log2(squares / LARGEST_SQUARES) / 2))


def _stretches(form: FoldedDecoder) -> dict[str, list[str]]:
    """Return the places that share one scale, since sums tie them together, by the name of the first place."""
    stretches = {"conv_in": ["conv_in"]}
    current = "conv_in"
    for index, block in enumerate(form.blocks):
        if isinstance(block, FoldedUpsampler) or (isinstance(block, FoldedResnet) and block.has_shortcut):
            current = f"blocks.{index}"
            stretches[current] = []
        stretches[current].append(f"blocks.{index}")
        if isinstance(block, FoldedResnet):
            stretches[current].append(f"blocks.{index}.conv2")
    return stretches


@torch.no_grad()
def _ranges(form: FoldedDecoder, latents: Sequence[Tensor]) -> dict[str, tuple[float, float]]:
    """Return (largest magnitude, largest sum of squares over channels) of the output of each place."""
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, value: Tensor) -> None:
        peak, squares = found.get(name, (0.0, 0.0))
        wide = value.float()
        found[name] = max(peak, wide.abs().max().item()), max(squares, wide.square().sum(dim=1).max().item())

    def watch(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _module, _inputs, output: note(name, output)))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    watch(form.conv_in, "conv_in")
    for index, block in enumerate(form.blocks):
        watch(block, f"blocks.{index}")
    for name, module in form.named_modules():
        if name.endswith((".conv1", ".conv2", ".depthwise", ".spatial")):
            watch(module, name)
    for index, conv in enumerate(form.tail()):
        watch(conv, f"tail.{index}")
    try:
        for item in latents:
            form(item)
    finally:
        for handle in handles:
            handle.remove()
    return found
