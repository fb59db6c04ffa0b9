"""The students of a teacher: `full`, and the smaller and the causal ones that one rule derives from it.

full    the student of the row, in the published layout; its name is that of the teacher, such as "ltx"
lite    fewer channels and cheaper convolutions, for about 0.35 of the full student's decode time: "ltx-lite"
nano    the same with fewer channels and layers still, for about 0.12 of it: "ltx-nano"
causal  the full layout, of which no frame depends on a later one: "ltx-causal"; a teacher of images has none

The rule for `lite` and `nano`, in this order:
1. If the last block upsamples space alone and no tail follows, that block is left out, and a tail of 2x2 patches takes its place.
2. Full 3x3x3 convolutions become 1x3x3 in space and then 3x1x1 per channel in time. Depthwise blocks stay.
3. The tail is one convolution to patches, and every activation is ReLU.
4. Layers are scaled by the factor of the member, rounded up.
5. Channels are scaled by one factor, at most 1: the largest with which a decode takes at most the member's share of GFLOPs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from turbovaed_cli.registry.blocks import conv_types_of
from turbovaed_cli.registry.cost import cost_of
from turbovaed_cli.registry.specs import ModelSpec, StudentSpec

FULL, CAUSAL = "full", "causal"
WIDTH_STEP = 8  # channels are multiples of this: the vector width of the kernels that will run them
REFERENCE_FRAMES = 17  # or the next count that the teacher takes: the clip of which the shares of GFLOPs are


@dataclass(frozen=True)
class MemberRule:
    """How a smaller student is derived from the full one."""

    gflops_share: float  # of the full student's, at most, unless the narrowest takes more
    layers: float  # factor of the layers per block


RULES = {"lite": MemberRule(gflops_share=0.18, layers=1.0), "nano": MemberRule(gflops_share=0.06, layers=0.5)}
MEMBERS = (FULL, *RULES, CAUSAL)
_CLEARLY_LESS = 0.8  # of the GFLOPs of `lite`: what `nano` takes at most


def members_of(spec: ModelSpec) -> tuple[str, ...]:
    """Return the members of the family of a teacher's students, "full" first.

    A teacher of images has no `causal`. There is no `nano` if `lite` is as narrow as the latents allow already.
    """
    left_out = {CAUSAL} if spec.teacher.family.is_of_images else set()
    latents = _reference_latents(spec)
    lite, nano = (cost_of(config_by(RULES[name], spec), latents).gflops for name in ("lite", "nano"))
    if nano > _CLEARLY_LESS * lite:
        left_out.add("nano")
    return tuple(name for name in MEMBERS if name not in left_out)


def member_in(model: str, teacher: str) -> str:
    """Return the member of the student that a run names `model`, such as "ltx-lite", of the teacher at `teacher`."""
    name, _, member = model.rpartition("-")
    return member if name and member in MEMBERS and PurePath(teacher).name != model else FULL


def name_of_member(teacher: str, member: str) -> str:
    """Return the name of a student: "ltx-lite"; that of the teacher for the full one."""
    return teacher if member == FULL else f"{teacher}-{member}"


def member_of(spec: ModelSpec, member: str) -> ModelSpec:
    """Return the row of one member of a full row's family: its teacher with another student, and that student's name.

    `spec` is a row of the registry or of a local teacher, and `member` one of `members_of` it.
    """
    if member == FULL:
        return spec
    config = causal_config(spec.student.config) if member == CAUSAL else config_by(RULES[member], spec)
    config |= spec.own_members.get(member, {})
    params = cost_of(config, _reference_latents(spec)).params
    return replace(
        spec,
        name=name_of_member(spec.name, member),
        member=member,
        student=StudentSpec(
            config,
            _pairs_that_fit(spec, config),
            None if spec.student.params_m is None else round(params / 1e6, 3),  # of a local folder it is counted
        ),
        aliases=tuple(name_of_member(alias, member) for alias in spec.aliases),
        published_results={},
    )


def causal_config(full: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the causal student."""
    return {**full, "decoder_causal": True}


def config_by(rule: MemberRule, spec: ModelSpec) -> dict[str, Any]:
    """Return the config of a smaller student of `spec`'s teacher."""
    latents = _reference_latents(spec)
    most = rule.gflops_share * cost_of(spec.student.config, latents).gflops
    light = light_config(spec.student.config)
    light["decoder_layers_per_block"] = tuple(math.ceil(layers * rule.layers) for layers in light["decoder_layers_per_block"])
    found = [light | {"decoder_block_out_channels": channels} for channels in widths_of(light, spec.teacher.latent_channels, 1.0)]
    within = [config for config in found if cost_of(config, latents).gflops <= most]
    return within[-1] if within else min(found, key=lambda config: cost_of(config, latents).gflops)


