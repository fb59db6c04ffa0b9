"""LTX-Video 0.9.0. Its latents have statistics per channel, in the weight files, and no scaling factor."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from turbovaed_cli.registry.carry import Carry, reach_of
from turbovaed_cli.registry.family import Family, Piecewise, refuse
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
class LTXVideo(Family):
    """The VAE of LTX-Video: a causal, local encoder and a decoder that is not causal."""

    class_name: ClassVar[str] = "AutoencoderKLLTXVideo"
    carried: ClassVar[tuple[str, str]] = ("LTXVideoCausalConv3d", "LTXVideoDownsampler3d")  # convolutions and downsamplers

    def check_config(self, config: Mapping[str, Any]) -> None:
        for name in ("timestep_conditioning", "decoder_inject_noise"):
            value = config.get(name)
            if any(value) if isinstance(value, list | tuple) else value:
                raise refuse(
                    f"a VAE with {name}",
                    "its decoder needs more than latents, which a student cannot learn to do without",
                    "LTX-Video 0.9.0 has a plain decoder; 0.9.1 and later do not",
                )

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        num_scaled = sum(
            config.get("decoder_spatio_temporal_scaling", (True, True, True, False))
        )  # the 0.9.0 config leaves it out
        return config.get("patch_size_t", 1) * 2**num_scaled, config.get("patch_size", 4) * 2**num_scaled

    def piecewise(self, vae: Any) -> Piecewise | None:
        if not vae.config.get("encoder_causal", True):
            return None
        ratio, _ = self.ratios(vae.config)
        return Piecewise(ratio, lambda kept: partial(Carry(*self.carried, kept).encode, vae, self.posterior))

    def reach(self, vae: Any) -> int:
        return reach_of(vae.encoder, self.carried[1], vae.config.patch_size)


LTX = ModelSpec(
    name="ltx",
    title="LTX-Video 0.9.0",
    teacher=TeacherSpec(
        family=LTXVideo(),
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

ROWS = (LTX,)
