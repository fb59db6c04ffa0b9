"""Noise of several kinds, (T, H, W, 3) uint8, or (1, H, W, 3) if it stands still."""

import random
from statistics import NormalDist

import numpy as np

from turbovaed_cli.video.drawn.figures import ground

# What a random byte stands for: a value of Gaussian noise of variance 1.
_GAUSSIAN = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])


def noise(rng: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Draw noise over a colour or a gradient: grain, even noise, lone dots or clouds; fine or coarse, grey or coloured."""
    below = ground(rng, height, width)
    count = frames if frames > 1 and rng.random() < 0.6 else 1
    channels = rng.choice((1, 3))
    kind = rng.choice(("grain", "grain", "even", "dots", "clouds"))
    cell = rng.choice((1, 1, 1, 2, 3, 4, 8))
    if kind == "clouds":
        return _lit(below, _clouds(rng, height, width, channels))[None]
    small = (-(-height // cell), -(-width // cell), channels)
    strength = rng.choice((rng.uniform(2, 16), rng.uniform(16, 100)))
    clip = []
    for _ in range(count):
        random_bytes = np.frombuffer(rng.randbytes(int(np.prod(small))), np.uint8).reshape(small)
        coarse = random_bytes.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
        if kind == "dots":
            share = max(round(strength / 4), 1)
            clip.append(np.where(coarse < share, 0, np.where(coarse >= 256 - share, 255, below)).astype(np.uint8))
        else:
            table = _GAUSSIAN * strength if kind == "grain" else (np.arange(256) / 127.5 - 1) * 1.7 * strength
            clip.append(_lit(below, np.rint(table).astype(np.int16)[coarse]))
    return np.stack(clip)


def _clouds(rng: random.Random, height: int, width: int, channels: int) -> np.ndarray:
    """Return noise that is stronger the coarser it is, (H, W, channels) int16: a sum of octaves, each from a small grid."""
    total = np.zeros((height, width, channels), np.float32)
    for octave in range(1, 6):
        grid = 2**octave + 1
        values = np.frombuffer(rng.randbytes(grid * grid * channels), np.uint8).reshape(grid, grid, channels)
        total += _enlarged(values.astype(np.float32) - 127.5, height, width) / octave
    return np.rint(total * rng.uniform(0.3, 1.2)).astype(np.int16)


def _enlarged(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarge a grid (h, w, C) to (H, W, C) by straight lines between its values."""
    for axis, side in ((0, height), (1, width)):
        place = np.linspace(0, grid.shape[axis] - 1, side, dtype=np.float32)
        first = np.minimum(place.astype(np.int64), grid.shape[axis] - 2)
        share = (place - first).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        grid = grid.take(first, axis) * (1 - share) + grid.take(first + 1, axis) * share
    return grid


def _lit(below: np.ndarray, change: np.ndarray) -> np.ndarray:
    return np.clip(below + change.astype(np.int16), 0, 255).astype(np.uint8)
