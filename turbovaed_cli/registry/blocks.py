"""The blocks of a student's decoder, from the lists of its config."""

from collections.abc import Sequence
from dataclasses import dataclass

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import SettingsError

CONV_TYPES = ("3d", "depthwise", "2+1d")  # of the convolutions of a block


@dataclass(frozen=True)
class BlockPlan:
    """One stage of the decoder in running order: the mid block first, then the up blocks."""

    channels: int
    num_layers: int
    conv: str  # of CONV_TYPES
    upsample_space: bool
    upsample_time: bool


def conv_types_of(conv_types: Sequence[str] | None, depthwise: Sequence[bool]) -> tuple[str, ...]:
    """Return the type of convolution of each block, output-first, the mid block last: by `decoder_conv_types`, if a config has it."""
    return tuple(conv_types or ("depthwise" if one else "3d" for one in depthwise))


def plan_blocks(
    channels: Sequence[int],
    layers: Sequence[int],
    depthwise: Sequence[bool],
    scaling: Sequence[bool],
    spatio_only: Sequence[bool] | None,
    temporal_only: Sequence[bool] | None = None,
    conv_types: Sequence[str] | None = None,
) -> list[BlockPlan]:
    """Return the blocks of a published config in running order; its lists are output-first.

    Raises SettingsError if the lengths of the lists disagree, if a block is to upsample only space and only time, or for an
    unknown type of convolution.
    """
    num_up = len(channels)
    spatio_only = spatio_only or [False] * num_up
    temporal_only = temporal_only or [False] * num_up
    lengths = {
        "decoder_layers_per_block": (len(layers), num_up + 1),
        "decoder_is_dw_conv": (len(depthwise), num_up + 1),
        "spatio_temporal_scaling": (len(scaling), num_up),
        "decoder_spatio_only": (len(spatio_only), num_up),
        "decoder_temporal_only": (len(temporal_only), num_up),
        "decoder_conv_types": (num_up + 1 if conv_types is None else len(conv_types), num_up + 1),
    }
    for name, (found, wanted) in lengths.items():
        if found != wanted:
            raise SettingsError(f"{name} has {found} entries; {num_up} decoder_block_out_channels need {wanted}")
    for i, both in enumerate(zip(spatio_only, temporal_only, strict=True)):
        if all(both):
            raise SettingsError(
                f"decoder_spatio_only and decoder_temporal_only both have entry {i} set", "a block upsamples one alone, or both"
            )
    convs = conv_types_of(conv_types, depthwise)
    for one in convs:
        check_choice("decoder_conv_types", one, CONV_TYPES)
    mid = BlockPlan(channels[-1], layers[-1], convs[-1], upsample_space=False, upsample_time=False)
    return [mid] + [
        BlockPlan(
            channels[i],
            layers[i],
            convs[i],
            upsample_space=scaling[i] and not temporal_only[i],
            upsample_time=scaling[i] and not spatio_only[i],
        )
        for i in reversed(range(num_up))
    ]
