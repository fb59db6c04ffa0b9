"""The kinds of drawn clips, and the draw of one from a text."""

import random
from collections.abc import Callable

import numpy as np

from turbovaed_cli.video.drawn import fields, figures
from turbovaed_cli.video.drawn.colours import any_colour
from turbovaed_cli.video.drawn.noise import noise

VERSION = 1  # goes up when the same text draws other pixels
Kind = Callable[[random.Random, int, int, int], np.ndarray]  # generator, frames, height, width to (T or 1, H, W, 3) uint8

# What a clip or a part of one shows, and how often, in relation to each other.
_SIMPLE: dict[str, tuple[Kind, int]] = {
    "flat": (fields.flat, 20),
    "ramp": (fields.ramp, 14),
    "bars": (fields.bars, 8),
    "mosaic": (figures.mosaic, 8),
    "shapes": (figures.shapes, 12),
    "lines": (figures.lines, 6),
    "checkers": (fields.checkers, 7),
    "grating": (fields.grating, 6),
    "zone plate": (fields.zone_plate, 3),
    "text": (figures.text, 8),
    "noise": (noise, 6),
}


def borders(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw a simple clip between bars, above and below or on both sides, mostly black."""
    return with_borders(rng, _simple(rng, frames, height, width))


def cut(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw two simple clips, one after the other: with a hard cut, or a fade over some frames or all."""
    first, second = (_whole(_simple(rng, frames, height, width), frames) for _ in range(2))
    length = rng.choice((0, 0, rng.randrange(2, 9), frames))
    middle = rng.uniform(0, frames)
    share = np.clip((np.arange(frames) + 0.5 - middle) / max(length, 1e-3) + 0.5, 0, 1) * 255
    return figures.blend(first, second, np.rint(share).astype(np.uint8)[:, None, None])


def window(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw a simple clip in a part of another one."""
    return with_part(rng, _simple(rng, frames, height, width), frames)


_WEIGHTS: dict[str, tuple[Kind, int]] = {**_SIMPLE, "borders": (borders, 3), "cut": (cut, 5), "window": (window, 4)}
KINDS = tuple(_WEIGHTS)


def kind_of(text: str) -> str:
    """Return the kind of the clip that `text` draws, one of KINDS."""
    return _pick(random.Random(f"drawn/{VERSION}/{text}"), _WEIGHTS)


def draw_clip(text: str, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Draw one clip (T, H, W, 3) uint8 of `frames` frames of `size` (height, width), a function of its arguments alone.

    All parameters are random: no clip shows a picture of the test card on which students are measured.
    """
    rng = random.Random(f"drawn/{VERSION}/{text}")
    draw, _ = _WEIGHTS[_pick(rng, _WEIGHTS)]
    return _whole(draw(rng, frames, *size), frames)


def with_borders(rng: random.Random, clip: np.ndarray) -> np.ndarray:
    """Return a clip (T, H, W, 3) uint8 with bars of one colour above and below it, or on both sides."""
    clip = clip.copy()
    colour = np.array((0, 0, 0) if rng.random() < 0.7 else any_colour(rng), np.uint8)
    axis = rng.choice((1, 1, 2))
    side = clip.shape[axis]
    for which in (slice(0, round(side * rng.uniform(0.03, 0.3))), slice(side - round(side * rng.uniform(0.03, 0.3)), side)):
        clip[(slice(None),) * axis + (which,)] = colour
    return clip


def with_part(rng: random.Random, clip: np.ndarray, frames: int) -> np.ndarray:
    """Return a clip (T or 1, H, W, 3) uint8 with a simple one of `frames` frames, or letters, in a part of it."""
    height, width = clip.shape[1:3]
    if rng.random() < 0.3:
        return figures.blend(clip, np.array(any_colour(rng), np.uint8), figures.letters(rng, height, width))
    clip = _whole(clip, frames).copy()
    tall, wide = (max(round(side * rng.uniform(0.15, 0.6)), 8) for side in (height, width))
    top, left = rng.randrange(max(height - tall, 0) + 1), rng.randrange(max(width - wide, 0) + 1)
    part = clip[:, top : top + tall, left : left + wide]
    part[...] = _simple(rng, frames, *part.shape[1:3])
    return clip


def _simple(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    return _SIMPLE[_pick(rng, _SIMPLE)][0](rng, frames, height, width)


def _whole(clip: np.ndarray, frames: int) -> np.ndarray:
    """Return a clip with all its frames, also if it stands still and has one."""
    return clip if len(clip) == frames else np.repeat(clip, frames, axis=0)


def _pick(rng: random.Random, kinds: dict[str, tuple[Kind, int]]) -> str:
    return rng.choices(list(kinds), [weight for _, weight in kinds.values()])[0]
