"""Decoders of the published Turbo-VAED architecture: the authors' training checkpoints, and AMD's Hummingbird-XT.

They are students, so they stream, export and decode fast as students do.
"""

from collections.abc import Mapping
from typing import Any, cast

from turbovaed_cli.models.loading import student_of
from turbovaed_cli.models.others.family import Shapes
from turbovaed_cli.models.others.spaces import space_of
from turbovaed_cli.models.others.weights import ForeignWeights
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ModelSpec

_RATIOS = ("scale_factor_spatial", "scale_factor_temporal")  # in the config of Hummingbird-XT
_HUMMINGBIRD_CHANNELS = 48


class HummingbirdDecoder(StudentDecoder):
    """The decoder of Hummingbird-XT, for Wan 2.2. It takes raw latents, as students do."""

    family = "hummingbird"
    licence = "Apache-2.0"


def is_turbo_vaed(shapes: Shapes) -> bool:
    """Whether a file with tensors of these shapes has the published architecture, with or without `decoder.` before its keys.

    A VAE of LTX-Video has such keys too, and an encoder.
    """
    names = {key.removeprefix("decoder.") for key in shapes}
    is_other = any(key.startswith("encoder.") or "time_conv" in key or ".depthwise." in key for key in shapes)
    has_blocks = any(name.startswith(("mid_block.", "up_blocks.0.")) for name in names)  # either may have no layers
    return {"conv_in.conv.weight", "conv_out.conv.weight"} <= names and has_blocks and not is_other


def has_hummingbird_config(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of Hummingbird-XT. A Wan 2.2 student of ours has the same keys, and another config."""
    is_for_wan = config.get("latent_channels") == _HUMMINGBIRD_CHANNELS and "decoder_block_out_channels" in config
    return is_for_wan and config.get("_class_name") != "StudentDecoder" and all(name in config for name in _RATIOS)


def load_hummingbird(weights: ForeignWeights, config: Mapping[str, Any]) -> StudentDecoder:
    """Return the decoder of Hummingbird-XT's weights and config."""
    space = space_of(MODELS["wan2.2"])
    own = {key: value for key, value in config.items() if key not in _RATIOS}
    known = {"latents_mean": list(space.mean), "latents_std": list(space.std), "teacher": "wan2.2", "scaling_factor": 1.0}
    return student_of(_without_prefix(weights), own | known, weights.path, HummingbirdDecoder)


def load_turbo_vaed(weights: ForeignWeights, config: Mapping[str, Any], teacher: ModelSpec | None) -> StudentDecoder:
    """Return the student of a checkpoint's weights and config; `teacher` gives the scaling factor, which published configs lack."""
    known: dict[str, Any] = {}
    if teacher is not None and teacher.teacher_name in MODELS and not config.get("teacher"):
        known = {"teacher": teacher.teacher_name, "scaling_factor": teacher.student.config.get("scaling_factor", 1.0)}
    return student_of(_without_prefix(weights), {**config, **known}, weights.path)


def _without_prefix(weights: ForeignWeights) -> dict[str, Any]:
    return cast("dict[str, Any]", {key.removeprefix("decoder."): value for key, value in weights.state.items()})
