"""What `eval`, `bench`, `reconstruct` and pipelines need of a decoder: a student, a teacher's own one, or another family's."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from turbovaed_cli.models.latent_space import LatentSpace


@dataclass
class DecoderOutput(BaseOutput):  # type: ignore[misc]  # diffusers passes as Any
    """The result of `decode`, as pipelines expect it. Importing diffusers' class costs a second: it imports every autoencoder."""

    sample: Tensor


class Stream(Protocol):
    """A decode of one clip piece by piece, whose frames equal those of the whole clip."""

    @property
    def lookahead_frames(self) -> int:
        """The number of pixel frames by which the output lags; `finish` returns them."""
        ...

    def push(self, latents: Tensor) -> Tensor:
        """Take the next latent frames (B, C, n, h, w); return the pixel frames (B, 3, m, H, W) that they determine."""
        ...

    def finish(self) -> Tensor:
        """Return the remaining frames (B, 3, m, H, W); afterwards the next clip can begin."""
        ...


class Decoder(Protocol):
    """A torch module that decodes latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1]."""

    @property
    def family(self) -> str:
        """The name of its architecture, such as "turbo-vaed" or "taehv"."""
        ...

    @property
    def teacher(self) -> str | None:
        """The registry name of the teacher whose latents it decodes; None if that is not known."""
        ...

    @property
    def latents(self) -> str:
        """The latents that `decode` takes: "raw", as a teacher's `encode` returns them, or "normalised"."""
        ...

    @property
    def space(self) -> LatentSpace | None:
        """The statistics of the latents; None if they are not known."""
        ...

    @property
    def licence(self) -> str:
        """The licence of the weights, or "unknown: " and the reason."""
        ...

    @property
    def latent_channels(self) -> int:
        """The number of latent channels."""
        ...

    @property
    def temporal_compression_ratio(self) -> int:
        """The number of pixel frames for each latent frame after the first."""
        ...

    @property
    def spatial_compression_ratio(self) -> int:
        """The number of pixels for each latent, in height and in width."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        ...

    def pixel_frames(self, latent_frames: int) -> int:
        """Return T, the number of pixel frames that it makes of t latent frames."""
        ...

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> Any:
        """Decode a whole clip `z` to `.sample`, or to a tuple of it; not clamped unless the family does."""
        ...

    def stream(self) -> Stream | None:
        """Return a new stream; None for a family that only decodes whole clips."""
        ...
