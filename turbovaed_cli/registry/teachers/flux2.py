"""FLUX.2. Its student decodes the latents that the pipeline computes with: four neighbours of the VAE's latents in one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from turbovaed_cli.registry.family import refuse
from turbovaed_cli.registry.image_vae import ANY_FRAMES, ImageVAE, image_student
from turbovaed_cli.registry.specs import AlignmentPair, ModelSpec, StudentSpec, TeacherSpec

if TYPE_CHECKING:
    from torch import Tensor

_PATCH = 2  # latents of the class a side in one latent of ours


@dataclass(frozen=True)
class Flux2(ImageVAE):
    """The VAE of FLUX.2. Its class has 32 channels for 8 x 8 pixels.

    The batch norm `bn` has a mean and a variance for each of 2 x 2 latents and their channels. So raw latents here have 128
    channels for 16 x 16 pixels, in the pipeline's order, and `bn` gives their statistics per channel. Nothing is lost: before
    its VAE decodes, the pipeline undoes both steps.
    """

    class_name: ClassVar[str] = "AutoencoderKLFlux2"
    comfyui_latents: ClassVar[str | None] = None  # normalised by statistics that students do not have

    def check_config(self, config: Mapping[str, Any]) -> None:
        super().check_config(config)
        if list(patch := config.get("patch_size", (_PATCH, _PATCH))) != [_PATCH, _PATCH]:
            raise refuse(
                f"a VAE with patch_size {patch}", "the pipeline of FLUX.2 makes patches of 2 x 2", "needed: patch_size 2, 2"
            )

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        time, space = super().ratios(config)
        return time, _PATCH * space

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        return _PATCH**2 * int(config.get("latent_channels", 32))

    def statistics(self, vae: Any) -> dict[str, Any]:
        mean, variance = vae.bn.running_mean.float(), vae.bn.running_var.float()
        return {"latents_mean": mean.tolist(), "latents_std": (variance + vae.config.batch_norm_eps).sqrt().tolist()}

    def image_posterior(self, vae: Any, images: "Tensor") -> "tuple[Tensor, Tensor]":
        from torch.nn import functional  # noqa: PLC0415

        mean, std = super().image_posterior(vae, images)
        return functional.pixel_unshuffle(mean, _PATCH), functional.pixel_unshuffle(std, _PATCH)

    def image_decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        from torch.nn import functional  # noqa: PLC0415

        return super().image_decode(vae, functional.pixel_shuffle(latents, _PATCH))


FLUX2 = ModelSpec(
    name="flux2",
    title="FLUX.2",
    recipe="night-images",
    teacher=TeacherSpec(
        family=Flux2(),
        repo="black-forest-labs/FLUX.2-dev",  # unverified
        folder="vae",
        num_bytes=336_000_000,  # unverified
        latent_channels=128,
        time_ratio=1,
        space_ratio=16,
        frames=ANY_FRAMES,
        decoder_params_m=49.619,
        licence="Apache-2.0",
        licence_note="of the VAE alone, unverified; the repository's is non-commercial; students may be used, sold and passed on "
        "with a copy of the licence",
    ),
    student=StudentSpec(
        # The published channels and layers of LTX's student, with half of its tail.
        config=image_student(128, (64, 128, 256, 512), (3, 2, 3, 1, 1), patch_size=2),
        pairs=(
            AlignmentPair("up_blocks.1", "decoder.mid_block", head=True),
            AlignmentPair("up_blocks.2", "decoder.up_blocks.0", head=True),
        ),
        params_m=32.603,
    ),
)

ROWS = (FLUX2,)
