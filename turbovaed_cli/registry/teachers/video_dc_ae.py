"""Video DC-AE, the autoencoder of Open-Sora 2.0.

No diffusers pipeline uses it. Open-Sora's pipeline divides its latents by 0.493, which is no property of the VAE.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from turbovaed_cli.registry.family import Family
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


@dataclass(frozen=True)
class VideoDCAE(Family):
    """Video DC-AE, whose encoder is deterministic and sees the whole clip. Its class is ours, with the keys of its authors."""

    class_name: ClassVar[str] = "VideoDCAE"
    module: ClassVar[str] = "turbovaed_cli.models.video_dc_ae"

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return 4, 32


VIDEO_DC_AE = ModelSpec(
    name="video-dc-ae",
    title="Open-Sora 2.0 Video DC-AE",
    recipe="night-480",
    aliases=("dc",),
    teacher=TeacherSpec(
        family=VideoDCAE(),
        repo="hpcai-tech/Open-Sora-v2-Video-DC-AE",
        folder="",
        num_bytes=1_840_000_000,
        latent_channels=128,
        time_ratio=4,
        space_ratio=32,
        # With 2 or 4 frames the time stages collapse to one frame.
        frames=FrameRule(step=4, first=0, minimum=8),
        decoder_params_m=239.022,
        licence="Apache-2.0",
        weights_file="F32T4C128_AE.safetensors",
    ),
    student=StudentSpec(
        config=student_config(128, (64, 128, 256, 512), (4, 3, 3, 3, 4), patch_size=4, spatio_only=True, dc=True),
        pairs=(
            AlignmentPair("mid_block", "decoder.project_in", head=True),
            AlignmentPair("up_blocks.0", "decoder.stages.5", head=True),
            AlignmentPair("up_blocks.1", "decoder.stages.4", head=True),
        ),
        params_m=45.831,
        published=Published(STUDENT_REPO, "Turbo-VAED-DC.pth", 201_000_000, STUDENT_LICENCE),
    ),
    published_results={"psnr": (34.94, 34.05), "ssim": (0.9594, 0.9475), "lpips": (0.0196, 0.0266), "rfvd": (4.74, 6.44)},
)

ROWS = (VIDEO_DC_AE,)
