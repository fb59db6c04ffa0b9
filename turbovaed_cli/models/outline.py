"""What a teacher's decoder is made of, in the terms of a student: stages of residual blocks, with their weights and taps.

Only decoders whose layers have counterparts in a student have an outline: those of LTX-Video, LTX-2 and Wan.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.layers import LAYER_NORM_EPS, RMS_EPS
from turbovaed_cli.models.network import StudentNetwork
from turbovaed_cli.registry.specs import TeacherSpec

LTX_CLASSES = ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video")


@dataclass(frozen=True)
class Weights:
    """A convolution's weight (O, I, 3, 3, 3) or (O, I, 1, 1, 1) and bias (O,). Outputs are in the order of the student's shuffles."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Residual:
    """A residual block: norm, SiLU and convolution, twice, plus the input.

    `hidden` and `tap` are the modules of the teacher after the first convolution and after the block. `first` is None if it has
    another input than a student's block at this place. `gains` (in, hidden) scale what the two norms return.
    """

    first: Weights | None
    second: Weights
    hidden: str
    tap: str
    gains: tuple[Tensor | None, Tensor | None] = (None, None)
    shortcut: "Shortcut | None" = None


@dataclass(frozen=True)
class Shortcut:
    """The way past a residual block that changes channels: a LayerNorm and a 1x1x1 convolution, whose module is `tap`."""

    norm: nn.LayerNorm
    weights: Weights
    tap: str


@dataclass(frozen=True)
class Upsampling:
    """A convolution and a pixel shuffle by `time` and `space`."""

    weights: Weights
    time: int
    space: int


@dataclass(frozen=True)
class Stage:
    """The blocks between two upsamplings. `tap` is the module whose output is the stage's input, of `channels`."""

    channels: int
    tap: str
    residuals: tuple[Residual, ...]
    upsampling: Upsampling | None = None
    change: Residual | None = None  # before the upsampling, if it changes channels

    @property
    def last_tap(self) -> str:
        """The module whose output is the stage's output."""
        return self.residuals[-1].tap if self.residuals else self.tap


@dataclass(frozen=True)
class Outline:
    """A decoder: `conv_in`, stages, then norm, SiLU and `conv_out`, whose outputs are patches of `patch` x `patch` pixels.

    `exact`: a student of the same widths computes the same function, within rounding.
    """

    conv_in: Weights
    stages: tuple[Stage, ...]
    conv_out: Weights
    patch: int
    causal: bool
    exact: bool
    gain_out: Tensor | None = None
    change_in_upsampler: bool = False


def outline_of(vae: nn.Module, spec: TeacherSpec) -> Outline:
    """Return the outline of a teacher's decoder. Raises SettingsError for one that no student can be cut from."""
    kind = spec.class_name
    if kind in LTX_CLASSES:
        return _of_ltx(vae, spec)
    if kind in ("AutoencoderKLWan", "AutoencoderKLQwenImage"):
        return _of_wan(vae)
    raise SettingsError(
        f"no student can be cut from the decoder of a {kind}: its layers have no counterparts in a student",
        "`init` prune works for the teachers of LTX-Video, LTX-2 and Wan; leave `init` out, the recipes fit another start",
    )


def _weights(convolution: nn.Module) -> Weights:
    inner = cast(Any, getattr(convolution, "conv", convolution))  # LTX wraps its convolutions
    return Weights(inner.weight.detach(), inner.bias.detach())


def _reordered(weights: Weights, time: int, space: int) -> Weights:
    """Return a convolution whose outputs are in the order (c, t, h, w) in the student's order (c, h, w, t)."""

    def moved(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, time, space, space)).movedim(1, 3).flatten(0, 3)

    return Weights(moved(weights.weight), moved(weights.bias))


def _patches_reordered(weights: Weights, patch: int) -> Weights:
    """Return the last convolution with the rows and columns of its patches in the student's order: rows first."""

    def moved(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, patch, patch)).transpose(1, 2).flatten(0, 2)

    return Weights(moved(weights.weight), moved(weights.bias))


