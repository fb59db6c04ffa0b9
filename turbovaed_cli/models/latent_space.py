"""The latent space of a decoder: raw and normalised latents, and the pixels that each latent stands for.

Raw latents are what a VAE's `encode` returns. Diffusion pipelines compute with normalised ones:

    normalised = (raw - mean) * scaling_factor / std          raw = normalised * std / scaling_factor + mean
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LATENTS_ARE = ("raw", "normalised")


@dataclass(frozen=True)
class LatentSpace:
    """The latents of one decoder: the number of channels, how pipelines normalise them, and the pixels that each stands for."""

    channels: int
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    scaling_factor: float = 1.0
    time_ratio: int = 1
    space_ratio: int = 1

    @property
    def spread(self) -> Tensor:
        """The standard deviation of each channel of raw latents, (C,); normalised latents have about 1."""
        return torch.tensor(self.std) / self.scaling_factor

    @property
    def is_normalised(self) -> bool:
        """Whether raw and normalised latents are the same."""
        return bool((self.spread == 1).all()) and not any(self.mean)

    def raw(self, normalised: Tensor) -> Tensor:
        """Convert normalised latents (..., C, t, h, w) to raw ones, as diffusers pipelines do before decoding."""
        return normalised * _column(self.std, normalised) / self.scaling_factor + _column(self.mean, normalised)

    def normalised(self, raw: Tensor) -> Tensor:
        """Convert raw latents (..., C, t, h, w) to normalised ones, the inverse of `raw`."""
        return (raw - _column(self.mean, raw)) * self.scaling_factor / _column(self.std, raw)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)
