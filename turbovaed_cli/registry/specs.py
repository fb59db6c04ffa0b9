"""The types of a registry row: the teacher, its student, and how they fit together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from turbovaed_cli.errors import FrameCountError, ShapeError
from turbovaed_cli.registry.family import Family
from turbovaed_cli.registry.weight_files import WEIGHTS_FILE

ASSETS = Path(__file__).parents[1] / "assets"
MOST_BLOCKS = 12  # of a student, besides the mid block; published ones have 4


@dataclass(frozen=True)
class FrameRule:
    """The frame counts T that encode and decode keep: step * k + first, `minimum` to `maximum`, and 1 for images."""

    step: int
    first: int
    minimum: int = 1
    maximum: int | None = None

    def is_valid(self, frames: int) -> bool:
        """Whether encode and decode keep this number of pixel frames."""
        if self.maximum is not None and frames > self.maximum:
            return False
        return frames == 1 or (frames >= self.minimum and frames % self.step == self.first % self.step)

    def at_least(self, frames: int) -> int:
        """Return the smallest valid count >= frames; the maximum if there is none."""
        if frames <= 1:
            return 1
        if self.maximum is not None and frames > self.maximum:
            return self.maximum
        return max(self.minimum, math.ceil((frames - self.first) / self.step) * self.step + self.first)

    def at_most(self, frames: int) -> int:
        """Return the largest valid count <= frames; 1 if there is none."""
        frames = frames if self.maximum is None else min(frames, self.maximum)
        valid = (frames - self.first) // self.step * self.step + self.first
        return valid if valid >= self.minimum else 1

    def __str__(self) -> str:
        """Return the rule as users read it: '8k+1', '4k, at least 8 (or 1)', or '1 or more' if every count is valid."""
        text = f"{self.step}k+{self.first}" if self.first else f"{self.step}k"
        text = "1 or more" if self.step == 1 else text
        text = f"{text}, at least {self.minimum} (or 1)" if self.minimum > 1 else text
        return f"{text}, at most {self.maximum}" if self.maximum else text


@dataclass(frozen=True)
class AlignmentPair:
    """A student block that learns from a teacher tap.

    `head` puts two 1x1x1 convolutions on the student's side. `transform` follows the head: "shuffle2d" is a per-frame pixel
    shuffle by 2, "shuffle3d" a (c, t, h, w) shuffle by 2 that drops the first frame. `unit` is the size of the teacher's
    feature that counts as 1: large features would drown every other loss. The published pairs have 1.
    """

    student_block: str
    teacher_tap: str
    head: bool = False
    transform: Literal["none", "shuffle2d", "shuffle3d"] = "none"
    unit: float = 1.0


@dataclass(frozen=True)
class Published:
    """A file on the hub: its repository and name, its size in bytes (as last seen), and its licence."""

    repo: str
    filename: str
    num_bytes: int
    licence: str


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher: the VAE whose encoder is kept and whose decoder is distilled."""

    family: Family
    repo: str | None
    folder: str
    num_bytes: int | None  # of all weights; None for a local folder that holds none
    latent_channels: int
    time_ratio: int
    space_ratio: int
    frames: FrameRule
    decoder_params_m: float | None  # None for a local folder: models/teacher.py counts them
    licence: str
    licence_note: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)  # of the full size, where it differs from the class's defaults
    beside: Mapping[str, int] = field(default_factory=dict)  # further folders that it is loaded from: the bytes of their weights
    weights_file: str = WEIGHTS_FILE
    path: Path | None = None  # a local folder, when the weights do not come from the hub
    file: str | None = None  # the weight file of that folder that was named
    hub: str | None = None  # the hub id that the folder was downloaded from: user/name

    @property
    def class_name(self) -> str:
        """The class of the VAE."""
        return self.family.class_name

    @property
    def where(self) -> str | None:
        """The hub id of a teacher, or the absolute path of a local one, of its weight file if that was named; None for a row."""
        if self.hub is not None:
            return self.hub
        if self.path is None or self.path.is_relative_to(ASSETS):
            return None
        return str(self.path.resolve() / self.file if self.file else self.path.resolve())

    @property
    def origin(self) -> str:
        """The source of the teacher, without a path: cards and pages show it, and these are published."""
        if self.hub is not None:
            return self.hub
        if self.path is None:
            return f"{self.repo} {' and '.join((self.folder, *self.beside))}".rstrip()
        return "embedded in turbovaed" if self.path.is_relative_to(ASSETS) else f"local folder {self.path.resolve().name}"

    def folders(self, root: Path) -> list[Path]:
        """Return the folders with a config and weights: `root`, or for a teacher of several folders those below `root`."""
        return [root / self.folder, *(root / name for name in self.beside)] if self.beside else [root]

    def latent_frames(self, frames: int) -> int:
        """Return t, the latent frames of T pixel frames; raises FrameCountError with the nearest valid counts."""
        self.check_frames(frames)
        return 1 if frames == 1 else (frames - self.frames.first) // self.time_ratio + self.frames.first

    def pixel_frames(self, latent_frames: int) -> int:
        """Return T, the pixel frames of t latent frames."""
        return 1 if latent_frames == 1 else (latent_frames - self.frames.first) * self.time_ratio + self.frames.first

    def check_frames(self, frames: int) -> None:
        """Raise FrameCountError unless encode and decode keep this number of frames."""
        if not self.frames.is_valid(frames):
            below, above = self.frames.at_most(frames), self.frames.at_least(frames)
            nearest = " or ".join(str(count) for count in dict.fromkeys((below, above)))
            raise FrameCountError(
                f"{frames} frames do not survive this teacher, which takes {self.frames}", f"nearest: `frames` {nearest}"
            )

    def check_size(self, height: int, width: int) -> None:
        """Raise ShapeError unless height and width, in pixels, are multiples of the spatial ratio."""
        ratio = self.space_ratio
        if height % ratio or width % ratio or min(height, width) < ratio:
            below = (max(height // ratio, 1) * ratio, max(width // ratio, 1) * ratio)
            above = (math.ceil(height / ratio) * ratio, math.ceil(width / ratio) * ratio)
            raise ShapeError(
                f"{width}x{height} is not a multiple of {ratio} in both directions, which this teacher needs",
                f"nearest: `size` {below[1]}x{below[0]} or {above[1]}x{above[0]}",
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
    """One row of the registry: a teacher with one of its students."""

    name: str  # of the student: that of the teacher, and for another member than the full one "-lite" and the like after it
    title: str
    teacher: TeacherSpec
    student: StudentSpec
    aliases: tuple[str, ...] = ()
    recipe: str = "night"  # the one of settings.RECIPES that `distill` takes by default
    published_results: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # metric: (teacher, student), on PUBLISHED_ON
    member: str = "full"  # of the teacher's family of students; see members.py
    # Fields of the config of members, by their names, where the rule of members.py was measured not to be the best.
    own_members: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def teacher_name(self) -> str:
        """The name of the row's teacher, which is that of its full student."""
        return self.name if self.member == "full" else self.name.removesuffix(f"-{self.member}")

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
    """Return a published student's config, in the published key names; the last two stages are depthwise-separable."""
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
