"""Random small students of every kind: convolutions, tails, blocks that double time, space, both or nothing, causal and not."""

from typing import Any

import torch
from hypothesis import strategies as st

from turbovaed_cli.models.layers import SpaceThenTimeConv3d
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.network import ACTIVATIONS, TAILS
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.blocks import CONV_TYPES

BEFORE_TAIL = {1: 8, 2: 16, 4: 64, 8: 16}  # channels of the last block: a norm over one channel would be a step
KINDS = ("both", "space", "time", "none")


def member(*kinds: str, patch_size: int = 1, dc: bool = False, layers: int = 1, **others: Any) -> dict[str, Any]:
    """The config of a student whose blocks, output-first, upsample as `kinds` say."""
    return {
        "latent_channels": 4, "decoder_block_out_channels": (BEFORE_TAIL[patch_size], *(8,) * (len(kinds) - 1)),
        "decoder_layers_per_block": (layers,) * (len(kinds) + 1), "decoder_is_dw_conv": (False,) * len(kinds) + (True,),
        "decoder_dw_kernel_size": 3, "spatio_temporal_scaling": tuple(kind != "none" for kind in kinds),
        "decoder_spatio_only": tuple(kind == "space" for kind in kinds),
        "decoder_temporal_only": tuple(kind == "time" for kind in kinds), "patch_size": patch_size, "is_video_dc_ae": dc,
    } | others  # fmt: skip


@st.composite
def members(draw: st.DrawFn, most_blocks: int = 3) -> dict[str, Any]:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=most_blocks))
    count, flags = len(kinds), st.booleans()
    return member(*kinds, patch_size=draw(st.sampled_from((1, 2, 4))), dc=draw(flags)) | {
        "decoder_layers_per_block": tuple(draw(st.lists(st.integers(0, 1), min_size=count + 1, max_size=count + 1))),
        "decoder_is_dw_conv": tuple(draw(st.lists(flags, min_size=count + 1, max_size=count + 1))),
        "decoder_dw_kernel_size": draw(st.sampled_from((3, 5))),
        "decoder_conv_types": draw(st.none() | st.lists(st.sampled_from(CONV_TYPES), min_size=count + 1, max_size=count + 1)),
        "decoder_causal": draw(flags),
        "decoder_tail": draw(st.sampled_from(tuple(TAILS))),
        "decoder_activation": draw(st.sampled_from((None, *ACTIVATIONS))),
        "decoder_change_in_upsampler": draw(flags),
    }


# Those that teachers need: 4x16x16, 8x8x8 with a tail of 4, an image VAE, and one of the other kind that keeps first frames.
NAMED = {
    "4x16x16": member("space", "both", "both", "none", patch_size=2),
    "8x8x8": member("time", "time", "both", "none", patch_size=4),
    "images": member("space", "space", "none", patch_size=2),
    "keeps first frames": member("time", "space", patch_size=1, dc=True),
    "causal, in space then time, patches of 8": member(
        "both", "none", patch_size=8, decoder_tail="patches", decoder_conv_types=("2+1d",) * 3, decoder_causal=True,
        decoder_activation="relu",
    ),
    "channels change in an upsampler": member("space", "both", patch_size=2, decoder_change_in_upsampler=True),
}  # fmt: skip


def built(config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float64) -> StudentDecoder:
    torch.manual_seed(seed)
    student = build_student(config).to(dtype).eval()
    randomize_time(student)
    return student


def randomize_time(network: torch.nn.Module) -> None:
    """Give convolutions in time random weights; those after one in space begin as the identity."""
    for module in network.modules():
        if isinstance(module, SpaceThenTimeConv3d):
            torch.nn.init.normal_(module.temporal_conv.weight, std=0.6)


def latents_of(student: StudentDecoder, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, student.config.latent_channels, *shape, generator=generator, dtype=student.dtype)
