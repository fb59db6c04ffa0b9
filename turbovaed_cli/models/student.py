"""The student as diffusers pipelines call it: a decoder with the statistics of its latents."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from turbovaed_cli.errors import FrameCountError, SettingsError
from turbovaed_cli.models.decoder import DecoderOutput
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.models.network import StudentNetwork
from turbovaed_cli.models.self_contained import AUTO_MAP, MODELING_FILE, modeling_source
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder, fast_form
from turbovaed_cli.registry.rows import TEACHER_LICENCES


class StudentDecoder(StudentNetwork):
    """A student whose `decode` returns `.sample`, as a VAE in a pipeline does; see StudentNetwork for shapes and the config."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> "StudentDecoder":
        """Load as diffusers does, but never from pickles: raises OSError for a folder without safetensors."""
        return cast("StudentDecoder", super().from_pretrained(*arguments, **{**options, "use_safetensors": True}))

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **options: Any) -> tuple[dict[str, Any], ...]:
        """Return the arguments in a config, as diffusers asks for them; `auto_map` is for those who load without turbovaed."""
        config = {key: value for key, value in config_dict.items() if key != "auto_map"}
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

    def stream(self) -> StreamingDecoder:
        """Return a new stream of one clip."""
        return StreamingDecoder(self)

    # Diffusers pipelines need these of a VAE. Statistics stay in the config, so that state dicts keep the published layout.
    @property
    def latents_mean(self) -> Tensor:
        """Per-channel mean that LTX pipelines add before decode, (C,); zeros if the teacher has none."""
        values = self.config.latents_mean or [0.0] * self.config.latent_channels
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    @property
    def latents_std(self) -> Tensor:
        """Per-channel standard deviation that LTX pipelines multiply by before decode, (C,); ones if the teacher has none."""
        values = self.config.latents_std or [1.0] * self.config.latent_channels
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode `z` (B, latent_channels, t, h, w), as diffusers pipelines call it, to `.sample` (B, 3, T, H, W) in [-1, 1].

        `temb` is not used. Without gradients on a CPU the fast form decodes (see `fast`): results are equal within rounding,
        and hooks of modules are not called. Raises ShapeError for another shape, FrameCountError for t = 0.
        """
        self.check_latents(z)
        if z.shape[2] < 1:
            raise FrameCountError("latents hold no frame")
        sample = self.ready().decode(z) if self.decodes_fast and not torch.is_grad_enabled() else self(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @property
    def decodes_fast(self) -> bool:
        """Whether `decode` without gradients uses the fast form: `fast`, or if that is None, whether this is a CPU."""
        return self.device.type == "cpu" if self.fast is None else self.fast

    def ready(self) -> FastDecoder:
        """Return the fast form of these weights, as `fast_form` makes it."""
        return fast_form(self)

    def encode(self, x: Tensor, return_dict: bool = True) -> None:
        """Raise SettingsError: a student is a decoder; its teacher encodes."""
        raise SettingsError("a student has no encoder", "encode with its teacher: turbovaed_cli.load_teacher(...).encode(video)")
