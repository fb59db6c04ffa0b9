"""The patterns of the test card, and the clip that each is for a teacher: its frames and its size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from turbovaed_cli.evaluation.testcard import moving, stills
from turbovaed_cli.registry.specs import TeacherSpec

CHECKERS = (1, 2, 4, 8, 16, 32)  # pixels of a square: every step of the lattices that decoders upsample by
STILL_FRAMES = 3  # of what stands still, or the next larger count that the teacher takes
SMALL_SIDE = 128  # pixels at most of what a small picture shows as well
BLUE = (32, 64, 192)


@dataclass(frozen=True)
class Pattern:
    """One pattern of the card."""

    name: str  # in JSON
    label: str  # that people read
    draw: Callable[[int, int, int], np.ndarray]  # (frames, height, width) to (T, H, W, 3) uint8
    is_small: bool = False  # a small picture shows all of it
    changes: bool = False  # from frame to frame, by its own content
    is_long: bool = False  # shown for all frames, not only for STILL_FRAMES
    colour: tuple[int, int, int] | None = None  # of a flat one


@dataclass(frozen=True)
class PatternClip:
    """A pattern as a clip for one teacher."""

    pattern: Pattern
    frames: int
    size: tuple[int, int]  # (height, width)

    def draw(self) -> np.ndarray:
        """Draw the clip: (T, H, W, 3) uint8, the same on every call."""
        return self.pattern.draw(self.frames, *self.size)


def patterns_for(teacher: TeacherSpec, frames: int, size: tuple[int, int]) -> list[PatternClip]:
    """Return the clips of the card for a teacher; none has more than `frames` frames or is larger than `size`, (height, width).

    A teacher of images gets one frame, and nothing that moves. Raises FrameCountError or ShapeError for frames or a size that
    the teacher would silently change.
    """
    teacher.check_frames(frames)
    teacher.check_size(*size)
    frames = 1 if teacher.family.is_of_images else frames
    small = (_side(size[0], teacher.space_ratio), _side(size[1], teacher.space_ratio))
    short = min(teacher.frames.at_least(STILL_FRAMES), frames)
    return [
        PatternClip(pattern, frames if pattern.is_long else short, small if pattern.is_small else size)
        for pattern in PATTERNS
        if frames > 1 or not pattern.changes
    ]


def _side(side: int, ratio: int) -> int:
    return min(side, max(SMALL_SIDE // ratio, 1) * ratio)


def _still(name: str, label: str, picture: Callable[[int, int], np.ndarray], *, is_small: bool = False) -> Pattern:
    return Pattern(name, label, partial(_repeated, picture), is_small=is_small)


def _repeated(picture: Callable[[int, int], np.ndarray], frames: int, height: int, width: int) -> np.ndarray:
    return np.repeat(picture(height, width)[None], frames, axis=0)


def _flat(colour: tuple[int, int, int]) -> Pattern:
    name = "".join(f"{level:02x}" for level in colour)
    draw = partial(_repeated, partial(stills.flat, colour=colour))
    return Pattern(f"flat_{name}", f"flat #{name}", draw, is_small=True, colour=colour)


def _flat_colours() -> list[tuple[int, int, int]]:
    """Return the corners of the RGB cube, the middles of its edges, its centre, and a blue inside."""
    levels = (0, 128, 255)
    points = [(r, g, b) for r, g, b in product(levels, levels, levels) if (r, g, b).count(128) in (0, 1, 3)]
    return [*sorted(points, key=lambda point: point.count(128)), BLUE]


PATTERNS: tuple[Pattern, ...] = (
    *map(_flat, _flat_colours()),
    _still("bars_100", "bars 100 %", partial(stills.bars, level=255)),
    _still("bars_75", "bars 75 %", partial(stills.bars, level=191)),
    _still("ramps", "ramps", stills.ramps),
    _still("radial", "radial gradient", stills.radial),
    _still("zone_plate", "zone plate", stills.zone_plate),
    *(_still(f"checkers_{n}", f"checkers {n} px", partial(stills.checkers, cell=n), is_small=True) for n in CHECKERS),
    _still("text", "text", stills.text),
    _still("lines", "thin lines", stills.lines),
    Pattern("still", "still picture", partial(_repeated, stills.scene), is_long=True),
    Pattern("cuts", "hard cuts", moving.cuts, changes=True, is_long=True),
    Pattern("edges", "moving edges", moving.edges, is_small=True, changes=True, is_long=True),
    Pattern("grain", "film grain", moving.grain, is_small=True, is_long=True),
)
