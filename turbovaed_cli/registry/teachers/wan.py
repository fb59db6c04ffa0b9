"""Wan 2.1, Wan 2.2 (5B) and Qwen-Image: causal VAEs that encode four frames and decode one latent frame at a time.

Their classes keep the frames between two calls in attributes. The calls here have caches of their own, so that streams on one
network do not disturb each other, a call may be left early, and nothing stays in memory afterwards.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from turbovaed_cli.registry.family import Family, Piecewise, refuse
from turbovaed_cli.registry.specs import AlignmentPair, FrameRule, ModelSpec, StudentSpec, TeacherSpec, student_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from turbovaed_cli.registry.family import EncodeNext

_CHUNK = 4  # pixel frames that the classes encode at once, whatever the config says
_PERMISSIVE = "students may be used, sold and passed on with a copy of the licence"
_FROM_SOURCE = "get config.json from the source of the weights"


@dataclass(frozen=True)
class Wan(Family):
    """The VAE of Wan 2.1. It clamps what it decodes to [-1, 1]."""

    class_name: ClassVar[str] = "AutoencoderKLWan"
    num_colours: ClassVar[str] = "in_channels"  # the name in the config
    takes_first: ClassVar[bool] = True  # whether the decoder is told which call is the first

    def matches(self, config: Mapping[str, Any]) -> bool:
        return super().matches(config) and not _is_residual(config)

    def check_config(self, config: Mapping[str, Any]) -> None:
        time_ratio, _ = self.ratios(config)
        if time_ratio != _CHUNK:
            raise refuse(
                f"a VAE of {self.class_name} with {time_ratio}x in time",
                "the class encodes four frames at a time whatever its config says, which loses frames",
                "the class works with two of temperal_downsample",
            )
        channels = self.latent_channels(config)
        colours = config.get(self.num_colours, 3) // (config.get("patch_size") or 1) ** 2
        if colours != 3:
            raise refuse(f"a VAE of {colours} colour channels", "students and videos are RGB", "needed: one with RGB in and out")
        for name in ("latents_mean", "latents_std"):
            values = config.get(name) or [0.0] * 16  # the defaults of the classes are those of Wan 2.1
            if len(values) != channels:
                raise refuse(f"a VAE with {len(values)} values in {name}", f"its latents have {channels} channels", _FROM_SOURCE)

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        num_scaled = len(config.get("dim_mult", (1, 2, 4, 4))) - 1
        in_time = config.get("temperal_downsample", (False, True, True))[:num_scaled]
        return 2 ** sum(map(bool, in_time)), (config.get("patch_size") or 1) * 2**num_scaled

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        return int(config.get("z_dim", 16))

    def posterior(self, vae: Any, video: "Tensor") -> "tuple[Tensor, Tensor]":
        import torch  # noqa: PLC0415
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # noqa: PLC0415

        parts = list(self._moments(vae, video, _new_cache(vae.encoder, vae)))
        distribution = DiagonalGaussianDistribution(torch.cat(parts, dim=2))
        return distribution.mean, distribution.std

    def piecewise(self, vae: Any) -> Piecewise:
        def begin(_kept: object) -> "EncodeNext":
            cache = _new_cache(vae.encoder, vae)

            def encode(video: "Tensor") -> "Tensor":
                import torch  # noqa: PLC0415

                return torch.cat([part.chunk(2, dim=1)[0] for part in self._moments(vae, video, cache)], dim=2)

            return encode

        return Piecewise(_CHUNK, begin, fixed=True)

    def _moments(self, vae: Any, video: "Tensor", cache: "list[Tensor | None]") -> "Iterator[Tensor]":
        """Yield the encoder's outputs (B, 2C, 1, h, w) of the next frames (B, 3, n, H, W) of a clip whose frames `cache` keeps.

        As in the class, the clip's first frame is encoded alone and the others in groups of four.
        """
        video = _patches(vae, video)
        begin = 0
        while begin < video.shape[2]:
            end = begin + (1 if cache[0] is None else _CHUNK)
            yield vae.quant_conv(vae.encoder(video[:, :, begin:end], feat_cache=cache, feat_idx=[0]))
            begin = end

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        import torch  # noqa: PLC0415
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify  # noqa: PLC0415

        decoded = torch.cat([call() for call in self._decodes(vae, latents)], dim=2)
        return cast("Tensor", unpatchify(decoded, vae.config.get("patch_size") or 1).clamp(-1.0, 1.0))

    def decoder_calls(self, vae: Any, latents: "Tensor") -> "Iterator[Callable[[], object]]":
        yield from self._decodes(vae, latents)

    def _decodes(self, vae: Any, latents: "Tensor") -> "Iterator[Callable[[], Tensor]]":
        """Yield a call for each latent frame. It returns the frame's pixels (B, 3 * patch^2, 1 or 4, H / patch, W / patch)."""
        latents, cache = vae.post_quant_conv(latents), _new_cache(vae.decoder, vae)
        for i in range(latents.shape[2]):
            first = {"first_chunk": i == 0} if self.takes_first else {}
            yield partial(vae.decoder, latents[:, :, i : i + 1], feat_cache=cache, feat_idx=[0], **first)


