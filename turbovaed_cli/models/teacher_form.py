"""A teacher's decoder as a student of the same layers, where one computes the same: in its fast form it decodes in half the time.

These are the decoders of LTX-Video 0.9.0 and of LTX-2.3. The weights of the classes of diffusers stay as they are.
"""

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.kernels import Speedups, state_of
from turbovaed_cli.models.layers import ResnetBlock, TimeReplicatedConv3d
from turbovaed_cli.models.outline import LTX_CLASSES, Outline, Residual, Weights, blocks_of, outline_of, student_config
from turbovaed_cli.models.streaming import FastDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.specs import TeacherSpec

_TILED = ("use_tiling", "use_framewise_decoding")  # settings of the classes with which they decode approximately
# Elements of a weight up to which tiles in time, whose weights take up to three times as much, are worth that: teachers are large.
_WORTH_MEMORY = 2**22
_ready: "weakref.WeakKeyDictionary[nn.Module, tuple[object, FastDecoder | None]]" = weakref.WeakKeyDictionary()


def fast_decoder(vae: nn.Module, spec: TeacherSpec) -> Callable[[Tensor], Tensor] | None:
    """Return what decodes latents (B, C, t, h, w) as the VAE's decoder does, within rounding: made again after weights have changed.

    Returns None for a decoder that no student equals, and for a VAE that is set to decode in tiles. Changes through a
    parameter's `.data` are not noticed.
    """
    if spec.class_name not in LTX_CLASSES or any(getattr(vae, way, False) for way in _TILED):
        return None
    decoder = cast(Any, vae).decoder
    weights = state_of(decoder.parameters())
    if vae not in _ready or _ready[vae][0] != weights:
        forget_decoder(vae)  # before the next one is there
        student = equal_student(vae, spec)
        speedups = Speedups(winograd_elements=_WORTH_MEMORY) if next(decoder.parameters()).device.type == "cpu" else None
        _ready[vae] = weights, None if student is None else FastDecoder(student, speedups=speedups)
    fast = _ready[vae][1]
    return None if fast is None else fast.decode


def forget_decoder(vae: nn.Module) -> None:
    """Free the fast form of a VAE's decoder, which the next `fast_decoder` makes again."""
    _ready.pop(vae, None)


def equal_student(vae: nn.Module, spec: TeacherSpec) -> StudentDecoder | None:
    """Return the student that computes what a teacher's decoder does, with the same weights in memory; None if there is none."""
    try:
        outline = outline_of(vae, spec)
        if not outline.exact:
            return None
        config = student_config(outline, [stage.channels for stage in outline.stages])
        with torch.device("meta"):
            student = StudentDecoder(**config, latent_channels=spec.latent_channels)
    except SettingsError:
        return None
    _set_weights(student, outline)
    return student.eval().requires_grad_(False)


def _set_weights(student: StudentDecoder, outline: Outline) -> None:
    _set(student.conv_in, outline.conv_in)
    for stage, block in zip(outline.stages, blocks_of(student, outline), strict=True):
        if stage.change is not None:
            _set_residual(block.conv_in, stage.change)
        if stage.upsampling is not None:
            _set(block.upsamplers[0].conv, stage.upsampling.weights)
        for resnet, residual in zip(block.resnets, stage.residuals, strict=True):
            _set_residual(resnet, residual)
    _set(student.conv_out, outline.conv_out)


def _set_residual(resnet: ResnetBlock, residual: Residual) -> None:
    assert residual.first is not None
    _set(cast(TimeReplicatedConv3d, resnet.conv1), residual.first)
    _set(cast(TimeReplicatedConv3d, resnet.conv2), residual.second)
    if residual.shortcut is not None:
        _set(resnet.conv_shortcut, residual.shortcut.weights)
        for name, value in residual.shortcut.norm.named_parameters():
            setattr(resnet.norm3, name, nn.Parameter(value.detach(), requires_grad=False))


def _set(layer: TimeReplicatedConv3d, weights: Weights) -> None:
    for name in ("weight", "bias"):
        setattr(layer.conv, name, nn.Parameter(getattr(weights, name), requires_grad=False))
