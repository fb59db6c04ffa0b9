"""AutoencoderDC, the image autoencoder of Sana."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from turbovaed_cli.registry.image_vae import ANY_FRAMES, ImageVAE, image_student
from turbovaed_cli.registry.specs import AlignmentPair, ModelSpec, StudentSpec, TeacherSpec

if TYPE_CHECKING:
    from torch import Tensor

_SCALING = 0.41407  # pipelines divide latents by it before they decode
_KINDS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3


@dataclass(frozen=True)
class AutoencoderDC(ImageVAE):
    """DC-AE for images. Its encoder is deterministic."""

    class_name: ClassVar[str] = "AutoencoderDC"

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return 1, 2 ** (len(config.get("encoder_block_out_channels", _KINDS)) - 1)

    def image_posterior(self, vae: Any, images: "Tensor") -> "tuple[Tensor, Tensor]":
        latents = vae.encode(images).latent
        return latents, latents.new_zeros(latents.shape)


SANA = ModelSpec(
    name="sana",
    title="Sana DC-AE",
    recipe="night-images",
    teacher=TeacherSpec(
        family=AutoencoderDC(),
        repo="mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers",
        folder="",
        num_bytes=1_249_000_000,
        latent_channels=32,
        time_ratio=1,
        space_ratio=32,
        frames=ANY_FRAMES,
        decoder_params_m=159.223,
        licence="Apache-2.0",
        licence_note="unverified; students may be used, sold and passed on with a copy of the licence",
        config={
            "encoder_block_types": _KINDS, "decoder_block_types": _KINDS, "downsample_block_type": "Conv",
            "upsample_block_type": "interpolate", "scaling_factor": _SCALING,
        },
    ),
    student=StudentSpec(
        # The published channels and layers of Video DC-AE's student.
        config=image_student(32, (64, 128, 256, 512), (4, 3, 3, 3, 4), patch_size=4, scaling_factor=_SCALING),
        pairs=(
            AlignmentPair("mid_block", "decoder.up_blocks.5", head=True),
            AlignmentPair("up_blocks.1", "decoder.up_blocks.4", head=True),
        ),
        params_m=35.655,
    ),
)  # fmt: skip

ROWS = (SANA,)
