"""A decoder of TAEHV's architecture that `distill` trains, for comparisons with our students in equal time.

Its weight files have TAEHV's own keys, so that TAEHV's tools read them. The statistics of the latents are in config.json, and in
the header of the file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import fits, shown
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.models.others.family import OtherDecoder, load_exactly
from turbovaed_cli.models.others.taehv import PATCHES, TAEHV, WIDTHS, Grow, Layout, MemoryBlock, Part
from turbovaed_cli.models.others.weights import ForeignWeights
from turbovaed_cli.registry.rows import TEACHER_LICENCES
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.registry.weight_files import WEIGHTS_FILE

CLASS_NAME = "TAEHV"  # of a config.json
# The time strides of the three stages: the published layouts double time in the last stages.
_STRIDES = {1: (1, 1, 1), 2: (1, 1, 2), 4: (1, 2, 2), 8: (2, 2, 2)}
_SPACE = 8  # of the three stages; the patch size multiplies it
_MOST_CHANNELS = 4096
_GREY, _LAST_GAIN = 0.5, 0.3  # of a start: the colour, in [0, 1], and the size of the last weights
_FIELDS: Mapping[str, Any] = {
    "family": str,
    "width": str | list[int],
    "latent_channels": int,
    "temporal_compression_ratio": int,
    "spatial_compression_ratio": int,
    "first_frame_alone": bool,
    "latents_mean": list[float] | None,
    "latents_std": list[float] | None,
    "scaling_factor": float | None,
    "teacher": str | None,
}


class TaehvStudent(TAEHV):
    """A TAEHV decoder with a config: raw latents (B, C, t, h, w) of its teacher to video (B, 3, T, H, W) in [-1, 1].

    T is (t - 1) * ratio + 1, or t * ratio for a teacher whose first latent frame stands for as many frames as the others.
    """

    latents = "raw"
    gradient_checkpointing = False

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(_layout(config))
        self.config = dict(config)
        name = config.get("teacher")
        self.teacher = str(name) if name in TEACHER_LICENCES else None
        self.licence = TEACHER_LICENCES[self.teacher] if self.teacher else "unknown: that of the teacher"
        self.is_h3 = False
        self.space = _space(config)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Set the weights to a start from which the first steps do not diverge: grey frames, and blocks that pass frames on."""
        for layer in self.decoder.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in self.decoder:
            if isinstance(layer, MemoryBlock):
                nn.init.zeros_(cast(nn.Conv2d, layer.conv[-1]).weight)
            elif isinstance(layer, Grow):  # each new frame is a copy
                channels = layer.conv.in_channels
                layer.conv.weight.copy_(torch.eye(channels).repeat(layer.stride, 1)[:, :, None, None])
        last = cast(nn.Conv2d, self.decoder[-1])
        last.weight.mul_(_LAST_GAIN)
        nn.init.constant_(cast(Tensor, last.bias), _GREY)

    def take_raw(self, spec: ModelSpec, name: str | None, space: LatentSpace) -> None:
        OtherDecoder.take_raw(self, spec, name, space)

    def _num_dropped(self, latent_frames: int) -> int:
        return self.temporal_compression_ratio - 1 if self.config["first_frame_alone"] else 0

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution."""
        return self.get_parameter(f"decoder.{len(self.decoder) - 1}.weight")

    def features(
        self, latents: Tensor, blocks: Sequence[str], *, with_sample: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Decode latents (B, C, t, h, w) to (video (B, 3, T, H, W), {}). Raises SettingsError if `blocks` names any."""
        if blocks:
            raise SettingsError(
                f"a student of the family {self.family} has no features that could be aligned with the teacher's",
                "`set=feature_weight=0` learns without them",
            )
        return self(latents) if with_sample else None, {}

    def checkpoint_blocks(self, *, enable: bool) -> None:
        """Switch gradient checkpointing: training keeps the inputs of layers and computes the rest again; gradients are equal."""
        self.gradient_checkpointing = enable

    def _run(self, part: Part, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            made: Tensor = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False)
            return made
        return part(x)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config.json and one weight file with TAEHV's keys, whose header has the config too."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": CLASS_NAME, **self.config}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt", "config": json.dumps(config, sort_keys=True)})


