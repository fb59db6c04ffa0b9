"""HunyuanVideo 1.5, whose attention sees the whole frame and all frames before it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from turbovaed_cli.registry.carry import Carry, Seen
from turbovaed_cli.registry.family import Family, Piecewise
from turbovaed_cli.registry.specs import AlignmentPair, FrameRule, ModelSpec, StudentSpec, TeacherSpec, student_config

if TYPE_CHECKING:
    from torch import Tensor, nn

_SCALING = 1.03682  # pipelines divide latents by it before they decode

# Latent frames whose keys and values are kept while a video is encoded in pieces: 125 pixel frames, and the model makes 121.
# In fp32 they take h * w * 2 * 1024 * 4 bytes per latent frame: 0.9 GB at 1280x704, half of it in bf16. Later frames attend
# to the last ones only. The error on random weights is in docs/guides/reconstruct.md.
KEPT_FRAMES = 32


@dataclass
class _CarryWithAttention(Carry):
    """The exact encode in pieces: convolutions see the frames of the piece before, attention the keys and values of all frames.

    The attention of the class builds a mask of (frames * h * w) squared. Here each frame attends without a mask to the frames
    that have been added, which gives the same numbers.
    """

    seen: "dict[nn.Module, Seen]" = field(default_factory=dict)

    def _group(self, downsampler: "nn.Module") -> int:
        """Return 1 for a downsampler in time: it treats the first frame of its input, then a filler frame, differently."""
        return int(bool(downsampler.add_temporal_downsample))

    @contextmanager
    def _through(self, encoder: Any) -> Iterator[None]:
        blocks: list[Any] = [block for block in encoder.mid_block.attentions if block is not None]
        try:
            for block in blocks:
                block.forward = partial(self._attend, block)
            with super()._through(encoder):
                yield
        finally:
            for block in blocks:
                del block.forward  # that of its class is in use again

    def _attend(self, block: Any, x: "Tensor") -> "Tensor":
        """Return what the attention block makes of the next frames `x` (B, C, n, h, w)."""
        import torch  # noqa: PLC0415

        normed = block.norm(x)
        query, key, value = (_positions(project(normed)) for project in (block.to_q, block.to_k, block.to_v))  # (B, n, h * w, C)
        if block not in self.seen:
            self.seen[block] = Seen(key[:, 0], KEPT_FRAMES)
        frames = []
        for i in range(x.shape[2]):
            keys, values = (kept[:, None] for kept in self.seen[block].add(key[:, i], value[:, i]))
            frames.append(torch.nn.functional.scaled_dot_product_attention(query[:, i : i + 1], keys, values))
        attended = torch.cat(frames, dim=1).unflatten(2, x.shape[3:]).permute(0, 4, 1, 2, 3)  # (B, C, n, h, w)
        return block.proj_out(attended) + x


def _positions(x: "Tensor") -> "Tensor":
    """Return (B, C, n, h, w) as (B, n, h * w, C)."""
    return x.flatten(3).permute(0, 2, 3, 1).contiguous()


def _causal_mask(num_frames: int, positions: int, dtype: Any, device: Any, batch_size: int | None = None) -> "Tensor":
    """Return the mask (1, 1, L, L) of the class's attention, L = num_frames * positions: each frame sees itself and those before.

    That of the class has no dimension for heads, so its attention fails for more than one clip at once.
    """
    import torch  # noqa: PLC0415

    frame = torch.arange(num_frames, device=device).repeat_interleave(positions)
    hidden = frame[:, None] < frame[None, :]
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))[None, None]


@dataclass(frozen=True)
class HunyuanVideo15(Family):
    """The VAE of HunyuanVideo 1.5: causal convolutions, and attention over all earlier frames."""

    class_name: ClassVar[str] = "AutoencoderKLHunyuanVideo15"
    carried: ClassVar[tuple[str, str]] = ("HunyuanVideo15CausalConv3d", "HunyuanVideo15Downsample")

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return config.get("temporal_compression_ratio", 4), config.get("spatial_compression_ratio", 16)

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        return int(config.get("latent_channels", 32))

    def build(self, config: Mapping[str, Any]) -> "nn.Module":
        vae = super().build(config)
        for module in vae.modules():
            if hasattr(module, "prepare_causal_attention_mask"):
                cast("Any", module).prepare_causal_attention_mask = _causal_mask
        return vae

    def piecewise(self, vae: Any) -> Piecewise:
        ratio, _ = self.ratios(vae.config)
        return Piecewise(
            ratio,
            lambda kept: partial(_CarryWithAttention(*self.carried, kept).encode, vae, self.posterior),
            exact_frames=(KEPT_FRAMES - 1) * ratio + 1,
        )


HUNYUAN15 = ModelSpec(
    name="hunyuan1.5",
    title="HunyuanVideo 1.5",
    teacher=TeacherSpec(
        family=HunyuanVideo15(),
        repo="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",  # unverified
        folder="vae",
        num_bytes=5_042_000_000,
        latent_channels=32,
        time_ratio=4,
        space_ratio=16,
        frames=FrameRule(step=4, first=1),
        decoder_params_m=871.310,
        licence="Tencent Hunyuan Community License",
        licence_note="excludes the EU, the UK and South Korea, and calls distilled models derivatives",
    ),
    student=StudentSpec(
        config=student_config(32, (64, 128, 256, 512), (3, 2, 3, 1, 1), patch_size=2, spatio_only=True, scaling_factor=_SCALING),
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block", head=True),
            AlignmentPair("up_blocks.1", "decoder.up_blocks.0", head=True),
        ),
        params_m=40.125,
    ),
    recipe="night-480",  # a step on clips of 512x512 holds 20 GB: docs/gpu-memory.md
)

ROWS = (HUNYUAN15,)
