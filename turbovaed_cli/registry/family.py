"""Teacher families: how a VAE class of the registry is recognised, built, encoded with, decoded with and tapped.

`Family` is the common case of a diffusers VAE. A file in teachers/ derives from it and overrides what its class does
differently. torch is imported in methods only, so that the registry opens quickly.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

from turbovaed_cli.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    # Encodes the next frames (B, 3, n, H, W) in [-1, 1] of one clip to posterior means (B, C, m, h, w).
    EncodeNext = Callable[[Tensor], Tensor]
    # The store of frames for the next piece. It copies what is stored.
    Keeper = MutableMapping[Any, Tensor]


@dataclass(frozen=True)
class RequiredSetting:
    """An attribute of the teacher that must have this value; otherwise its results change silently."""

    name: str
    value: object
    why: str


@dataclass(frozen=True)
class Piecewise:
    """An encode in pieces that equals the encode of the whole clip, within rounding.

    The first piece has `multiple` * k + 1 pixel frames, or `multiple` * k for a teacher that is not causal; later pieces have
    `multiple` * k. With `fixed`, k is 1 in every piece. `begin` returns a function that encodes the pieces of one clip in order.
    `exact_frames` is the longest clip, in pixel frames, that is encoded exactly; in longer ones, later frames see fewer of those
    before them. None: no limit.
    """

    multiple: int
    begin: "Callable[[Keeper], EncodeNext]"
    fixed: bool = False
    exact_frames: int | None = None


@dataclass(frozen=True)
class Family:
    """A VAE class and its special rules; the defaults are those of a diffusers VAE that encodes and decodes whole clips.

    Videos are (B, 3, T, H, W) in [-1, 1], whatever range the class itself uses; latents are (B, C, t, h, w), as the class
    returns them. `vae` is an instance of the class.
    """

    class_name: ClassVar[str]
    module: ClassVar[str] = "diffusers"  # that has the class
    required: ClassVar[tuple[RequiredSetting, ...]] = ()
    in_pieces: ClassVar[str] = "windows that fade into each other"  # how a long video is encoded without `piecewise`
    comfyui_latents: ClassVar[str | None] = "raw"  # what ComfyUI's LATENT holds: "raw" or "normalised" latents; None: neither
    is_of_images: ClassVar[bool] = False  # each frame is encoded and decoded alone
    decode_timestep: float | None = None  # the fixed timestep of a decoder that takes one

    # --- a local folder ---

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a VAE folder with this config.json belongs to the row of this family."""
        return bool(config["_class_name"] == self.class_name)

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Raise SettingsError if no student can learn from a VAE of this config."""

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Return the (time, space) compression ratios of a config."""
        raise NotImplementedError

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """Return the number of latent channels of a config."""
        return int(config["latent_channels"])

    def decoder_inputs(self) -> dict[str, Any]:
        """Return what the decoder is given besides latents, by name: fixed values, with which it is a function of latents."""
        return {} if self.decode_timestep is None else {"decode_timestep": self.decode_timestep}

    # --- the network ---

    def build(self, config: Mapping[str, Any]) -> "nn.Module":
        """Return the network of a config with random weights, on torch's default device; an empty config is the class's own."""
        import torch  # noqa: PLC0415

        with torch.device("cpu"):  # some modules of diffusers, such as that of Cosmos, make tensors when they are imported
            vae_class = getattr(import_module(self.module), self.class_name)
        return cast("nn.Module", vae_class.from_config(config) if config else vae_class())

    def weight_name(self, name: str) -> str:
        """Return the name that the class has for a weight of a file, which an older version of diffusers may have written."""
        return name

    def decoder(self, vae: Any) -> "nn.Module":
        """Return the part that a student replaces."""
        return cast("nn.Module", vae.decoder)

    def statistics(self, vae: Any) -> dict[str, Any]:
        """Return what a student inherits for pipelines: latents_mean and latents_std (lists), and scaling_factor, if they exist."""
        found: dict[str, Any] = {}
        buffers = dict(vae.named_buffers())
        for name in ("latents_mean", "latents_std"):
            value = buffers.get(name)
            value = vae.config.get(name) if value is None else value.float().cpu().tolist()
            if value is not None:
                found[name] = [float(one) for one in value]
        if vae.config.get("scaling_factor") is not None:
            found["scaling_factor"] = vae.config["scaling_factor"]
        return found

    def posterior(self, vae: Any, video: "Tensor") -> "tuple[Tensor, Tensor]":
        """Encode a video to the mean and the standard deviation of its latents; a deterministic encoder has std 0."""
        import torch  # noqa: PLC0415

        encoded = vae.encode(video)
        if isinstance(encoded, torch.Tensor):
            return encoded, torch.zeros_like(encoded)
        distribution = encoded.latent_dist
        if not hasattr(distribution, "std"):  # a deterministic encoder, such as Cosmos
            mean = distribution.mode()
            return mean, torch.zeros_like(mean)
        return distribution.mean, distribution.std.expand_as(distribution.mean)  # LTX keeps one variance for all channels

    def merged(self, states: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
        """Return the weights of the network from those of each of the teacher's folders, in their order."""
        return states[0]

    def piecewise(self, vae: Any) -> Piecewise | None:
        """Return how to encode a clip exactly, piece by piece; None if only windows are possible, which approximate."""
        return None

    def reach(self, vae: Any) -> int | None:
        """Return how many pixels beyond its own a latent sees to each side; None if attention or a norm sees the whole frame."""
        return None

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        """Decode latents to a video, not clamped unless the class does so."""
        import torch  # noqa: PLC0415

        decoded = vae.decode(latents)
        return decoded if isinstance(decoded, torch.Tensor) else cast("Tensor", decoded.sample)

    def feature(self, vae: Any, latents: "Tensor", output: Any) -> "Tensor":
        """Return the output of a tapped module as (B, C, t, h, w), in a decode of `latents`; of a tuple, the first item."""
        return cast("Tensor", output[0] if isinstance(output, tuple) else output)

    def decoder_calls(self, vae: Any, latents: "Tensor") -> "Iterator[Callable[[], object]]":
        """Yield the calls that a decode consists of, in order; a tap fires once in each, and its outputs are joined along time.

        A caller may leave a call early, by an exception from a hook, once its taps have fired; the next call is not affected.
        """
        yield lambda: self.decode(vae, latents)


def refuse(what: str, why: str, hint: str) -> SettingsError:
    """Return the error for a VAE that cannot be a teacher: what it is, the reason, and what would be needed."""
    return SettingsError(f"{what} cannot be a teacher: {why}", hint)
