"""The student as diffusers pipelines call it: a decoder with the statistics of its latents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from turbovaed_cli.errors import FrameCountError, SettingsError
from turbovaed_cli.models.decoder import DecoderOutput
from turbovaed_cli.models.gpu_form import GpuDecoder, decode_on_gpu
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.models.layers import is_hooked
from turbovaed_cli.models.network import DERIVED_KEYS, StudentNetwork
from turbovaed_cli.models.self_contained import AUTO_MAP, MODELING_FILE, modeling_source
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder, decode_as_memory_allows, fast_form
from turbovaed_cli.registry.rows import TEACHER_LICENCES

_PIXELS_WITH_TILING = 4 * 512 * 512  # decoded at once, at most; of a frame that has more, one latent frame


class StudentDecoder(StudentNetwork):
    """A student whose `decode` returns `.sample`, as a VAE in a pipeline does; see StudentNetwork for shapes and the config."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> "StudentDecoder":
        """Load as diffusers does, but never from pickles: raises OSError for a folder without safetensors."""
        return cast("StudentDecoder", super().from_pretrained(*arguments, **{**options, "use_safetensors": True}))

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **options: Any) -> tuple[dict[str, Any], ...]:
        """Return the arguments in a config, as diffusers asks for them.

        Left out: `auto_map`, for those who load without turbovaed, and what follows from the arguments.
        """
        config = {key: value for key, value in config_dict.items() if key not in (*DERIVED_KEYS, "auto_map")}
        return cast(tuple[dict[str, Any], ...], super().extract_init_dict(config, **options))

    def to_json_string(self) -> str:
        """Return config.json, which names the class in the modeling file."""
        return json.dumps({**json.loads(super().to_json_string()), "auto_map": AUTO_MAP}, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """Write config.json and the modeling file, with which diffusers' AutoModel loads the folder without turbovaed.

        It is part of `save_pretrained`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODELING_FILE).write_text(modeling_source(), encoding="utf-8", newline="\n")
        super().save_config(folder, *arguments, **options)

    fast_form_class = GpuDecoder
    family = "turbo-vaed"
    latents = "raw"

    @property
    def teacher(self) -> str | None:
        """The registry name of the teacher, as its config has it; None for that of a local folder."""
        name = self.config.teacher
        return str(name) if name in TEACHER_LICENCES else None

    @property
    def space(self) -> LatentSpace:
        """The statistics of the latents."""
        mean, std = (
            tuple(map(float, values or [default] * self.latent_channels))  # not those in the precision of the weights
            for values, default in ((self.config.latents_mean, 0.0), (self.config.latents_std, 1.0))
        )
        time, space = int(self.temporal_compression_ratio), int(self.spatial_compression_ratio)
        return LatentSpace(self.latent_channels, mean, std, self.config.scaling_factor or 1.0, time, space)

    @property
    def licence(self) -> str:
        """The licence of the teacher, which is that of students distilled from it."""
        return TEACHER_LICENCES[self.teacher] if self.teacher else "unknown: that of the teacher"

    @property
    def latent_channels(self) -> int:
        """The number of latent channels."""
        return int(self.config.latent_channels)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution."""
        return self.conv_out.conv.weight

    def stream(self) -> StreamingDecoder:
        """Return a new stream of one clip."""
        return StreamingDecoder(self)

    # Diffusers pipelines need these of a VAE. Statistics stay in the config, so that state dicts keep the published layout.
    @property
    def latents_mean(self) -> Tensor:
        """Per-channel mean that LTX pipelines add before decode, (C,); zeros if the teacher has none."""
        return self._per_channel(self.config.latents_mean or [0.0] * self.config.latent_channels)

    @property
    def latents_std(self) -> Tensor:
        """Per-channel standard deviation that LTX pipelines multiply by before decode, (C,); ones if the teacher has none."""
        return self._per_channel(self.config.latents_std or [1.0] * self.config.latent_channels)

    def _per_channel(self, values: Sequence[float]) -> Tensor:
        device = torch.device("cpu") if self.device.type == "meta" else self.device  # sequential offload leaves weights there
        return torch.tensor(values, device=device, dtype=self.dtype)

    @property
    def temperal_downsample(self) -> list[bool]:
        """One entry for each doubling of space, and whether it doubles time too: Wan's spelling, for its VACE pipeline."""
        in_time, in_space = (
            int(ratio).bit_length() - 1 for ratio in (self.temporal_compression_ratio, self.spatial_compression_ratio)
        )
        return [False] * (in_space - in_time) + [True] * in_time

    use_tiling = use_slicing = False

    def enable_tiling(self, *_sizes: Any, **_named_sizes: Any) -> None:
        """Decode a few latent frames at a time, to the same pixels; there are no tiles, so their sizes are ignored."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Decode whole clips again."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Decode the clips of a batch one by one, to the same pixels."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode the clips of a batch together again."""
        self.use_slicing = False

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode `z` (B, latent_channels, t, h, w), as diffusers pipelines call it, to `.sample` (B, 3, T, H, W) in [-1, 1].

        `z` is converted to the student's precision; `temb` is not used. Without gradients on a CPU the fast form decodes (see
        `fast`), and on CUDA the fastest one: results are equal within rounding, and hooks of modules are not called. Raises
        ShapeError for another shape, FrameCountError for t = 0.
        """
        self._come_from_offload()
        self.check_latents(z)
        if z.shape[2] < 1:
            raise FrameCountError("latents hold no frame")
        z = z.to(self.dtype)
        sample = torch.cat([self._decoded(clip) for clip in z.split(1)]) if self.use_slicing and len(z) > 1 else self._decoded(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _decoded(self, z: Tensor) -> Tensor:
        """Decode latents in the way that the switches ask for."""
        if torch.is_grad_enabled() or self._is_hooked_inside:
            return cast(Tensor, self(z))
        if self.use_tiling:
            pixels = z[0, 0, 0].numel() * int(self.spatial_compression_ratio) ** 2 * int(self.temporal_compression_ratio)
            frames = max(_PIXELS_WITH_TILING // pixels, 1)
            return torch.cat(list(decode_as_memory_allows(self.ready(), z.split(frames, dim=2), frames)), dim=2)
        if self.decodes_fast:
            return self.ready().decode(z)
        is_offloaded = "_hf_hook" in vars(self)  # its weights move at every call, so that a form would have to be made again
        return cast(Tensor, self(z)) if is_offloaded or self.fast is False else decode_on_gpu(self, z)

    @property
    def _is_hooked_inside(self) -> bool:
        """Whether weights of single modules are moved or cast when these run, as sequential and group offload do."""
        return any(is_hooked(module) for module in self.modules() if module is not self) or "_diffusers_hook" in vars(self)

    def _come_from_offload(self) -> None:
        """Move the weights to where the pipeline computes, if it offloads whole models; the model before it makes room."""
        hook = vars(self).get("_hf_hook")
        if hook is not None:
            hook.pre_forward(self)

    @property
    def decodes_fast(self) -> bool:
        """Whether `decode` without gradients uses the fast form: `fast`, or if that is None, whether this is a CPU."""
        return self.device.type == "cpu" if self.fast is None else self.fast

    def ready(self) -> FastDecoder:
        """Return the fast form of these weights, as `fast_form` makes it."""
        return fast_form(self)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Raise SettingsError: a student is a decoder; its teacher encodes."""
        raise SettingsError(
            "a student has no encoder, which image-to-video needs",
            "attach_student(pipe, student) keeps that of the pipeline; load_student(..., with_encoder=True) brings the teacher's",
        )


StudentDecoder.__module__ = "turbovaed_cli"  # saved pipelines name it, so that `import turbovaed_cli` is enough to load them
