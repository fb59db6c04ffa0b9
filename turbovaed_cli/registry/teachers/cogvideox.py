"""CogVideoX 1.5."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from turbovaed_cli.registry.family import Family, Piecewise, RequiredSetting
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

if TYPE_CHECKING:
    from torch import Tensor

    from turbovaed_cli.registry.family import EncodeNext

_SCALING = 0.7  # pipelines divide latents by it before they decode


@dataclass(frozen=True)
class CogVideoX(Family):
    """The VAE of CogVideoX, whose own encode takes eight frames at a time after the first."""

    class_name: ClassVar[str] = "AutoencoderKLCogVideoX"
    required: ClassVar[tuple[RequiredSetting, ...]] = (
        RequiredSetting(
            "num_latent_frames_batch_size", 8, "GroupNorm per chunk of 2 changes the output, and a tap sees one chunk"
        ),
        RequiredSetting("num_sample_frames_batch_size", 8, "the chunk the encoder was trained with"),
    )

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        # int() because some published configs have 4.0
        return int(config.get("temporal_compression_ratio", 4)), 2 ** (len(config["block_out_channels"]) - 1)

    def piecewise(self, vae: Any) -> Piecewise:
        def begin(_kept: object) -> "EncodeNext":
            cache: dict[str, Any] | None = None

            def encode(video: "Tensor") -> "Tensor":
                nonlocal cache
                made, cache = vae.encoder(video, conv_cache=cache)
                moments = made if vae.quant_conv is None else vae.quant_conv(made)
                return cast("Tensor", moments.chunk(2, dim=1)[0])

            return encode

        return Piecewise(8, begin, fixed=True)


COGVIDEOX = ModelSpec(
    name="cogvideox",
    title="CogVideoX 1.5",
    aliases=("cog",),
    teacher=TeacherSpec(
        family=CogVideoX(),
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

ROWS = (COGVIDEOX,)
