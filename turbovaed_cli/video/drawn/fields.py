"""Clips that a formula gives: a value for each pixel, painted with a palette; the pattern may drift, turn and grow.

Each function draws (T, H, W, 3) uint8, or (1, H, W, 3) for a clip that stands still, from a random generator.
"""

import math
import random
from collections.abc import Callable, Iterator

import numpy as np

from turbovaed_cli.video.drawn.colours import LEVELS, flat_colour, smooth_palette, stepped_palette, two_colours

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]  # places across and down, in pixels from the middle, to values in [0, 1]
_STILL = 0.45  # share of the clips that stand still


def flat(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw one colour over the whole frame; some fade to another one, some change at once."""
    first, last = flat_colour(rng), flat_colour(rng)
    way = rng.random()
    if way < 0.6 or frames == 1:
        colours = np.array([first], np.float64)
    elif way < 0.85:
        colours = np.linspace(first, last, frames)
    else:
        colours = np.where(np.arange(frames)[:, None] < rng.randrange(1, frames), first, last)
    levels = np.rint(colours).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None], (len(levels), height, width, 3)).copy()


def ramp(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw a gradient: linear at any angle, round, or around a point."""
    length = math.hypot(height, width) * rng.choice((1.0, 1.0, rng.uniform(0.2, 1.5)))
    shape = rng.random()

    def linear(x: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.clip(x / length + 0.5, 0, 1)

    def around(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.minimum(np.hypot(x, y) / length * 2, 1)

    def turning(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.abs(np.arctan2(y, x)) / math.pi

    field: Field = linear if shape < 0.6 else around if shape < 0.85 else turning
    return _painted(rng, field, smooth_palette(rng), (frames, height, width), is_straight=rng.random() < 0.3)


def bars(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw two to twelve bars of saturated colours side by side, upright, level, or at an angle; they repeat as they move."""
    count = rng.randrange(2, 13)
    length = max(height, width) * rng.uniform(0.5, 1.2)

    def field(x: np.ndarray, _: np.ndarray) -> np.ndarray:
        return (x / length + 0.5) % 1.0

    return _painted(rng, field, stepped_palette(rng, count), (frames, height, width), is_straight=rng.random() < 0.7)


def checkers(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw a checkerboard of cells of 1 to 64 pixels, of whole pixels or of any size, in two colours."""
    across = 2 ** rng.uniform(0, 6)
    down = across if rng.random() < 0.7 else 2 ** rng.uniform(0, 6)
    is_straight = rng.random() < 0.7
    if is_straight and rng.random() < 0.7:
        across, down = float(round(across)), float(round(down))

    def field(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (np.floor(x / across) + np.floor(y / down)) % 2

    return _painted(rng, field, two_colours(rng), (frames, height, width), is_straight=is_straight)


def grating(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw waves of a period of 2 to 64 pixels at any angle: a sine, or one with steeper flanks up to hard stripes."""
    turns, steepness = 2 * math.pi / 2 ** rng.uniform(1, 6), rng.choice((0.5, 0.5, 1.5, 6.0, 50.0))
    phase = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.2:  # waves both ways
        other = 2 * math.pi / 2 ** rng.uniform(1, 6)

        def field(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.clip(0.5 + steepness / 2 * (np.sin(x * turns + phase) + np.sin(y * other)), 0, 1)
    else:

        def field(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.clip(0.5 + steepness * np.sin(x * turns + phase), 0, 1)

    return _painted(rng, field, two_colours(rng), (frames, height, width), is_straight=rng.random() < 0.3)


def zone_plate(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw rings whose frequency grows from a point to at most half a cycle a pixel, in two colours."""
    reach = min(height, width) / 2
    growth = math.pi / 2 / reach * rng.uniform(0.2, 1.0)
    squeeze, phase = rng.choice((1.0, rng.uniform(0.4, 1.0))), rng.uniform(0, 2 * math.pi)
    edge = (reach * rng.uniform(0.8, 1.0)) ** 2

    def field(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squares = x * x + squeeze * y * y
        return np.where(squares < edge, 0.5 + 0.5 * np.cos(squares * growth + phase), 0.5)

    return _painted(rng, field, two_colours(rng), (frames, height, width))


def _painted(
    rng: random.Random, field: Field, palette: np.ndarray, shape: tuple[int, int, int], *, is_straight: bool = False
) -> np.ndarray:
    """Paint a field with a palette (LEVELS, 3), frame by frame; `is_straight`: along the sides of the frame."""
    frames, height, width = shape
    moves = frames > 1 and rng.random() >= _STILL
    places = _places(rng, frames if moves else 1, height, width, is_straight=is_straight)
    return np.stack([palette[(field(x, y) * (LEVELS - 1) + 0.5).astype(np.uint8)] for x, y in places])


def _places(
    rng: random.Random, frames: int, height: int, width: int, *, is_straight: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each frame where its pixels are in the pattern, across and down (H, W) fp32, as the pattern moves."""
    angle = rng.randrange(4) * math.pi / 2 if is_straight else rng.uniform(0, 2 * math.pi)
    top, left = height / 2 + rng.randrange(height) / 2, width / 2 + rng.randrange(width) / 2
    if rng.random() < 0.5:  # in the middle
        top, left = height // 2, width // 2
    speed = 0.0 if rng.random() < 0.2 else rng.choice((rng.uniform(-2, 2), rng.uniform(-12, 12)))
    sideways = rng.choice((0.0, rng.uniform(-4, 4)))
    turn = rng.choice((0.0, 0.0, rng.uniform(-0.05, 0.05)))
    growth = rng.choice((1.0, 1.0, rng.uniform(0.97, 1.03)))
    y, x = np.arange(height, dtype=np.float32)[:, None] - np.float32(top), np.arange(width, dtype=np.float32) - np.float32(left)
    for frame in range(frames):
        scale, now = growth**frame, angle + turn * frame
        cosine, sine = np.float32(math.cos(now) * scale), np.float32(math.sin(now) * scale)
        # A quarter of a pixel off: cells of whole pixels have their edges between pixels, whatever the rounding.
        across = x * cosine + y * sine + np.float32(speed * frame + 0.25)
        yield across, y * cosine - x * sine + np.float32(sideways * frame + 0.25)