def config_of_taehv(given: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return the config of a student of this teacher; `given` may have a `width`: base, super, wide, or three numbers.

    Raises SettingsError for other keys, and for a teacher whose ratios no layout of TAEHV has.
    """
    teacher = spec.teacher
    if unknown := sorted(set(given) - {"family", "width"}):
        raise SettingsError(f"the student config has an unknown key {unknown[0]!r}", "a TAEHV student has `family` and `width`")
    config = {
        "family": TAEHV.family,
        "width": given.get("width", "base"),
        "latent_channels": teacher.latent_channels,
        "temporal_compression_ratio": teacher.time_ratio,
        "spatial_compression_ratio": teacher.space_ratio,
        "first_frame_alone": teacher.frames.first == 1,
    }
    _layout(config)
    return config


def build_taehv(config: Mapping[str, Any]) -> TaehvStudent:
    """Return a student with random weights from a whole config. Raises SettingsError for a value that makes no sense."""
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    if unknown := sorted(set(config) - set(_FIELDS)):
        raise SettingsError(f"the student config has an unknown key {unknown[0]!r}", f"known keys: {', '.join(_FIELDS)}")
    for name, hint in _FIELDS.items():
        if not fits(config.get(name), hint):
            raise SettingsError(
                f"the student config's {name} is {shown(config.get(name))}", "as distill writes it in config.json"
            )
    num = config["latent_channels"]
    for name in ("latents_mean", "latents_std"):
        if config.get(name) and len(config[name]) != num:
            raise SettingsError(f"{name} has {len(config[name])} values for {num} latent_channels", "one for each, or null")
    return TaehvStudent(config)


def load_taehv_student(weights: ForeignWeights, config: Mapping[str, Any]) -> TaehvStudent:
    """Return the student in a weight file, fp32 on the CPU; raises WeightFileError for keys that differ from the config's."""
    with torch.device("meta"):
        student = build_taehv(config)
    load_exactly(student, weights.state, weights.path)
    return student


def _layout(config: Mapping[str, Any]) -> Layout:
    """Return the layout of a config. Raises SettingsError for ratios or widths that TAEHV does not have."""
    width, channels = config["width"], config["latent_channels"]
    time, space = config["temporal_compression_ratio"], config["spatial_compression_ratio"]
    if time not in _STRIDES or space not in [_SPACE * patch for patch in PATCHES.values()]:
        raise SettingsError(
            f"no layout of TAEHV upsamples {time}x in time and {space}x in space",
            f"it has {', '.join(map(str, _STRIDES))} in time and {', '.join(str(_SPACE * one) for one in PATCHES.values())} in space: "
            "leave out `student` for one of ours",
        )
    widths = None
    if isinstance(width, str):
        check_choice("the student config's width", width, tuple(WIDTHS))
    elif len(width) != len(_STRIDES[time]) or not all(isinstance(one, int) and 1 <= one <= _MOST_CHANNELS for one in width):
        raise SettingsError(f"the student config's width is {shown(width)}", f"{', '.join(WIDTHS)}, or three numbers of channels")
    else:
        widths = (width[0], width[1], width[2])
    return Layout(width if isinstance(width, str) else "base", channels, space // _SPACE, _STRIDES[time], widths)


def _space(config: Mapping[str, Any]) -> LatentSpace:
    channels = config["latent_channels"]
    mean, std = (
        tuple(map(float, config.get(name) or [default] * channels)) for name, default in (("latents_mean", 0), ("latents_std", 1))
    )
    time, space = config["temporal_compression_ratio"], config["spatial_compression_ratio"]
    return LatentSpace(channels, mean, std, config.get("scaling_factor") or 1.0, time, space)
