"""LTX-2, 2.3 and 2.5. Their latents have statistics per channel, in the weight files, and no scaling factor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from turbovaed_cli.registry.family import refuse
from turbovaed_cli.registry.neighbourhood import BlockwiseNeighbourhoodAttention
from turbovaed_cli.registry.specs import AlignmentPair, FrameRule, ModelSpec, TeacherSpec
from turbovaed_cli.registry.teachers.ltx import LTX_STUDENT, LTXVideo, any_of

if TYPE_CHECKING:
    from torch import Tensor, nn

_BOTH = "spatiotemporal"


@dataclass(frozen=True)
class LTX2Video(LTXVideo):
    """The VAE of LTX-2: a causal, local encoder and a decoder that is not causal."""

    class_name: ClassVar[str] = "AutoencoderKLLTX2Video"
    carried: ClassVar[tuple[str, str]] = ("LTX2VideoCausalConv3d", "LTX2VideoDownsampler3d")

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config["_class_name"] == self.class_name and set(_upsamplings(config)) <= {_BOTH}

    def check_config(self, config: Mapping[str, Any]) -> None:
        for name in ("timestep_conditioning", "decoder_inject_noise"):
            if any_of(config.get(name)):
                raise refuse(
                    f"a VAE with {name}",
                    "its decoder needs more than latents, which a student does not get",
                    "no published VAE of LTX-2 has it: get config.json from the source of the weights",
                )
        # The weights fit both kinds of decoder, and a config without the key gets the class's default, which is the other one.
        # To set False here would silently override a config that says True, for weights of which we know nothing.
        if config.get("decoder_causal", True):
            raise refuse(
                "a VAE whose config does not set decoder_causal to false",
                "the class would decode causally, and every published LTX-2 decoder is not causal",
                'get config.json from the source of the weights, which has "decoder_causal": false',
            )

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        kinds = _upsamplings(config)
        num_time, num_space = (sum(kind in (_BOTH, alone) for kind in kinds) for alone in ("temporal", "spatial"))
        return config.get("patch_size_t", 1) * 2**num_time, config.get("patch_size", 4) * 2**num_space


@dataclass(frozen=True)
class LTX23Video(LTX2Video):
    """The VAE of LTX-2.3, whose decoder also has blocks that upsample time alone and space alone."""

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config["_class_name"] == self.class_name and not super().matches(config)


@dataclass(frozen=True)
class LTX25Video(LTX23Video):
    """The VAE of LTX-2.5 with its one-step diffusion decoder, which denoises pixels, given a context made from the latents.

    It is a function of the latents because the noise is always the same: that of `noise_seed`, for every clip of one shape.
    The encoder, the statistics and the latent space are those of the VAE. `config` and weights are those of the VAE, and under
    "diffusion_decoder" those of the decoder, which takes the place of the VAE's own.

    Attention needs windows that fit, so latents of less than 17 frames or 224 pixels are decoded with their last frame, row and
    column repeated, and what is made of these is cut off.
    """

    noise_seed: int = 0
    class_name: ClassVar[str] = "LTX2VideoDiffusionDecoderModel"
    vae_class_name: ClassVar[str] = "AutoencoderKLLTX2Video"

    def matches(self, config: Mapping[str, Any]) -> bool:
        return "diffusion_decoder" in config

    def check_config(self, config: Mapping[str, Any]) -> None:
        for given, wanted in ((config, self.vae_class_name), (config["diffusion_decoder"], self.class_name)):
            if (found := given.get("_class_name", wanted)) != wanted:
                raise refuse(
                    f"a pipeline with vae/ and diffusion_decoder/ of which one is a {found}",
                    f"the two of LTX-2.5 are an {self.vae_class_name} and an {self.class_name}",
                    "give the folder of one VAE as `teacher`",
                )

    def decoder_inputs(self) -> dict[str, Any]:
        return {"noise_seed": self.noise_seed}

    def build(self, config: Mapping[str, Any]) -> "nn.Module":
        import diffusers  # noqa: PLC0415

        of_vae = {name: value for name, value in config.items() if name not in ("diffusion_decoder", "_class_name")}
        vae = diffusers.AutoencoderKLLTX2Video.from_config(of_vae)
        model = diffusers.LTX2VideoDiffusionDecoderModel.from_config(dict(config["diffusion_decoder"]))
        model.set_attn_processor(BlockwiseNeighbourhoodAttention())
        vae.decoder = model.decoder
        own = {name: value for name, value in model.config.items() if not name.startswith("_")}
        vae.register_to_config(diffusion_decoder=own)
        return cast("nn.Module", vae)

    def merged(self, states: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
        vae, decoder = states
        own = {name: value for name, value in vae.items() if not name.startswith("decoder.")}
        return own | {name: value for name, value in decoder.items() if name.startswith("decoder.")}

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        import torch  # noqa: PLC0415

        decoder, (frames, height, width) = vae.decoder, latents.shape[2:]
        made_up = _made_up(decoder, latents)
        context = decoder.forward_stage_4(decoder.forward_stages_1_to_3(made_up))  # (B, T, rows, columns, C)
        size = (context.shape[1], *(cells * decoder.patch_size for cells in context.shape[2:4]))
        generator = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(1, decoder.out_channels, *size, generator=generator).to(latents)
        noise = noise.expand(latents.shape[0], -1, -1, -1, -1)
        video = decoder.denoise(context, noise, decoder.default_num_inference_steps)
        ratio = size[1] // made_up.shape[3]
        return cast("Tensor", video[:, :, : _frames(decoder, frames), : height * ratio, : width * ratio])

    def feature(self, vae: Any, latents: "Tensor", output: Any) -> "Tensor":
        """Return the output (B, t, h, w, C) of a stage before the diffusion without what stands for repeated latents."""
        (frames, height, width), (most, rows, columns) = latents.shape[2:], _sizes(vae.decoder, latents)
        before = most + vae.decoder.trailing_pad_latent_frames - 1
        scale = (output.shape[1] - 1) // before, output.shape[2] // rows, output.shape[3] // columns
        output = output[:, : scale[0] * (frames - 1) + 1, : scale[1] * height, : scale[2] * width]
        return cast("Tensor", output.movedim(-1, 1))


def _frames(decoder: Any, latent_frames: int) -> int:
    return int(decoder.temporal_compression_ratio * (latent_frames - 1) + 1)


def _sizes(decoder: Any, latents: "Tensor") -> tuple[int, int, int]:
    """Return (t, h, w) of latents that the decoder's attention takes: at least one window in every stage."""
    least, scale = [1, 1, 1], [1, 1, 1]
    kernels = [*(blocks[0].attn.kernel_size for blocks in decoder.det_stages), decoder.diff_blocks[0].attn.kernel_size]
    strides = [*(upsample.stride for upsample in decoder.upsamples), (1, 1, 1)]
    for stage, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        # A stage has scale * (t - 1) + 1 frames, of latents that the decoder itself prolongs up to the last stage.
        more = decoder.trailing_pad_latent_frames if stage < len(decoder.upsamples) else 0
        least[0] = max(least[0], math.ceil((kernel[0] - 1) / scale[0]) + 1 - more)
        least[1:] = (max(least[axis], math.ceil(kernel[axis] / scale[axis])) for axis in (1, 2))
        scale = [one * two for one, two in zip(scale, stride, strict=True)]
    frames, height, width = (max(*both) for both in zip(least, latents.shape[2:], strict=True))
    return frames, height, width


