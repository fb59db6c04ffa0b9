"""A diffusers VAE's own decoder, as a rival of its students."""

import torch
from torch import Tensor

from turbovaed_cli.models.others.family import Memory, OtherDecoder
from turbovaed_cli.models.others.spaces import registry_name, space_of_vae
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.specs import ModelSpec


class DiffusersDecoder(OtherDecoder):
    """The decoder of a teacher, without its encoder. It takes raw latents and decodes whole clips."""

    family = "diffusers"
    own_latents = "raw"
    latents = "raw"
    clamps = False  # those that clamp do so in their class

    def __init__(self, teacher: Teacher, spec: ModelSpec) -> None:
        super().__init__()
        teacher.drop_encoder()
        self.vae = teacher
        self.teacher, self.space = registry_name(spec), space_of_vae(spec, teacher.vae)
        self.latent_channels, self.licence = spec.teacher.latent_channels, spec.teacher.licence
        self.temporal_compression_ratio = spec.teacher.time_ratio
        self.spatial_compression_ratio = spec.teacher.space_ratio

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    def pixel_frames(self, latent_frames: int) -> int:
        """Return T for t latent frames. CogVideoX decodes them two by two: of an even number, the first one makes 4 frames too."""
        spec = self.vae.spec
        if spec.frames.step > spec.time_ratio and latent_frames % 2 == 0:
            return latent_frames * spec.time_ratio
        return spec.pixel_frames(latent_frames)

    def frames_of(self, latents: Tensor, memory: Memory | None = None) -> Tensor:
        return self.vae.decode(latents)
