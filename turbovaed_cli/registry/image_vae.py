"""The common case of an image VAE: the frames of a video are the images of a batch, and each is coded alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from turbovaed_cli.registry.family import Family, Piecewise, RequiredSetting, refuse
from turbovaed_cli.registry.specs import FrameRule, student_config

if TYPE_CHECKING:
    from torch import Tensor

    from turbovaed_cli.registry.family import EncodeNext

ANY_FRAMES = FrameRule(step=1, first=0)  # one latent frame for each frame
_PIXELS_AT_ONCE = 1024 * 1024  # of one call of the encoder or decoder, unless a single frame has more
_WHOLE = tuple(
    RequiredSetting(name, False, "a tap would fire for each part of an image or batch") for name in ("use_tiling", "use_slicing")
)


@dataclass(frozen=True)
class ImageVAE(Family):
    """A VAE whose class takes images (B, 3, H, W) and latents (B, C, h, w), and computes each of a batch alone."""

    required: ClassVar[tuple[RequiredSetting, ...]] = _WHOLE
    is_of_images: ClassVar[bool] = True

    def check_config(self, config: Mapping[str, Any]) -> None:
        if (colours := {config.get(name, 3) for name in ("in_channels", "out_channels")}) != {3}:
            raise refuse(
                f"a VAE of {max(colours)} colour channels", "students and videos are RGB", "needed: one with RGB in and out"
            )

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return 1, 2 ** (len(config["block_out_channels"]) - 1)

    def posterior(self, vae: Any, video: "Tensor") -> "tuple[Tensor, Tensor]":
        import torch  # noqa: PLC0415

        found = [self.image_posterior(vae, _images(frames)) for frames in _parts(video, 1)]
        means, stds = ([_clips(part, len(video)) for part in parts] for parts in zip(*found, strict=True))
        return torch.cat(means, dim=2), torch.cat(stds, dim=2)

    def image_posterior(self, vae: Any, images: "Tensor") -> "tuple[Tensor, Tensor]":
        """Encode images (B, 3, H, W) to the mean and the standard deviation of their latents, each (B, C, h, w)."""
        return super().posterior(vae, images)

    def piecewise(self, vae: Any) -> Piecewise:
        def begin(_kept: object) -> "EncodeNext":
            return lambda video: self.posterior(vae, video)[0]

        return Piecewise(1, begin)

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        import torch  # noqa: PLC0415

        return torch.cat([_clips(call(), len(latents)) for call in self.decodes(vae, latents)], dim=2)

    def image_decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        """Decode latents (B, C, h, w) to images (B, 3, H, W)."""
        return super().decode(vae, latents)

    def decoder_calls(self, vae: Any, latents: "Tensor") -> "Iterator[Callable[[], object]]":
        yield from self.decodes(vae, latents)

    def decodes(self, vae: Any, latents: "Tensor") -> "Iterator[Callable[[], Tensor]]":
        """Yield calls that decode the next frames of every clip to images (B * n, 3, H, W)."""
        for frames in _parts(latents, self.ratios(vae.config)[1]):
            yield partial(self.image_decode, vae, _images(frames))

    def feature(self, vae: Any, latents: "Tensor", output: Any) -> "Tensor":
        return _clips(output, len(latents))


def _parts(x: "Tensor", space_ratio: int) -> "tuple[Tensor, ...]":
    """Split clips (B, C, t, h, w) along time into parts of at most _PIXELS_AT_ONCE, `space_ratio` pixels a side for each value."""
    batch, _, _, height, width = x.shape
    return x.split(max(_PIXELS_AT_ONCE // (batch * height * width * space_ratio**2), 1), dim=2)


def _images(clips: "Tensor") -> "Tensor":
    """Return the frames of clips (B, C, t, h, w) as images (B * t, C, h, w)."""
    return clips.transpose(1, 2).flatten(0, 1)


def _clips(images: "Tensor", batch: int) -> "Tensor":
    """Return images (batch * t, C, h, w) as the frames of clips (batch, C, t, h, w)."""
    return cast("Tensor", images.unflatten(0, (batch, -1)).transpose(1, 2))


def image_student(
    latent_channels: int, channels: tuple[int, ...], layers: tuple[int, ...], *, patch_size: int, scaling_factor: float = 1.0
) -> dict[str, Any]:
    """Return the config of a student that upsamples space only: one frame for each latent frame."""
    config = student_config(
        latent_channels, channels, layers, patch_size=patch_size, spatio_only=True, scaling_factor=scaling_factor
    )
    return config | {"decoder_spatio_only": (True,) * len(channels)}