def _reference_latents(spec: ModelSpec) -> tuple[int, int, int]:
    """Return (t, h, w) of the clip of which shares of GFLOPs are; they do not depend on height and width."""
    return spec.teacher.latent_frames(spec.teacher.frames.at_least(REFERENCE_FRAMES)), 1, 1


def light_config(full: Mapping[str, Any]) -> dict[str, Any]:
    """Return a full student's config with cheaper convolutions and a tail of patches, at its widths and depths."""
    light = dict(full)
    if full["patch_size"] == 1 and _upsamples_space_alone(full, 0) and len(full["decoder_block_out_channels"]) > 1:
        lists = [name for name, value in full.items() if isinstance(value, Sequence) and name in _PER_BLOCK]
        light |= {name: tuple(full[name][1:]) for name in lists} | {"patch_size": 2}
    own = conv_types_of(light.get("decoder_conv_types"), light["decoder_is_dw_conv"])
    types = tuple("2+1d" if kind == "3d" else kind for kind in own)
    return light | {"decoder_conv_types": types, "decoder_tail": "patches", "decoder_activation": "relu"}


# Lists of a config with an entry for each block, output-first.
_PER_BLOCK = (
    "decoder_block_out_channels", "decoder_layers_per_block", "decoder_is_dw_conv", "decoder_conv_types",
    "spatio_temporal_scaling", "decoder_spatio_only", "decoder_temporal_only",
)  # fmt: skip


def _upsamples_space_alone(config: Mapping[str, Any], block: int) -> bool:
    only_space = config.get("decoder_spatio_only")
    return bool(config["spatio_temporal_scaling"][block] and only_space and only_space[block])


def widths_of(config: Mapping[str, Any], latent_channels: int, widest: float) -> list[tuple[int, ...]]:
    """Return channel lists from narrow to wide, output-first: those of `config` scaled by one factor, at most `widest`.

    A list narrows towards the latents only if that of `config` does. Blocks at the resolution of the latents are no narrower
    than the latents, or part of these would be lost. A tail of convolutions divides the last block's channels by the square of
    patch_size. So with patch_size 4 these are multiples of 16, at least 48, and with 2 at least 16: the norm after the tail
    needs as many values as there are colours. Before a tail of patches they are at least half of the values of a patch.
    """
    given, divided = config["decoder_block_out_channels"], config["patch_size"] ** 2
    has_patches = config.get("decoder_tail") == "patches"
    step = WIDTH_STEP if has_patches else max(divided, WIDTH_STEP)
    least = _up(3 * divided // 2 if has_patches else 3 * divided, step)
    at_latents = min(latent_channels, given[-1])
    found = set()
    for most in range(WIDTH_STEP, int(widest * given[-1]) + 1, WIDTH_STEP):
        factor = most / given[-1]
        channels = [max(least, nearest(given[0] * factor, step))]
        for i in range(1, len(given)):
            upsamples = config["spatio_temporal_scaling"][i] and i < len(given) - 1  # the mid block never does
            floor = 1 if upsamples else at_latents
            before = channels[-1] if given[i] >= given[i - 1] else 1
            channels.append(max(before, _up(floor, WIDTH_STEP), nearest(given[i] * factor, WIDTH_STEP)))
        found.add(tuple(channels))
    return sorted(found)


def nearest(value: float, step: int) -> int:
    """Return the multiple of `step` nearest to a value; the larger of two."""
    return math.floor(value / step + 0.5) * step


def _up(value: int, step: int) -> int:
    return math.ceil(value / step) * step


def _pairs_that_fit(spec: ModelSpec, config: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the alignment pairs of the full student whose block is there, at the same resolution, in `config`."""
    full, ours = _resolutions(spec.student.config), _resolutions(config)
    return tuple(
        pair for pair in spec.student.pairs if pair.student_block in ours and ours[pair.student_block] == full[pair.student_block]
    )


def _resolutions(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the factors by which the output of each block is larger than the latents, in time and in space."""
    time = space = 1
    found = {"mid_block": (1, 1)}
    num = len(config["decoder_block_out_channels"])
    none = (False,) * num
    only_space, only_time = (config.get(name) or none for name in ("decoder_spatio_only", "decoder_temporal_only"))
    for place, i in enumerate(reversed(range(num))):
        if config["spatio_temporal_scaling"][i]:
            time, space = time * (1 if only_space[i] else 2), space * (1 if only_time[i] else 2)
        found[f"up_blocks.{place}"] = (time, space)
    return found
