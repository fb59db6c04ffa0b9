"""The student as diffusers pipelines call it: a decoder with the statistics of its latents."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from turbovaed_cli.errors import FrameCountError, SettingsError
from turbovaed_cli.models.network import StudentNetwork
from turbovaed_cli.models.streaming import FastDecoder, fast_form


@dataclass
class DecoderOutput(BaseOutput):  # type: ignore[misc]  # diffusers passes as Any
    """What pipelines take from a VAE's `decode`. diffusers' own class comes with every autoencoder it has: a second of imports."""

    sample: Tensor


class StudentDecoder(StudentNetwork):
    """A student: `decode` gives `.sample`, as of any VAE in a pipeline; see StudentNetwork for shapes and the config."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> "StudentDecoder":
        """As diffusers', but never from pickles: of a folder without safetensors it makes an OSError."""
        return cast("StudentDecoder", super().from_pretrained(*arguments, **{**options, "use_safetensors": True}))

    # What diffusers pipelines ask of a VAE besides decode; statistics stay in the config, so state dicts stay published.
    @property
    def latents_mean(self) -> Tensor:
        """Per-channel mean that LTX pipelines add before decode, (C,); zeros where the teacher has none."""
        values = self.config.latents_mean or [0.0] * self.config.latent_channels
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    @property
    def latents_std(self) -> Tensor:
        """Per-channel standard deviation that LTX pipelines multiply by before decode, (C,); ones where there is none."""
        values = self.config.latents_std or [1.0] * self.config.latent_channels
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`forward` as diffusers pipelines call it: `.sample` is (B, 3, T, H, W) in [-1, 1]. `temb` is not used.

        Without gradients on a CPU it is computed by `ready`, in the same numbers within rounding (see `fast`), past the
        modules: their hooks are not called. Raises FrameCountError or ShapeError where `z` is not (B, latent_channels, t >= 1, h, w).
        """
        self.check_latents(z)
        if z.shape[2] < 1:
            raise FrameCountError("latents hold no frame")
        sample = self.ready().decode(z) if self.decodes_fast and not torch.is_grad_enabled() else self(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @property
    def decodes_fast(self) -> bool:
        """What `fast` comes to on this device."""
        return self.device.type == "cpu" if self.fast is None else self.fast

    def ready(self) -> FastDecoder:
        """The fast form of these weights, as `fast_form` makes it."""
        return fast_form(self)

    def encode(self, x: Tensor, return_dict: bool = True) -> None:
        """Raise SettingsError: a student is a decoder; its teacher encodes."""
        raise SettingsError("a student has no encoder", "encode with its teacher: turbovaed_cli.load_teacher(...).encode(video)")
