"""What a row of the registry is made of: the teacher, its student, and how they fit together."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from turbovaed_cli.errors import FrameCountError, ShapeError
from turbovaed_cli.registry.weight_files import WEIGHTS_FILE

ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class FrameRule:
    """Which frame counts T survive encode and decode: step * k + first, at least `minimum`, and single images."""

    step: int
    first: int
    minimum: int = 1
    maximum: int | None = None

    def is_valid(self, frames: int) -> bool:
        """Whether `frames` pixel frames come back as that many."""
        if self.maximum is not None and frames > self.maximum:
            return False
        return frames == 1 or (frames >= self.minimum and frames % self.step == self.first % self.step)

    def at_least(self, frames: int) -> int:
        """The smallest valid count >= frames; the maximum where there is none."""
        if frames <= 1:
            return 1
        if self.maximum is not None and frames > self.maximum:
            return self.maximum
        return max(self.minimum, math.ceil((frames - self.first) / self.step) * self.step + self.first)

    def at_most(self, frames: int) -> int:
        """The largest valid count <= frames; 1 where there is none."""
        frames = frames if self.maximum is None else min(frames, self.maximum)
        valid = (frames - self.first) // self.step * self.step + self.first
        return valid if valid >= self.minimum else 1

    def __str__(self) -> str:
        """'8k+1' or '4k, at least 8', as users read it."""
        text = f"{self.step}k+{self.first}" if self.first else f"{self.step}k"
        text = f"{text}, at least {self.minimum} (or 1)" if self.minimum > 1 else text
        return f"{text}, at most {self.maximum}" if self.maximum else text


@dataclass(frozen=True)
class AlignmentPair:
    """One student block learning from one teacher tap.

    `head` puts two 1x1x1 convolutions on the student's side; `transform` is what happens behind the head:
    "shuffle2d" a per-frame pixel shuffle by 2, "shuffle3d" a (c, t, h, w) shuffle by 2 that drops the first frame.
    `unit` is the size of the teacher's feature that counts as 1: a teacher whose residual stream grows large would drown
    every other loss. The published pairs are compared as they are.
    """

    student_block: str
    teacher_tap: str
    head: bool = False
    transform: Literal["none", "shuffle2d", "shuffle3d"] = "none"
    unit: float = 1.0


@dataclass(frozen=True)
class RequiredSetting:
    """An attribute of the teacher that must be set, or it silently computes something else."""

    name: str
    value: object
    why: str


@dataclass(frozen=True)
class Published:
    """A file on the hub: where, how large in bytes (as last seen), under which licence."""

    repo: str
    filename: str
    num_bytes: int
    licence: str


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher: the VAE whose encoder is kept and whose decoder is distilled."""

    class_name: str
    repo: str | None
    folder: str
    num_bytes: int | None  # of the weights; None for a local folder that holds none
    latent_channels: int
    time_ratio: int
    space_ratio: int
    frames: FrameRule
    decoder_params_m: float | None  # None for a local folder: models/teacher.py counts them
    licence: str
    licence_note: str = ""
    required: tuple[RequiredSetting, ...] = ()
    weights_file: str = WEIGHTS_FILE
    ratios: Callable[[Mapping[str, Any]], tuple[int, int]] | None = None  # (time, space) of a local folder's config
    path: Path | None = None  # a local folder, when the weights do not come from the hub
    file: str | None = None  # the weight file of that folder that was named

    @property
    def where(self) -> str | None:
        """What names this teacher again from anywhere: its absolute path; None for a registry row."""
        if self.path is None or self.path.is_relative_to(ASSETS):
            return None
        return str(self.path.resolve() / self.file if self.file else self.path.resolve())

    @property
    def origin(self) -> str:
        """Where it comes from, without a path: this is for cards and pages, which are published."""
        if self.path is None:
            return f"{self.repo} {self.folder}".rstrip()
        return "embedded in turbovaed" if self.path.is_relative_to(ASSETS) else f"local folder {self.path.resolve().name}"

    def latent_frames(self, frames: int) -> int:
        """T for T pixel frames; raises FrameCountError with the nearest valid counts."""
        self.check_frames(frames)
        return 1 if frames == 1 else (frames - self.frames.first) // self.time_ratio + self.frames.first

    def pixel_frames(self, latent_frames: int) -> int:
        """T for t latent frames."""
        return 1 if latent_frames == 1 else (latent_frames - self.frames.first) * self.time_ratio + self.frames.first

    def check_frames(self, frames: int) -> None:
        """Raise FrameCountError unless the teacher gives back as many frames as it was given."""
        if not self.frames.is_valid(frames):
            below, above = self.frames.at_most(frames), self.frames.at_least(frames)
            nearest = " or ".join(str(count) for count in dict.fromkeys((below, above)))
            raise FrameCountError(
                f"{frames} frames do not survive this teacher, which takes {self.frames}", f"nearest: --frames {nearest}"
            )

    def check_size(self, height: int, width: int) -> None:
        """Raise ShapeError unless both are multiples of the spatial ratio."""
        ratio = self.space_ratio
        if height % ratio or width % ratio or min(height, width) < ratio:
            below = (max(height // ratio, 1) * ratio, max(width // ratio, 1) * ratio)
            above = (math.ceil(height / ratio) * ratio, math.ceil(width / ratio) * ratio)
            raise ShapeError(
                f"{width}x{height} is not a multiple of {ratio} in both directions, which this teacher needs",
                f"nearest: --size {below[1]}x{below[0]} or {above[1]}x{above[0]}",
            )


@dataclass(frozen=True)
class StudentSpec:
    """The student of a teacher: architecture in published key names, alignment, published weights."""

    config: dict[str, Any]
    pairs: tuple[AlignmentPair, ...]
    params_m: float | None  # None for a local folder: models/design.py counts them
    published: Published | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One row of the registry."""

    name: str
    title: str
    teacher: TeacherSpec
    student: StudentSpec
    aliases: tuple[str, ...] = ()
    recipe: str = "night"  # of settings.RECIPES, that `distill` takes unless another is named
    published_results: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # metric: (teacher, student), on PUBLISHED_ON

    @property
    def embedded(self) -> bool:
        """Whether its weights come with the package."""
        return self.teacher.path is not None and self.teacher.path.is_relative_to(ASSETS)


PUBLISHED_ON = "arXiv:2508.09136, UCF-101, 17 frames of 256x256"
STUDENT_REPO, STUDENT_LICENCE = "hustvl/Turbo-VAED", "MIT"  # of the published students


def student_config(
    latent_channels: int,
    channels: tuple[int, ...],
    layers: tuple[int, ...],
    *,
    patch_size: int,
    spatio_only: bool,
    dc: bool = False,
    scaling_factor: float = 1.0,
) -> dict[str, Any]:
    """A published student's config, by the names in its weight file; the last two stages are depthwise-separable."""
    return {
        "latent_channels": latent_channels,
        "decoder_block_out_channels": channels,
        "decoder_layers_per_block": layers,
        "decoder_is_dw_conv": (False,) * (len(layers) - 2) + (True, True),
        "decoder_dw_kernel_size": 5,
        "spatio_temporal_scaling": (True,) * (len(channels) - 1) + (False,),
        "decoder_spatio_only": (spatio_only,) + (False,) * (len(channels) - 1),
        "patch_size": patch_size,
        "is_video_dc_ae": dc,
        "scaling_factor": scaling_factor,
    }
