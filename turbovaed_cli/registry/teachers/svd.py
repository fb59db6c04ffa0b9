"""Stable Video Diffusion: an image encoder, and a decoder that sees all frames of a clip."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from turbovaed_cli.registry.family import RequiredSetting
from turbovaed_cli.registry.image_vae import ImageVAE
from turbovaed_cli.registry.specs import ModelSpec, StudentSpec
from turbovaed_cli.registry.teachers.autoencoder_kl import KL_CONFIG, KL_PAIRS, SDXL, kl_student

if TYPE_CHECKING:
    from torch import Tensor

_SCALING = 0.18215  # pipelines divide latents by it before they decode


@dataclass(frozen=True)
class TemporalDecoder(ImageVAE):
    """The VAE of Stable Video Diffusion.

    It encodes frames alone. It decodes a clip in one call, since its norms and convolutions over time need every frame. Memory
    for `decode` and `features` grows with the clip; the pipeline's decode_chunk_size, which changes pixels, is not used.
    """

    class_name: ClassVar[str] = "AutoencoderKLTemporalDecoder"
    required: ClassVar[tuple[RequiredSetting, ...]] = ()
    is_of_images: ClassVar[bool] = False

    def decodes(self, vae: Any, latents: "Tensor") -> "Iterator[Callable[[], Tensor]]":
        images = latents.transpose(1, 2).flatten(0, 1)
        yield lambda: vae.decode(images, num_frames=latents.shape[2]).sample


SVD = ModelSpec(
    name="svd",
    title="Stable Video Diffusion",
    teacher=replace(
        SDXL.teacher,
        family=TemporalDecoder(),
        repo="stabilityai/stable-video-diffusion-img2vid-xt",
        num_bytes=391_000_000,  # unverified: that of the weights in fp32
        decoder_params_m=63.579,
        licence="Stability AI Community License",
        licence_note="unverified; it counts distilled models as derivatives, and large companies need a licence of their own",
        config={
            **{name: value for name, value in KL_CONFIG.items() if name != "up_block_types"},
            "sample_size": 768, "scaling_factor": _SCALING,
        },
    ),
    student=StudentSpec(config=kl_student(4, _SCALING), pairs=KL_PAIRS, params_m=12.825),
)  # fmt: skip

ROWS = (SVD,)