def _made_up(decoder: Any, latents: "Tensor") -> "Tensor":
    """Repeat the last frame, row and column of latents (B, C, t, h, w) until the decoder takes them."""
    for axis, size in enumerate(_sizes(decoder, latents), start=2):
        indices = [min(index, latents.shape[axis] - 1) for index in range(size)]
        latents = latents if size == latents.shape[axis] else latents.index_select(axis, latents.new_tensor(indices).long())
    return latents


def _upsamplings(config: Mapping[str, Any]) -> list[str]:
    """Return the kinds of a decoder's upsamplings in the order of its config: "spatiotemporal", "temporal" or "spatial"."""
    scaled = config.get("decoder_spatio_temporal_scaling", True)
    kinds = config.get("upsample_type", (_BOTH,) * 3)
    switches = [scaled] * len(kinds) if isinstance(scaled, bool) else scaled
    return [kind for kind, switch in zip(kinds, switches, strict=True) if switch]


LTX2 = ModelSpec(
    name="ltx2",
    title="LTX-2",
    teacher=TeacherSpec(
        family=LTX2Video(),
        repo="Lightricks/LTX-2",
        folder="vae",
        num_bytes=2_445_000_000,  # 2 bytes for each of 1,222,479,857 numbers
        latent_channels=128,
        time_ratio=8,
        space_ratio=32,
        frames=FrameRule(step=8, first=1),
        decoder_params_m=528.381,
        licence="LTX-2 Community License Agreement",
        licence_note="models distilled from it count as derivatives, which carry its terms and its limits on commercial use",
        config={"decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8},
    ),
    student=LTX_STUDENT,
)
_CONFIG_23 = {
    "block_out_channels": (256, 512, 1024, 1024),
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "layers_per_block": (4, 6, 4, 2, 2),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": (_BOTH, _BOTH, "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
LTX23 = ModelSpec(
    name="ltx2.3",
    title="LTX-2.3",
    teacher=replace(
        LTX2.teacher,
        family=LTX23Video(),
        repo="diffusers/LTX-2.3-Diffusers",
        num_bytes=1_452_000_000,  # 2 bytes for each of 726,106,225 numbers
        decoder_params_m=407.169,
        config=_CONFIG_23,
    ),
    student=LTX_STUDENT,
)
LTX25 = ModelSpec(
    name="ltx2.5",
    title="LTX-2.5 with its diffusion decoder",
    teacher=replace(
        LTX2.teacher,
        family=LTX25Video(),
        # Unverified, as are its licence and both sizes: 2 bytes for each of 726,106,225 and 417,133,872 numbers.
        repo="Lightricks/LTX-2.5-Diffusers",
        num_bytes=2_286_000_000,
        beside={"diffusion_decoder": 834_000_000},
        decoder_params_m=417.134,
        config=_CONFIG_23 | {"diffusion_decoder": {}},  # the class's defaults
    ),
    student=replace(
        LTX_STUDENT,
        # Stages of the decoder upsample after their blocks: the first has the latents' resolution, the third twice that of both.
        pairs=(
            AlignmentPair("mid_block", "decoder.det_stages.0.3", head=True),
            AlignmentPair("up_blocks.1", "decoder.det_stages.2.3", head=True),
        ),
    ),
)

ROWS = (LTX2, LTX23, LTX25)
