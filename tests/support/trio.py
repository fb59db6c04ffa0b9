"""A teacher, a student of it and two decoders of other families for the same latents, all small and random."""

from dataclasses import dataclass
from pathlib import Path

from others import load_numbers
from small_teachers import SMALL, small_student

from turbovaed_cli.registry.rows import MODELS


@dataclass(frozen=True)
class Trio:
    """Places to load: an LTX teacher of 16 channels, its student, and a Flash-VAED file of as many channels."""

    teacher: Path
    student: Path
    flash: Path


def write_trio(folder: Path) -> Trio:
    import torch

    from turbovaed_cli.models.loading import build_student

    row = MODELS["ltx"].teacher
    torch.manual_seed(0)
    vae = row.family.build({"_class_name": row.class_name, **row.config, **SMALL["ltx"], "latent_channels": 16})
    vae.save_pretrained(folder / "vae")
    build_student(small_student(folder / "vae")).save_pretrained(folder / "student")
    return Trio(folder / "vae", folder / "student", load_numbers("flash-vaed-ltx-small").write(folder, "flash.safetensors"))


def write_wan(folder: Path) -> tuple[Path, Path]:
    """A Wan 2.1 teacher of 16 channels and few others, and a TAEHV file: a decoder that streams, whose keys name no teacher."""
    import torch

    row = MODELS["wan2.1"].teacher
    statistics = {"latents_mean": [0.1] * 16, "latents_std": [1.5] * 16}
    torch.manual_seed(0)
    config = {"_class_name": row.class_name, **row.config, **SMALL["wan2.1"], "z_dim": 16, **statistics}
    row.family.build(config).save_pretrained(folder / "wan")
    return folder / "wan", load_numbers("taehv-16ch").write(folder, "tae.safetensors")
