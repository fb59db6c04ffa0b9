"""LTX-Video. Its latents have statistics per channel, in the weight files, and no scaling factor."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

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

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LTXVideo(Family):
    """The VAE of LTX-Video: a causal, local encoder and a decoder that is not causal."""

    class_name: ClassVar[str] = "AutoencoderKLLTXVideo"
    comfyui_latents: ClassVar[str | None] = "normalised"  # its VAE undoes that itself
    carried: ClassVar[tuple[str, str]] = ("LTXVideoCausalConv3d", "LTXVideoDownsampler3d")  # convolutions and downsamplers

    def matches(self, config: Mapping[str, Any]) -> bool:
        return super().matches(config) and not config.get("timestep_conditioning")

    def check_config(self, config: Mapping[str, Any]) -> None:
        if any_of(config.get("decoder_inject_noise")):
            raise refuse(
                "a VAE with decoder_inject_noise",
                "its decoder adds random noise between its layers, so its output is no function of the latents",
                "LTX-Video 0.9.1 has such a decoder; 0.9.0 and 0.9.5 to 0.9.8 do not",
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


@dataclass(frozen=True)
class LTXVideo095(LTXVideo):
    """The VAE of LTX-Video 0.9.5 to 0.9.8, whose decoder takes a timestep too.

    With one fixed timestep, and without noise added to the latents, its output is a function of the latents. 0.05 is our
    choice: pipelines set it with their argument `decode_timestep`, whose default is 0.0.
    """

    decode_timestep: float | None = 0.05

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config["_class_name"] == self.class_name and bool(config.get("timestep_conditioning"))

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        timestep = latents.new_full((latents.shape[0],), cast("float", self.decode_timestep))
        return cast("Tensor", vae.decode(latents, temb=timestep).sample)


def any_of(value: object) -> bool:
    """Whether a config's switch is on, or one of a list of switches."""
    return any(value) if isinstance(value, list | tuple) else bool(value)


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

# The layers of the published student. Its block up_blocks.1 has the resolution of the teachers' up_blocks.0.
LTX_STUDENT = StudentSpec(
    config=LTX.student.config,
    pairs=(
        AlignmentPair("mid_block", "decoder.mid_block", head=True),
        AlignmentPair("up_blocks.1", "decoder.up_blocks.0", head=True),
    ),
    params_m=LTX.student.params_m,
)
LTX095 = ModelSpec(
    name="ltx0.9.5",
    title="LTX-Video 0.9.5 to 0.9.8",
    teacher=TeacherSpec(
        family=LTXVideo095(),
        repo="Lightricks/LTX-Video-0.9.5",  # unverified, as is the size: 2 bytes for each of 1,246,913,778 numbers
        folder="vae",
        num_bytes=2_494_000_000,
        latent_channels=128,
        time_ratio=8,
        space_ratio=32,
        frames=FrameRule(step=8, first=1),
        decoder_params_m=552.815,
        licence="OpenRAIL-M (0.9.5), LTX-Video Open Weights License 0.X (0.9.7 and 0.9.8)",
        licence_note="from LTX 0.9.7 on, models made from outputs or activations count as derivatives",
        config={
            "block_out_channels": (128, 256, 512, 1024, 2048),
            "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
            "decoder_block_out_channels": (256, 512, 1024),
            "layers_per_block": (4, 6, 6, 2, 2),
            "decoder_layers_per_block": (5, 5, 5, 5),
            "spatio_temporal_scaling": (True,) * 4,
            "decoder_spatio_temporal_scaling": (True,) * 3,
            "decoder_inject_noise": (False,) * 4,
            "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            "upsample_residual": (True,) * 3,
            "upsample_factor": (2,) * 3,
            "timestep_conditioning": True,
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        },
    ),
    student=LTX_STUDENT,
)

ROWS = (LTX, LTX095)