def student_config(outline: Outline, widths: Sequence[int]) -> dict[str, Any]:
    """Return the config of a student with the layers of a decoder and `widths` channels in its stages, in the published key names."""
    mid, *others = outline.stages
    # The mid block is as wide as the first block after it, which may be empty.
    blocks = [(widths[0], Stage(mid.channels, mid.tap, ()))] * (widths[0] != widths[1])
    blocks = list(reversed([*blocks, *zip(widths[1:], others, strict=True)]))
    scaled = [(stage.upsampling.time, stage.upsampling.space) if stage.upsampling else (1, 1) for _, stage in blocks]
    return {
        "decoder_block_out_channels": [width for width, _ in blocks],
        "decoder_layers_per_block": [*(len(stage.residuals) for _, stage in blocks), len(mid.residuals)],
        "decoder_is_dw_conv": [False] * (len(blocks) + 1),
        "spatio_temporal_scaling": [one != (1, 1) for one in scaled],
        "decoder_spatio_only": [one == (1, 2) for one in scaled],
        "decoder_temporal_only": [one == (2, 1) for one in scaled],
        "patch_size": outline.patch,
        "decoder_tail": "patches",
        "decoder_activation": "silu",
        "decoder_causal": outline.causal,
        "decoder_change_in_upsampler": outline.change_in_upsampler,
    }


def blocks_of(student: StudentNetwork, outline: Outline) -> list[Any]:
    """Return the block of each stage in a student of `student_config`: its mid block, then up blocks; an empty one may stand between."""
    return [student.mid_block, *student.up_blocks[len(student.up_blocks) - (len(outline.stages) - 1) :]]


def _of_ltx(vae: Any, spec: TeacherSpec) -> Outline:
    decoder, config = vae.decoder, vae.config
    if config.get("patch_size_t", 1) != 1:
        raise SettingsError("no student can be cut from a decoder with patch_size_t above 1", "leave `init` out")
    causal = bool(config.get("decoder_causal"))
    inputs = spec.family.decoder_inputs()
    timestep = inputs["decode_timestep"] * decoder.timestep_scale_multiplier.detach().view(1) if inputs else None
    residuals = _resnets(decoder.mid_block, "decoder.mid_block", timestep)
    stages = [Stage(decoder.conv_in.conv.out_channels, "decoder.conv_in", residuals)]
    changes = False
    for i, block in enumerate(decoder.up_blocks):
        name = f"decoder.up_blocks.{i}"
        change = None if block.conv_in is None else _resnet(block.conv_in, f"{name}.conv_in", None)
        upsampling, tap = None, stages[-1].last_tap if change is None else change.tap
        before = stages[-1].channels if change is None else change.second.weight.shape[0]
        channels = before
        if block.upsamplers is not None:
            upsampler, tap = block.upsamplers[0], f"{name}.upsamplers.0"
            time, space, _ = upsampler.stride
            channels = upsampler.conv.conv.out_channels // (time * space * space)
            upsampling = Upsampling(_ltx_upsampler(upsampler, causal=causal), time, space)
            changes |= channels != before
        stages.append(Stage(channels, tap, _resnets(block, name, timestep), upsampling, change))
    if changes and any(stage.change for stage in stages):
        raise SettingsError("no student can be cut from a decoder that changes channels in two ways", "leave `init` out")
    is_student = getattr(decoder.conv_in.conv, "padding_mode", "zeros") == "zeros" and all(
        map(_is_of_a_student, decoder.modules())
    )
    gain_out = None if timestep is None else _gains(decoder, timestep, decoder.scale_shift_table)[0]
    conv_out = _patches_reordered(_weights(decoder.conv_out), config.patch_size)
    return Outline(
        _weights(decoder.conv_in), tuple(stages), conv_out, config.patch_size, causal,
        exact=is_student and timestep is None, gain_out=gain_out, change_in_upsampler=changes,
    )  # fmt: skip


def _is_of_a_student(module: nn.Module) -> bool:
    """Whether a norm or an activation of a decoder is that of a student; other modules are not looked at."""
    kind = type(module).__name__
    if kind == "RMSNorm":
        return getattr(module, "weight", None) is None and cast(Any, module).eps == RMS_EPS
    if isinstance(module, nn.LayerNorm):
        return module.eps == LAYER_NORM_EPS
    return kind not in ("ReLU", "GELU", "Mish", "ReLU6")


