"""Random colours, and palettes: what a value between 0 and 1 looks like."""

import random

import numpy as np

Colour = tuple[int, int, int]
LEVELS = 256  # of a palette
_PLAIN = frozenset((0, 128, 255))  # levels of which the flat colours of the test card are made
_NEAR = 10  # levels that a colour near a corner or an edge of the cube is from it, on average


def any_colour(rng: random.Random) -> Colour:
    """Draw a colour of the RGB cube: often a corner, an edge or a place near one, which uniform draws hardly ever reach."""
    where = rng.random()
    if where < 0.35:
        return (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    if where < 0.45:
        grey = rng.randrange(256)
        return (grey, grey, grey)
    corner = [rng.choice((0, 255)) for _ in range(3)]
    if where < 0.75:  # on an edge: one channel is free
        corner[rng.randrange(3)] = rng.randrange(256)
    if rng.random() < 0.5:
        corner = [min(max(level + round(rng.gauss(0, _NEAR)), 0), 255) for level in corner]
    return (corner[0], corner[1], corner[2])


def flat_colour(rng: random.Random) -> Colour:
    """Draw a colour as `any_colour` does, for a whole frame: never one that the test card shows, which has to stay unseen."""
    while True:
        colour = any_colour(rng)
        if not _PLAIN.issuperset(colour) and colour != (32, 64, 192):
            return colour


def saturated(rng: random.Random) -> Colour:
    """Draw a colour of which one channel is low and another one high."""
    levels = [
        rng.choice((0, rng.randrange(48))),
        rng.choice((255, rng.randrange(208, 256))),
        rng.choice((0, 255, rng.randrange(256))),
    ]
    rng.shuffle(levels)
    return (levels[0], levels[1], levels[2])


def smooth_palette(rng: random.Random) -> np.ndarray:
    """Draw a palette (LEVELS, 3) uint8 that blends two to four colours; some are close to each other."""
    stops = [any_colour(rng) for _ in range(rng.choice((2, 2, 2, 3, 4)))]
    if rng.random() < 0.25:  # a slow ramp, as of a sky or a wall
        stops = [stops[0], _near(rng, stops[0])]
    places = np.linspace(0, 1, len(stops))
    columns = [np.interp(np.linspace(0, 1, LEVELS), places, [stop[channel] for stop in stops]) for channel in range(3)]
    return np.rint(np.stack(columns, axis=1)).astype(np.uint8)


def stepped_palette(rng: random.Random, count: int) -> np.ndarray:
    """Draw a palette (LEVELS, 3) uint8 of `count` colours with hard steps between them."""
    pick = rng.choice((saturated, saturated, any_colour))
    colours = np.array([pick(rng) for _ in range(count)], np.uint8)
    return colours[np.arange(LEVELS) * count // LEVELS]


def two_colours(rng: random.Random) -> np.ndarray:
    """Draw a palette (LEVELS, 3) uint8 from one colour to another: black and white, or any."""
    ends: tuple[Colour, Colour] = (any_colour(rng), any_colour(rng))
    if rng.random() < 0.3:
        dark, light = rng.randrange(96), rng.randrange(160, 256)
        ends = ((dark, dark, dark), (light, light, light))
    first, last = np.array(ends, np.float64)
    return np.rint(np.linspace(first, last, LEVELS)).astype(np.uint8)


def _near(rng: random.Random, colour: Colour) -> Colour:
    levels = [min(max(level + rng.randrange(-40, 41), 0), 255) for level in colour]
    return (levels[0], levels[1], levels[2])
