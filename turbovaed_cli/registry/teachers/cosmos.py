"""Cosmos 1.0, whose encoder is deterministic: causal convolutions, and attention over all earlier frames of each position."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from turbovaed_cli.registry.carry import Carry, Seen
from turbovaed_cli.registry.family import Family, Piecewise
from turbovaed_cli.registry.specs import AlignmentPair, FrameRule, ModelSpec, StudentSpec, TeacherSpec, student_config

if TYPE_CHECKING:
    from torch import Tensor, nn

# Latent frames whose keys and values are kept while a video is encoded in pieces: 121 pixel frames, as many as the model makes.
# In fp32 they take h * w * 2 * 512 * 4 bytes per latent frame: 0.9 GB at 1280x704. Later frames attend to the last ones only.
KEPT_FRAMES = 16


@dataclass
class _CarryWithAttention(Carry):
    """The exact encode in pieces: convolutions see the frames of the piece before, attention the keys and values of all frames.

    A piece after the first gets a filler frame before the patches and before each downsampler in time, which treat the first
    frame of their input differently. What is made of it is dropped.
    """

    seen: "dict[nn.Module, Seen]" = field(default_factory=dict)

    @contextmanager
    def _through(self, encoder: "nn.Module") -> Iterator[None]:
        modules: list[Any] = list(encoder.modules())
        named = {name: [module for module in modules if type(module).__name__ == name] for name in _CLASSES}
        downsamplers = [module for module in named[_DOWNSAMPLER] if module.temporal_downsample]
        in_time = [module for module in named[_CONVOLUTION] if module.temporal_pad]
        attentions = [module for module in named[_ATTENTION] if type(module.processor).__name__ == _OVER_TIME]
        fillers = {downsampler.conv2: 2 for downsampler in downsamplers}  # ours, and the one that the class adds
        pads, processors = [module.temporal_pad for module in in_time], [module.processor for module in attentions]
        handles: list[Any] = []
        try:
            for module in (*named[_PATCHES], *downsamplers):
                handles.append(module.register_forward_pre_hook(partial(self._fill_group, 1)))
                handles.append(module.register_forward_hook(self._drop_group))
            for module, pad in zip(in_time, pads, strict=True):
                handles.append(module.register_forward_pre_hook(partial(self._pad, pad, fillers.get(module, 0))))
                module.temporal_pad = 0
            for module in attentions:
                module.processor = self._attend
            yield
            self.goes_on = True
        finally:
            for handle in handles:
                handle.remove()
            for module, pad in zip(in_time, pads, strict=True):
                module.temporal_pad = pad
            for module, processor in zip(attentions, processors, strict=True):
                module.processor = processor

    def _pad(self, pad: int, fillers: int, convolution: Any, inputs: "tuple[Tensor]") -> "tuple[Tensor]":
        """Put `pad` frames before those of a convolution: the first one repeated, or in later pieces those of the piece before."""
        import torch  # noqa: PLC0415

        (x,) = inputs
        if self.goes_on:
            x = torch.cat([x[:, :, :fillers], self.kept[convolution], x[:, :, fillers:]], dim=2)
        else:
            x = torch.cat([x[:, :, :1].expand(-1, -1, pad, -1, -1), x], dim=2)
        self.kept[convolution] = x[:, :, x.shape[2] - pad :]
        return (x,)

    def _attend(self, attention: Any, hidden_states: "Tensor", attention_mask: object = None) -> "Tensor":
        """Return what attention over time makes of the next frames (B, C, n, h, w): each sees itself and those before it."""
        import torch  # noqa: PLC0415

        normed = attention.norm(hidden_states)
        projected = (project(normed) for project in (attention.to_q, attention.to_k, attention.to_v))
        query, key, value = (one.permute(0, 3, 4, 2, 1).flatten(0, 2) for one in projected)  # (B * h * w, n, C)
        if attention not in self.seen:
            self.seen[attention] = Seen(key[:, :1], KEPT_FRAMES)
        frames = []
        for i in range(hidden_states.shape[2]):
            keys, values = self.seen[attention].add(key[:, i : i + 1], value[:, i : i + 1])
            frames.append(torch.nn.functional.scaled_dot_product_attention(query[:, i : i + 1], keys, values))
        batch, _, _, *size = hidden_states.shape
        attended = torch.cat(frames, dim=1).unflatten(0, (batch, *size)).permute(0, 4, 3, 1, 2)  # (B, C, n, h, w)
        return attention.to_out[0](attended) + hidden_states


_CONVOLUTION, _DOWNSAMPLER = "CosmosCausalConv3d", "CosmosDownsample3d"
_PATCHES, _ATTENTION, _OVER_TIME = "CosmosPatchEmbed3d", "CosmosCausalAttention", "CosmosTemporalAttentionProcessor2_0"
_CLASSES = (_CONVOLUTION, _DOWNSAMPLER, _PATCHES, _ATTENTION)


@dataclass(frozen=True)
class Cosmos(Family):
    """The VAE of Cosmos 1.0, with a causal encoder and decoder. It encodes 8k frames as 8k + 1, without a word."""

    class_name: ClassVar[str] = "AutoencoderKLCosmos"
    comfyui_latents: ClassVar[str | None] = None  # normalised by statistics that students do not have

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return config.get("temporal_compression_ratio", 8), config.get("spatial_compression_ratio", 8)

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        return int(config.get("latent_channels", 16))

    def statistics(self, vae: Any) -> dict[str, Any]:
        """Return nothing: the statistics of Cosmos differ from latent frame to latent frame, which students have no place for.

        Its pipelines also divide by the sigma_data of their scheduler. So students take raw latents only.
        """
        return {}

    def piecewise(self, vae: Any) -> Piecewise:
        ratio, _ = self.ratios(vae.config)
        return Piecewise(
            ratio,
            lambda kept: partial(_CarryWithAttention(_CONVOLUTION, _DOWNSAMPLER, kept).encode, vae, self.posterior),
            exact_frames=(KEPT_FRAMES - 1) * ratio + 1,
        )


COSMOS = ModelSpec(
    name="cosmos",
    title="Cosmos 1.0 (CV8x8x8)",
    teacher=TeacherSpec(
        family=Cosmos(),
        repo="nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
        folder="vae",
        num_bytes=423_000_000,  # 4 bytes for each of 105,653,696 numbers
        latent_channels=16,
        time_ratio=8,
        space_ratio=8,
        frames=FrameRule(step=8, first=1),
        decoder_params_m=62.739,
        licence="NVIDIA Open Model License",
        licence_note="derivative models may be used and sold, and are passed on with the licence and its notice",
    ),
    student=StudentSpec(
        # The tail of patch_size 4 makes 4x of the 8x in space, so two blocks upsample time alone. The decoder is small: with
        # the published channels (64, 128, 256, 512) the student would cost 928 GFLOPs for 17x256x256, and it costs 695.
        config={
            **student_config(16, (64, 64, 128, 512), (3, 2, 3, 1, 1), patch_size=4, spatio_only=False),
            "decoder_temporal_only": (True, True, False, False),
        },
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block"),
            AlignmentPair("up_blocks.0", "decoder.up_blocks.0"),
            AlignmentPair("up_blocks.1", "decoder.up_blocks.1", head=True),
        ),
        params_m=11.933,
    ),
)

ROWS = (COSMOS,)