def _gains(block: Any, timestep: Tensor, table: Tensor) -> list[Tensor]:
    """Return what the norms after a decoder's timestep are scaled by; every second row of `table` is a scale. Shifts are left out."""
    embedded = block.time_embedder(
        timestep=timestep, resolution=None, aspect_ratio=None, batch_size=1, hidden_dtype=table.dtype
    ).detach()
    return list((embedded.view(len(table), -1) + table.detach())[1::2] + 1)


def _resnets(block: Any, name: str, timestep: Tensor | None) -> tuple[Residual, ...]:
    found = []
    for i, resnet in enumerate(block.resnets):
        gains = None if timestep is None else _gains(block, timestep, resnet.scale_shift_table)
        found.append(_resnet(resnet, f"{name}.resnets.{i}", gains))
    return tuple(found)


def _resnet(resnet: Any, name: str, gains: Sequence[Tensor | None] | None) -> Residual:
    shortcut = None
    if resnet.conv_shortcut is not None:
        shortcut = Shortcut(resnet.norm3, _weights(resnet.conv_shortcut), f"{name}.conv_shortcut")
    first, second = gains or (None, None)
    return Residual(_weights(resnet.conv1), _weights(resnet.conv2), f"{name}.conv1", name, (first, second), shortcut)


def _ltx_upsampler(upsampler: Any, *, causal: bool) -> Weights:
    """Return the convolution of an upsampler; its residual, which copies channels, is added to the middle taps."""
    time, space, _ = upsampler.stride
    weights = _weights(upsampler.conv)
    if upsampler.residual:
        out_channels, in_channels = weights.weight.shape[:2]
        per_pixel = time * space * space
        sources = torch.arange(out_channels) % in_channels  # (c, t, h, w), repeated until there are enough
        assert in_channels % per_pixel == 0
        weight = weights.weight.clone()
        weight[torch.arange(out_channels), sources, 2 if causal else 1, 1, 1] += 1
        weights = Weights(weight, weights.bias)
    return _reordered(weights, time, space)


def _of_wan(vae: Any) -> Outline:
    """Wan upsamples at the end of a block, and changes channels in the first residual block after: the student does both at once."""
    decoder, config = vae.decoder, vae.config
    first = _after(_weights(vae.post_quant_conv), _weights(decoder.conv_in))
    stages: list[Stage] = []
    residuals = list(_wan_mid(decoder.mid_block))
    channels, tap, upsampling = decoder.conv_in.out_channels, "decoder.conv_in", None
    for i, block in enumerate(decoder.up_blocks):
        name = f"decoder.up_blocks.{i}"
        resnets = [(resnet, f"{name}.resnets.{j}") for j, resnet in enumerate(block.resnets)]
        if upsampling is not None:
            changed = getattr(resnets[0][0].conv_shortcut, "weight", None)
            if changed is not None:  # the 1x1x1 convolution joins the upsampler's, which has no activation
                channels, tap = len(changed), f"{resnets[0][1]}.conv_shortcut"
                shortcut, shuffled = _weights(resnets[0][0].conv_shortcut), upsampling.time * upsampling.space**2
                upsampling = Upsampling(_before(upsampling.weights, shortcut, shuffled), upsampling.time, upsampling.space)
        residuals += [_wan_resnet(resnet, at) for resnet, at in resnets]
        upsampler = block.upsamplers[0] if getattr(block, "upsamplers", None) else getattr(block, "upsampler", None)
        if upsampler is None:
            continue
        stages.append(Stage(channels, tap, tuple(residuals), upsampling))
        upsampling, channels = _wan_upsampler(upsampler, getattr(block, "avg_shortcut", None))
        tap, residuals = name, []
    stages.append(Stage(channels, tap, tuple(residuals), upsampling))
    patch = int(config.get("patch_size") or 1)
    return Outline(
        first, tuple(stages), _patches_reordered(_weights(decoder.conv_out), patch), patch, causal=True, exact=False,
        gain_out=decoder.norm_out.gamma.detach().flatten(), change_in_upsampler=True,
    )  # fmt: skip


