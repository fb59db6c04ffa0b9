"""The latent space of a teacher: its statistics from its class or its config, without loading its weights."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from turbovaed_cli.errors import WeightFileError
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.registry.download import Consent, no_consent, teacher_folder
from turbovaed_cli.registry.find import read_config_of
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ASSETS, ModelSpec
from turbovaed_cli.registry.weight_files import weight_files

_STATISTICS = ("latents_mean", "latents_std")


def space_of(spec: ModelSpec, consent: Consent = no_consent) -> LatentSpace:
    """Return the latent space of a teacher.

    Classes that keep their statistics in the weights (LTX) need the weights: MissingWeightsError if they are not on this
    machine and `consent` does not allow the download.
    """
    teacher = spec.teacher
    config = dict(teacher.config) if teacher.path is None else read_config_of(teacher, teacher.path)
    found = {name: config[name] for name in _STATISTICS if config.get(name)}
    if not found:
        with torch.device("meta"):
            vae = teacher.family.build(config)
        in_config = {name.rpartition(".")[2] for name, _ in vae.named_buffers()}.isdisjoint(_STATISTICS)
        found = teacher.family.statistics(vae) if in_config else _stored(spec, teacher_folder(spec, consent))
    elif config.get("scaling_factor"):
        found["scaling_factor"] = config["scaling_factor"]
    if teacher.path is None:  # the default of the class may be that of another model
        found["scaling_factor"] = spec.student.config.get("scaling_factor", 1.0)
    return make_space(spec, found)


def space_of_vae(spec: ModelSpec, vae: nn.Module) -> LatentSpace:
    """Return the latent space of a loaded teacher."""
    return make_space(spec, spec.teacher.family.statistics(vae))


def make_space(spec: ModelSpec, statistics: dict[str, Any]) -> LatentSpace:
    """Return the latent space with these statistics; those that are missing are 0, 1 and 1."""
    teacher = spec.teacher
    mean = tuple(statistics.get("latents_mean") or [0.0] * teacher.latent_channels)
    std = tuple(statistics.get("latents_std") or [1.0] * teacher.latent_channels)
    factor = float(statistics.get("scaling_factor") or 1.0)
    return LatentSpace(teacher.latent_channels, mean, std, factor, teacher.time_ratio, teacher.space_ratio)


def registry_name(spec: ModelSpec) -> str | None:
    """Return the registry name of a teacher: of a row, or of a folder that is the hub's cached copy of a row; else None."""
    path = spec.teacher.path
    if path is None or path.is_relative_to(ASSETS):
        return spec.teacher_name if spec.teacher_name in MODELS else None
    parts = path.absolute().parts
    for name, row in MODELS.items():
        cached = f"models--{row.teacher.repo.replace('/', '--')}" if row.teacher.repo else None
        if cached in parts and path.name == (row.teacher.folder or path.name):
            return name
    return None


def _stored(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """Return the statistics among the weights of a teacher."""
    found: dict[str, Any] = {}
    for place in spec.teacher.folders(folder):
        for path in weight_files(place, spec.teacher.file or spec.teacher.weights_file).files:
            if path.suffix != ".safetensors":
                continue
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a dict
                        if name.rpartition(".")[2] in _STATISTICS:
                            found.setdefault(name.rpartition(".")[2], file.get_tensor(name).float().tolist())
            except (SafetensorError, OSError) as error:
                raise WeightFileError(f"{path} cannot be read: {error}", "get the weights from their source again") from error
    if len(found) < len(_STATISTICS):
        raise WeightFileError(
            f"{folder} holds no latents_mean and latents_std in .safetensors", "get the weights from the source of the teacher"
        )
    return found
