"""The registry row of CogVideoX 1.5."""

from collections.abc import Mapping
from typing import Any

from turbovaed_cli.registry.specs import (
    STUDENT_LICENCE,
    STUDENT_REPO,
    AlignmentPair,
    FrameRule,
    ModelSpec,
    Published,
    RequiredSetting,
    StudentSpec,
    TeacherSpec,
    student_config,
)

_SCALING = 0.7  # pipelines divide latents by it before they decode


def _cogvideox_ratios(config: Mapping[str, Any]) -> tuple[int, int]:
    # int() because some published configs have 4.0
    return int(config.get("temporal_compression_ratio", 4)), 2 ** (len(config["block_out_channels"]) - 1)


COGVIDEOX = ModelSpec(
    name="cogvideox",
    title="CogVideoX 1.5",
    aliases=("cog",),
    teacher=TeacherSpec(
        class_name="AutoencoderKLCogVideoX",
        repo="zai-org/CogVideoX1.5-5B",
        folder="vae",
        num_bytes=862_000_000,
        latent_channels=16,
        time_ratio=4,
        space_ratio=8,
        # 13 frames encode to 4 latents, which decode to 16 frames: only 8k+1 round-trips. From 16 latents on the class
        # decodes in chunks, which changes pixels and shows a tap one chunk only.
        frames=FrameRule(step=8, first=1, maximum=57),
        decoder_params_m=123.368,
        licence="CogVideoX License",
        required=(
            RequiredSetting(
                "num_latent_frames_batch_size", 8, "GroupNorm per chunk of 2 changes the output, and a tap sees one chunk"
            ),
            RequiredSetting("num_sample_frames_batch_size", 8, "the chunk the encoder was trained with"),
        ),
        ratios=_cogvideox_ratios,
    ),
    student=StudentSpec(
        config=student_config(16, (16, 32, 256, 512), (5, 4, 4, 4, 5), patch_size=1, spatio_only=True, scaling_factor=_SCALING),
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block"),
            AlignmentPair("up_blocks.0", "decoder.up_blocks.0", head=True, transform="shuffle3d"),
        ),
        params_m=40.688,
        published=Published(STUDENT_REPO, "Turbo-VAED-Cog.pth", 238_000_000, STUDENT_LICENCE),
    ),
    published_results={"psnr": (36.23, 35.58), "ssim": (0.9591, 0.9606), "lpips": (0.0197, 0.0181), "rfvd": (4.73, 3.09)},
)