def _wan_mid(block: Any) -> Iterator[Residual]:
    """Yield the residual blocks of the middle; the attention after one is left to the fit, whose target comes after it."""
    for i, resnet in enumerate(block.resnets):
        found = _wan_resnet(resnet, f"decoder.mid_block.resnets.{i}")
        attended = i < len(block.attentions) and block.attentions[i] is not None
        tap = f"decoder.mid_block.attentions.{i}" if attended else found.tap
        yield Residual(found.first, found.second, found.hidden, tap, found.gains)


def _wan_resnet(resnet: Any, name: str) -> Residual:
    gains = (resnet.norm1.gamma.detach().flatten(), resnet.norm2.gamma.detach().flatten())
    changes = resnet.in_dim != resnet.out_dim
    first = None if changes else _weights(resnet.conv1)
    return Residual(first, _weights(resnet.conv2), f"{name}.conv1", name, (None if changes else gains[0], gains[1]))


def _wan_upsampler(upsampler: Any, copies: Any) -> tuple[Upsampling, int]:
    """Return one causal convolution for an upsampler: in time, then pixels repeated and convolved, and the copied channels."""
    in_space: Any = upsampler.resample[1]
    weight, bias = in_space.weight.detach(), in_space.bias.detach()  # (O, C, 3, 3)
    rows = weight.new_zeros(2, 3, 3)  # which input row (of three) a tap of each of two output rows sees
    for which in range(2):
        for tap in range(3):
            rows[which, tap, (which + tap - 1) // 2 + 1] = 1
    spread = torch.einsum("ocab,iay,jbx->ocijyx", weight, rows, rows)  # (O, C, 2, 2, 3, 3)
    channels = upsampler.dim
    time = 2 if upsampler.mode == "upsample3d" else 1
    if time == 2:
        convolution = _weights(upsampler.time_conv)
        in_time, constant = (
            convolution.weight[:, :, :, 0, 0].unflatten(0, (2, channels)),
            convolution.bias.unflatten(0, (2, channels)),
        )
    else:
        in_time = weight.new_zeros(1, channels, channels, 3)
        in_time[0, :, :, 2] = torch.eye(channels, device=weight.device)
        constant = weight.new_zeros(1, channels)
    whole = torch.einsum("ocijyx,sckd->oijskdyx", spread, in_time)  # (O, 2, 2, time, I, 3, 3, 3)
    made = torch.einsum("ocijyx,sc->oijs", spread, constant) + bias.view(-1, 1, 1, 1)
    if copies is not None:
        order = torch.arange(len(weight) * time * 4).view(-1, time, 2, 2).movedim(1, 3)  # (O, 2, 2, time)
        sources = (order // copies.repeats).flatten()
        flat = whole.flatten(0, 3)
        flat[torch.arange(len(flat)), sources, 2, 1, 1] += 1
        whole = flat.view(whole.shape)
    return Upsampling(Weights(whole.flatten(0, 3), made.flatten()), time, 2), len(weight)


def _after(pointwise: Weights, convolution: Weights) -> Weights:
    """Return one convolution for a 1x1x1 one followed by another, right but for the borders that are padded with zeros."""
    weight = torch.einsum("omdhw,mi->oidhw", convolution.weight, pointwise.weight[:, :, 0, 0, 0])
    bias = convolution.bias + torch.einsum("omdhw,m->o", convolution.weight, pointwise.bias)
    return Weights(weight, bias)


def _before(convolution: Weights, pointwise: Weights, shuffled: int) -> Weights:
    """Return one convolution for one whose outputs are shuffled to `shuffled` pixels each, followed by a 1x1x1 one."""
    weight = convolution.weight.unflatten(0, (-1, shuffled))
    mixed = torch.einsum("om,msidhw->osidhw", pointwise.weight[:, :, 0, 0, 0], weight).flatten(0, 1)
    bias = torch.einsum("om,ms->os", pointwise.weight[:, :, 0, 0, 0], convolution.bias.unflatten(0, (-1, shuffled)))
    return Weights(mixed, (bias + pointwise.bias.view(-1, 1)).flatten())
