"""Other colours for a filmed clip: one random change, the same for all its frames."""

import math
import random

import numpy as np

from turbovaed_cli.video.drawn.clips import VERSION, with_borders, with_part

MOST_SATURATION = 2.5  # 1 leaves it, 0 gives grey
_LUMA = np.array((0.2126, 0.7152, 0.0722))
_WITH_PART = 0.2  # share of the clips that get a drawn part as well


def recoloured(text: str, clip: np.ndarray) -> np.ndarray:
    """Return a clip (T, H, W, 3) uint8 in other colours, which `text` determines; a fifth of them also get a drawn part.

    Each of exposure, contrast, gamma, gain and offset of a channel, inversion, saturation, hue and the order of the channels
    is changed in some clips.
    """
    rng = random.Random(f"recolour/{VERSION}/{text}")
    curves, mixing = _curves(rng), _mixing(rng)
    if np.allclose(mixing, np.round(mixing)):  # at most another order of channels
        order = np.abs(mixing).argmax(axis=1)
        tables = np.rint(np.clip(curves, 0, 1) * 255).astype(np.uint8)
        changed = np.stack([tables[channel][clip[..., channel]] for channel in order], axis=-1)
    else:
        parts = [(curves[channel] * 255).astype(np.float32)[clip[..., channel]] for channel in range(3)]
        rows = mixing.astype(np.float32)
        changed = np.empty_like(clip)
        for channel, row in enumerate(rows):
            mixed = parts[0] * row[0]
            mixed += parts[1] * row[1]
            mixed += parts[2] * row[2]
            mixed += 0.5
            changed[..., channel] = np.clip(mixed, 0, 255.4, out=mixed).astype(np.uint8)
    if rng.random() < _WITH_PART:
        changed = with_borders(rng, changed) if rng.random() < 0.25 else with_part(rng, changed, len(changed))
    return changed


def _curves(rng: random.Random) -> np.ndarray:
    """Draw what becomes of each level of each channel, (3, 256) in [0, 1]: gamma, contrast, exposure, gain, offset, inversion."""
    levels = np.linspace(0, 1, 256)
    if rng.random() < 0.5:
        levels = levels ** math.exp(rng.uniform(-0.7, 0.7))
    if rng.random() < 0.5:
        pivot = rng.uniform(0.3, 0.7)
        levels = (levels - pivot) * rng.choice((rng.uniform(0.2, 1), rng.uniform(1, 3))) + pivot
    if rng.random() < 0.5:
        levels = levels * math.exp(rng.uniform(-1.2, 0.8))
    curves = np.tile(levels, (3, 1))
    if rng.random() < 0.35:
        gains, offsets = ([rng.uniform(least, most) for _ in range(3)] for least, most in ((0.4, 1.6), (-0.25, 0.25)))
        curves = curves * np.array(gains)[:, None] + np.array(offsets)[:, None]
    curves = np.clip(curves, 0, 1)
    return 1 - curves if rng.random() < 0.15 else curves


def _mixing(rng: random.Random) -> np.ndarray:
    """Draw the matrix (3, 3) that mixes the channels: their order, saturation and hue; greys stay as they are."""
    matrix = np.eye(3)
    if rng.random() < 0.35:
        matrix = matrix[rng.sample(range(3), 3)]
    if rng.random() < 0.65:
        saturation = rng.choice((rng.uniform(0, 1), rng.uniform(1, MOST_SATURATION), rng.uniform(1, MOST_SATURATION)))
        matrix = (saturation * np.eye(3) + (1 - saturation) * _LUMA) @ matrix
    if rng.random() < 0.35:
        matrix = _hue(rng.uniform(-math.pi, math.pi)) @ matrix
    return matrix


def _hue(angle: float) -> np.ndarray:
    """Return the matrix (3, 3) that turns colours around the axis of greys."""
    axis = np.full(3, 1 / math.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * np.outer(axis, axis)
