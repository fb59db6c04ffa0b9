"""A student with the encoder of its teacher: one VAE for pipelines that encode too, as image-to-video does."""

import json
from pathlib import Path
from typing import Any, Self, cast

import diffusers
import torch
from torch import Tensor, nn

from turbovaed_cli.errors import WeightFileError
from turbovaed_cli.files.tensors import load_strictly, read_weights
from turbovaed_cli.models.student import StudentDecoder

_FOLDER, _WEIGHTS = "encoder", "diffusion_pytorch_model.safetensors"
_PART = "teacher_vae"


def has_encoder(folder: Path) -> bool:
    """Whether a StudentVae was saved in this folder."""
    return (folder / _FOLDER / _WEIGHTS).is_file()


def load_encoder(folder: Path) -> nn.Module:
    """Return the VAE without decoder of a folder in which a StudentVae was saved, in fp32; raises WeightFileError without one."""
    inside = folder / _FOLDER
    if not has_encoder(folder):
        raise WeightFileError(
            f"{folder} holds a student without its encoder", "load it as a StudentDecoder, or with load_student"
        )
    config = json.loads((inside / "config.json").read_text(encoding="utf-8"))
    vae = getattr(diffusers, config["_class_name"]).from_config(config)
    vae.decoder = None
    load_strictly(vae, read_weights(inside / _WEIGHTS), inside / _WEIGHTS)
    return cast("nn.Module", vae.eval())


class StudentVae(StudentDecoder):
    """A student that also encodes, with the VAE of its teacher, of which the decoder was dropped.

    Both move and change precision together. `save_pretrained` writes the student as any other, and the encoder into the folder
    `encoder` inside, with the teacher's weights and under its licence; `from_pretrained` of that folder loads both.
    """

    teacher_vae: Any

    @classmethod
    def of(cls, student: StudentDecoder, vae: Any) -> "StudentVae":
        """Return `student` with the encoder of `vae`, a diffusers VAE. They share their weights; the decoder of `vae` is dropped."""
        with torch.device("meta"):
            made = cast("StudentVae", cls.from_config(student.config))
        made.load_state_dict(student.state_dict(), assign=True)
        made.fast = student.fast
        made._take(nn.Module.to(vae, device=student.device, dtype=student.dtype))
        return made.eval()

    def _take(self, vae: Any) -> None:
        vae.decoder = None
        self.teacher_vae = vae
        self.register_to_config(invert_scale_latents=bool(vae.config.get("invert_scale_latents")))

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> "StudentVae":
        """Load a folder that `save_pretrained` wrote. Raises OSError for a folder without weights, WeightFileError without encoder."""
        where = arguments[0] if arguments else options["pretrained_model_name_or_path"]
        loaded = cast("Any", super().from_pretrained(*arguments, **options))
        made: StudentVae = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
        made._take(nn.Module.to(load_encoder(Path(where, options.get("subfolder") or "")), device=made.device, dtype=made.dtype))
        return cast("StudentVae", loaded)

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """Write the student, and its encoder into the folder `encoder` inside."""
        vae = self._modules.pop(_PART)
        assert vae is not None
        try:
            super().save_pretrained(save_directory, *arguments, **options)
        finally:
            self._modules[_PART] = vae
        vae.save_pretrained(Path(save_directory) / _FOLDER)

    def to(self, *arguments: Any, **options: Any) -> Self:
        """Move both parts, or change their precision, as torch does."""
        return nn.Module.to(self, *arguments, **options)

    def encode(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        """Encode video `x` (B, 3, T, H, W) in [-1, 1] as the teacher's class does: to its `AutoencoderKLOutput` or a tuple."""
        self._come_from_offload()
        return self.teacher_vae.encode(x, *arguments, **options)

    def enable_tiling(self, *sizes: Any, **named_sizes: Any) -> None:
        """Decode a few latent frames at a time, and encode in tiles of these sizes, as the teacher's class does."""
        super().enable_tiling()
        self.teacher_vae.enable_tiling(*sizes, **named_sizes)

    def disable_tiling(self) -> None:
        """Decode and encode whole clips again."""
        super().disable_tiling()
        self.teacher_vae.disable_tiling()

    def enable_slicing(self) -> None:
        """Decode and encode the clips of a batch one by one."""
        super().enable_slicing()
        self.teacher_vae.enable_slicing()

    def disable_slicing(self) -> None:
        """Decode and encode the clips of a batch together again."""
        super().disable_slicing()
        self.teacher_vae.disable_slicing()


StudentVae.__module__ = "turbovaed_cli"  # as StudentDecoder's: saved pipelines name it