def _is_residual(config: Mapping[str, Any]) -> bool:
    """Whether this is the config of a Wan 2.2 VAE: residual blocks, or pixels in patches."""
    return bool(config.get("is_residual")) or config.get("patch_size") not in (None, 1)


def _new_cache(part: "nn.Module", vae: Any) -> "list[Tensor | None]":
    """Return an empty cache for the encoder or decoder, with a place for each causal convolution in it."""
    return [None for module in part.modules() if isinstance(module, type(vae.quant_conv))]


def _patches(vae: Any, video: "Tensor") -> "Tensor":
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify  # noqa: PLC0415

    return cast("Tensor", patchify(video, vae.config.get("patch_size") or 1))


@dataclass(frozen=True)
class Wan22(Wan):
    """The VAE of Wan 2.2 (5B): residual blocks, and pixels in patches of two by two."""

    def matches(self, config: Mapping[str, Any]) -> bool:
        return Family.matches(self, config) and _is_residual(config)


@dataclass(frozen=True)
class QwenImage(Wan):
    """The VAE of Qwen-Image: that of Wan 2.1 in a class of its own."""

    class_name: ClassVar[str] = "AutoencoderKLQwenImage"
    num_colours: ClassVar[str] = "input_channels"
    takes_first: ClassVar[bool] = False


# Statistics of the published weights, whose pipelines compute latents * std + mean before they decode. Sources: the defaults of
# AutoencoderKLWan, and the published config of Wan 2.2.
_STATISTICS_21 = {
    "latents_mean": (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497,
        0.2503, -0.2921,
    ),
    "latents_std": (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251,
        1.9160,
    ),
}  # fmt: skip
_STATISTICS_22 = {
    "latents_mean": (
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098,
        0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567,
        -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957,
        0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    "latents_std": (
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454,
        0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999,
        0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444,
        0.4089, 0.7468, 0.7744,
    ),
}  # fmt: skip

_STUDENT = StudentSpec(
    config=student_config(16, (16, 32, 256, 512), (5, 4, 4, 4, 5), patch_size=1, spatio_only=True) | _STATISTICS_21,
    pairs=(
        AlignmentPair("mid_block", "decoder.mid_block", head=True),
        AlignmentPair("up_blocks.0", "decoder.up_blocks.0", head=True, transform="shuffle3d"),
    ),
    params_m=40.688,
)

# The statistics of the latents, by which pipelines normalise them.
_WAN21_STATISTICS = {
    "latents_mean": (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
        -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    "latents_std": (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
        1.1253, 2.8251, 1.916,
    ),
}  # fmt: skip
_WAN22_STATISTICS = {
    "latents_mean": (
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.157,
        -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055,
        -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083,
        -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    "latents_std": (
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
        0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889,
        0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
        0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
}  # fmt: skip

WAN21 = ModelSpec(
    name="wan2.1",
    title="Wan 2.1",
    aliases=("wan",),
    teacher=TeacherSpec(
        family=Wan(),
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        folder="vae",
        num_bytes=508_000_000,
        latent_channels=16,
        time_ratio=4,
        space_ratio=8,
        frames=FrameRule(step=4, first=1),
        decoder_params_m=73.295,
        licence="Apache-2.0",
        licence_note=_PERMISSIVE,
        config=_WAN21_STATISTICS,
    ),
    student=_STUDENT,
)

QWEN_IMAGE = ModelSpec(
    name="qwen-image",
    title="Qwen-Image",
    aliases=("qwen",),
    teacher=replace(
        WAN21.teacher,
        family=QwenImage(),
        repo="Qwen/Qwen-Image",  # its licence is unverified
        licence_note=f"unverified for this repository; {_PERMISSIVE}",
    ),
    student=_STUDENT,
)

WAN22 = ModelSpec(
    name="wan2.2",
    title="Wan 2.2 (5B)",
    teacher=TeacherSpec(
        family=Wan22(),
        repo="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        folder="vae",
        num_bytes=2_819_000_000,
        latent_channels=48,
        time_ratio=4,
        space_ratio=16,
        frames=FrameRule(step=4, first=1),
        decoder_params_m=555.049,
        licence="Apache-2.0",  # unverified for this repository
        licence_note=f"unverified for this repository; {_PERMISSIVE}",
        config={
            "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
            "patch_size": 2, "scale_factor_spatial": 16, **_WAN22_STATISTICS,
        },
    ),
    student=StudentSpec(
        # The published channels and layers of LTX's student, with half of its tail.
        config=student_config(48, (64, 128, 256, 512), (3, 2, 3, 1, 1), patch_size=2, spatio_only=True) | _STATISTICS_22,
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block", head=True),
            AlignmentPair("up_blocks.1", "decoder.up_blocks.0", head=True),
        ),
        params_m=40.346,
    ),
)  # fmt: skip

ROWS = (WAN21, WAN22, QWEN_IMAGE)
