"""HunyuanVideo."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from turbovaed_cli.registry.family import Family, RequiredSetting
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

_SCALING = 0.476986  # pipelines divide latents by it before they decode


@dataclass(frozen=True)
class HunyuanVideo(Family):
    """The VAE of HunyuanVideo, whose norms and attention see the whole clip."""

    class_name: ClassVar[str] = "AutoencoderKLHunyuanVideo"
    required: ClassVar[tuple[RequiredSetting, ...]] = (
        RequiredSetting("use_framewise_encoding", False, "split in time, frames 14-16 change from 17 frames on"),
        RequiredSetting("use_framewise_decoding", False, "split in time, a tap fires twice and sees only a part"),
    )

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return config.get("temporal_compression_ratio", 4), config.get("spatial_compression_ratio", 8)


HUNYUAN = ModelSpec(
    name="hunyuan",
    title="HunyuanVideo",
    teacher=TeacherSpec(
        family=HunyuanVideo(),
        repo="hunyuanvideo-community/HunyuanVideo",
        folder="vae",
        num_bytes=986_000_000,
        latent_channels=16,
        time_ratio=4,
        space_ratio=8,
        frames=FrameRule(step=4, first=1),
        decoder_params_m=146.136,
        licence="Tencent Hunyuan Community License",
        licence_note="excludes the EU, the UK and South Korea, and calls distilled models derivatives",
    ),
    student=StudentSpec(
        config=student_config(16, (16, 32, 256, 512), (5, 4, 4, 4, 5), patch_size=1, spatio_only=True, scaling_factor=_SCALING),
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block"),
            AlignmentPair("up_blocks.0", "decoder.up_blocks.0", head=True, transform="shuffle2d"),
        ),
        params_m=40.688,
        published=Published(STUDENT_REPO, "Turbo-VAED-Hunyuan.pth", 184_000_000, STUDENT_LICENCE),
    ),
    published_results={"psnr": (36.48, 36.62), "ssim": (0.9663, 0.9674), "lpips": (0.0126, 0.0154), "rfvd": (1.52, 2.43)},
)

ROWS = (HUNYUAN,)
