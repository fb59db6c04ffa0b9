"""Clips of figures with hard or smooth edges: shapes, lines, mosaics and letters.

Each function draws (T, H, W, 3) uint8, or (1, H, W, 3) for a clip that stands still, from a random generator.
"""

import math
import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from turbovaed_cli.video.drawn.colours import Colour, any_colour, saturated, smooth_palette

Pen = ImageDraw.ImageDraw
Figure = Callable[
    [Pen, float, float, float], None
]  # pen, place across and down, in pixels of a frame, and pixels to each of them
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?()[]{}<>+-*/=%&#@$'\""
_STILL = 0.4  # share of the clips that stand still


def shapes(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw one to twelve rectangles, discs and polygons of random colours, each of which moves its own way."""
    figures = []
    for _ in range(rng.choice((1, 2, 3, 5, 8, 12))):
        size = min(height, width) * rng.uniform(0.05, 0.45)
        place = (rng.uniform(0, width), rng.uniform(0, height))
        figures.append((_shape(rng, size), place, _velocity(rng)))
    return _filmed(rng, frames, height, width, figures)


def lines(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw thin lines of 1 to 4 pixels: rows of parallel ones, a fan, or any."""
    colours = [any_colour(rng) for _ in range(rng.choice((1, 1, 3)))]
    thickness, way = rng.choice((1, 1, 2, rng.randrange(1, 5))), rng.random()
    count, step = rng.randrange(4, 40), rng.choice((rng.randrange(2, 17), rng.uniform(2, 17)))
    reach = 2 * max(height, width)
    angle = rng.choice((0.0, math.pi / 2, rng.uniform(0, math.pi)))
    ends = []
    for number in range(count):
        if way < 0.4:  # parallel
            off = (number - count / 2) * step
            middle = (-math.sin(angle) * off, math.cos(angle) * off)
            along = (math.cos(angle) * reach, math.sin(angle) * reach)
            ends.append((middle[0] - along[0], middle[1] - along[1], middle[0] + along[0], middle[1] + along[1]))
        elif way < 0.7:  # a fan
            turn = angle + math.pi * number / count
            ends.append((0.0, 0.0, math.cos(turn) * reach, math.sin(turn) * reach))
        else:
            x0, y0, x1, y1 = (rng.uniform(-0.5, 0.5) * side for side in (width, height, width, height))
            ends.append((x0, y0, x1, y1))

    def draw(pen: Pen, x: float, y: float, scale: float) -> None:
        for number, (x0, y0, x1, y1) in enumerate(ends):
            where = [(x + x0) * scale, (y + y0) * scale, (x + x1) * scale, (y + y1) * scale]
            pen.line(where, fill=colours[number % len(colours)], width=round(thickness * scale))

    return _filmed(rng, frames, height, width, [(draw, (width / 2, height / 2), _velocity(rng))])


def mosaic(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw a frame that is divided into patches of random colours, as a colour chart is; it may slide."""
    rows, columns = (max(min(rng.choice((2, 4, 8, 16)), side // 4), 1) for side in (height, width))
    pick = rng.choice((any_colour, any_colour, saturated))
    colours = np.array([pick(rng) for _ in range(rows * columns)], np.uint8).reshape(rows, columns, 3)
    down, across = (
        np.searchsorted(sorted(rng.randrange(1, side) for _ in range(count - 1)), np.arange(side), side="right")
        if rng.random() < 0.5
        else np.arange(side) * count // side
        for side, count in ((height, rows), (width, columns))
    )
    picture = colours[down][:, across]
    steps = _steps(rng, frames)
    return np.stack([np.roll(picture, step, axis=(0, 1)) for step in steps])


def text(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw lines of random letters, or of random small bitmaps as glyphs, in sizes of 7 to 40 pixels; it may scroll."""
    picture = ground(rng, height, width)
    mask = letters(rng, height, width)
    inks = [any_colour(rng) for _ in range(rng.choice((1, 1, 2, 4)))]
    bands = np.array(inks, np.uint8)[np.arange(height) * len(inks) // height][:, None]
    steps = _steps(rng, frames)
    return np.stack([blend(picture, bands, np.roll(mask, step, axis=(0, 1))) for step in steps])


def letters(rng: random.Random, height: int, width: int) -> np.ndarray:
    """Draw lines of letters or glyphs: the share of ink in every pixel, (H, W) uint8 from 0 to 255."""
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    size = rng.choice((rng.randrange(7, 16), rng.randrange(10, 41)))
    are_glyphs, top = rng.random() < 0.3, rng.randrange(-size, size)
    if rng.random() < 0.5:
        pen.fontmode = "1"  # no smooth edges
    while top < height:
        if rng.random() < 0.85:
            left = rng.choice((2, rng.randrange(width)))
            if are_glyphs:
                _glyphs(rng, mask, left, top, size)
            else:
                words = "".join(rng.choice((*_LETTERS, " ", " ", " ", " ")) for _ in range(2 * width // size + 1))
                pen.text((left, top), words, fill=255, font=_font(size))
        top += size + rng.randrange(2, 6)
    return np.asarray(mask)


def ground(rng: random.Random, height: int, width: int) -> np.ndarray:
    """Draw what is below figures, (H, W, 3) uint8: one colour, or a gradient."""
    if rng.random() < 0.7:
        return np.broadcast_to(np.array(any_colour(rng), np.uint8), (height, width, 3))
    palette = smooth_palette(rng)
    x, y = rng.uniform(-1, 1), rng.uniform(-1, 1)
    value = x * np.linspace(-0.5, 0.5, width) + y * np.linspace(-0.5, 0.5, height)[:, None]
    return palette[np.rint((value / max(abs(x) + abs(y), 0.01) + 0.5) * (len(palette) - 1)).astype(np.uint8)]


def blend(below: np.ndarray, above: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lay `above` over `below`, (..., H, W, 3) uint8 each, where `mask` (H, W) uint8 is not 0, by its share of 255."""
    share = mask[..., None].astype(np.uint16)
    return ((below * (255 - share) + above * share + 127) // 255).astype(np.uint8)


def _filmed(
    rng: random.Random,
    frames: int,
    height: int,
    width: int,
    figures: list[tuple[Figure, tuple[float, float], tuple[float, float]]],
) -> np.ndarray:
    """Draw figures frame by frame, each at its place plus its velocity in pixels a frame; half of the clips have smooth edges."""
    scale = rng.choice((1, 2))
    below = ground(rng, height, width)
    canvas = Image.fromarray(np.ascontiguousarray(below.repeat(scale, axis=0).repeat(scale, axis=1)))
    clip = []
    for frame in range(frames if frames > 1 and rng.random() >= _STILL else 1):
        picture = canvas.copy()
        pen = ImageDraw.Draw(picture)
        for draw, (x, y), (across, down) in figures:
            draw(pen, x + across * frame, y + down * frame, scale)
        clip.append(np.asarray(picture.reduce(scale) if scale > 1 else picture))
    return np.stack(clip)


def _shape(rng: random.Random, size: float) -> Figure:
    """Draw up a rectangle, a disc, a ring or a polygon of about `size` pixels, to be drawn around a place."""
    colour = rng.choice((any_colour, saturated))(rng)
    kind, flatness = rng.random(), rng.uniform(0.3, 1)
    outline = rng.randrange(1, 9) if rng.random() < 0.2 else 0
    corners = rng.randrange(3, 9)
    angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(corners))
    points = [(math.cos(angle) * size * rng.uniform(0.4, 1), math.sin(angle) * size * rng.uniform(0.4, 1)) for angle in angles]

    def draw(pen: Pen, x: float, y: float, scale: float) -> None:
        box = [(x - size) * scale, (y - size * flatness) * scale, (x + size) * scale, (y + size * flatness) * scale]
        fill: dict[str, Colour | int] = {"outline": colour, "width": round(outline * scale)} if outline else {"fill": colour}
        if kind < 0.35:
            pen.rectangle(box, **fill)  # type: ignore[arg-type]
        elif kind < 0.7:
            pen.ellipse(box, **fill)  # type: ignore[arg-type]
        else:
            pen.polygon([((x + across) * scale, (y + down) * scale) for across, down in points], fill=colour)

    return draw


def _velocity(rng: random.Random) -> tuple[float, float]:
    """Draw a velocity in pixels a frame, across and down: mostly slow, sometimes fast, sometimes none."""
    most = rng.choice((0.0, 1.5, 4.0, 12.0))
    return rng.uniform(-most, most), rng.uniform(-most, most)


def _steps(rng: random.Random, frames: int) -> list[tuple[int, int]]:
    """Draw the places of a picture that slides by whole pixels, (down, across) for every frame; one if it stands still."""
    if frames == 1 or rng.random() < _STILL:
        return [(0, 0)]
    down, across = (rng.choice((0.0, rng.uniform(-2, 2), rng.uniform(-9, 9))) for _ in range(2))
    return [(round(down * frame), round(across * frame)) for frame in range(frames)]


def _glyphs(rng: random.Random, mask: Image.Image, left: int, top: int, size: int) -> None:
    """Write a line of random bitmaps of 5 by 7 cells, as tall as `size`, into a mask."""
    cell = max(size // 7, 1)
    while left < mask.width:
        bits = Image.frombytes("1", (5, 7), rng.randbytes(7))
        mask.paste(bits.resize((5 * cell, 7 * cell)), (left, top))
        left += 6 * cell


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
