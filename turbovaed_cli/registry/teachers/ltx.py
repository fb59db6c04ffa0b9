"""The registry row of LTX-Video 0.9.0. Its latents have statistics per channel, in the weight files, and no scaling factor."""

from collections.abc import Mapping
from typing import Any

from turbovaed_cli.registry.specs import (
    STUDENT_LICENCE,
    STUDENT_REPO,
    AlignmentPair,
    FrameRule,
    ModelSpec,
    Published,
    StudentSpec,
    TeacherSpec,
    student_config,
)


def ltx_ratios(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the (time, space) compression ratios of an LTX VAE's config."""
    num_scaled = sum(config.get("decoder_spatio_temporal_scaling", (True, True, True, False)))  # the 0.9.0 config leaves it out
    return config.get("patch_size_t", 1) * 2**num_scaled, config.get("patch_size", 4) * 2**num_scaled


LTX = ModelSpec(
    name="ltx",
    title="LTX-Video 0.9.0",
    teacher=TeacherSpec(
        class_name="AutoencoderKLLTXVideo",
        repo="Lightricks/LTX-Video",
        folder="vae",
        num_bytes=1_680_000_000,
        latent_channels=128,
        time_ratio=8,
        space_ratio=32,
        frames=FrameRule(step=8, first=1),
        decoder_params_m=238.789,
        licence="LTX-Video Open Weights License 0.X",
        licence_note="from LTX 0.9.7 on, models made from outputs or activations count as derivatives",
        ratios=ltx_ratios,
    ),
    student=StudentSpec(
        config=student_config(128, (64, 128, 256, 512), (3, 2, 3, 1, 1), patch_size=4, spatio_only=False),
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block"),
            AlignmentPair("up_blocks.0", "decoder.up_blocks.0"),
            AlignmentPair("up_blocks.1", "decoder.up_blocks.1", head=True),
        ),
        params_m=41.896,
        published=Published(STUDENT_REPO, "Turbo-VAED-LTX.pth", 169_000_000, STUDENT_LICENCE),
    ),
    published_results={"psnr": (32.40, 31.68), "ssim": (0.9192, 0.9209), "lpips": (0.0394, 0.0419), "rfvd": (25.86, 25.01)},
)
