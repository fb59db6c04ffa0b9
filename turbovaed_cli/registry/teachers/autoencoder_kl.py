"""AutoencoderKL, the image VAE of Stable Diffusion and FLUX.1. Folders of SD 1.x, 2.x and 3.x are of this class too."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from turbovaed_cli.registry.image_vae import ANY_FRAMES, ImageVAE, image_student
from turbovaed_cli.registry.specs import AlignmentPair, ModelSpec, StudentSpec, TeacherSpec

# Names of the projections of attention: in files from before diffusers 0.14, such as those of SD 1.5, and since.
_RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class AutoencoderKL(ImageVAE):
    """The class of Stable Diffusion's VAE.

    Pipelines compute latents / scaling_factor + shift_factor before they decode: the shift is the mean of every channel.
    """

    class_name: ClassVar[str] = "AutoencoderKL"
    has_shift: ClassVar[bool] = False

    def matches(self, config: Mapping[str, Any]) -> bool:
        return super().matches(config) and (config.get("shift_factor") is not None) == self.has_shift

    def weight_name(self, name: str) -> str:
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        return name

    def statistics(self, vae: Any) -> dict[str, Any]:
        found = super().statistics(vae)
        if (shift := vae.config.get("shift_factor")) is not None and "latents_mean" not in found:
            found["latents_mean"] = [float(shift)] * vae.config.latent_channels
        return found


@dataclass(frozen=True)
class ShiftedKL(AutoencoderKL):
    """The same with a shift of the latents, as in FLUX.1 and SD 3."""

    has_shift: ClassVar[bool] = True


KL_CONFIG = {  # of the full size; the defaults of the class are a tiny network
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024,
}  # fmt: skip
KL_PAIRS = (
    AlignmentPair("mid_block", "decoder.mid_block"),
    AlignmentPair("up_blocks.0", "decoder.up_blocks.0", head=True, transform="shuffle2d"),
)


def kl_student(latent_channels: int, scaling_factor: float) -> dict[str, Any]:
    """Return the config of a student of a VAE with 8 x 8 pixels for each latent."""
    return image_student(latent_channels, (64, 128, 512), (3, 3, 3, 4), patch_size=2, scaling_factor=scaling_factor)


SDXL = ModelSpec(
    name="sdxl",
    title="Stable Diffusion XL",
    recipe="night-images",
    teacher=TeacherSpec(
        family=AutoencoderKL(),
        repo="stabilityai/stable-diffusion-xl-base-1.0",
        folder="vae",
        num_bytes=335_000_000,
        latent_channels=4,
        time_ratio=1,
        space_ratio=8,
        frames=ANY_FRAMES,
        decoder_params_m=49.490,
        licence="CreativeML Open RAIL++-M",
        licence_note="unverified for the VAE alone; it counts distilled models as derivatives, which keep its use restrictions",
        config=KL_CONFIG | {"scaling_factor": 0.13025},
    ),
    student=StudentSpec(config=kl_student(4, 0.13025), pairs=KL_PAIRS, params_m=12.825),
)

FLUX1 = ModelSpec(
    name="flux1",
    title="FLUX.1",
    recipe="night-images",
    teacher=replace(
        SDXL.teacher,
        family=ShiftedKL(),
        repo="black-forest-labs/FLUX.1-schnell",
        num_bytes=168_000_000,  # in bf16
        latent_channels=16,
        decoder_params_m=49.545,
        licence="Apache-2.0",
        licence_note="unverified, that of [schnell]; the repository of [dev] has a non-commercial licence; students may be used, "
        "sold and passed on with a copy of the licence",
        config=KL_CONFIG
        | {
            "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
    ),
    student=StudentSpec(config=kl_student(16, 0.3611), pairs=KL_PAIRS, params_m=12.991),
)  # fmt: skip

ROWS = (SDXL, FLUX1)
