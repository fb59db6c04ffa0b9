"""Clips of the test card that change from frame to frame: each function draws (T, H, W, 3) uint8."""

import numpy as np

from turbovaed_cli.evaluation.testcard.stills import bars, checkers, noise, radial, rounded, scene

SPEEDS = (0.25, 0.5, 0.75, 1.5)  # pixels a frame, of the bands of `edges`
GRAIN_LEVELS = 8  # standard deviation of the film grain, in levels of 255
NUM_SCENES = 4  # of `cuts`
_BANDS = (
    ((28, 30, 36), (230, 230, 225)),
    ((30, 60, 160), (240, 200, 60)),
    ((200, 50, 40), (40, 160, 90)),
    ((90, 90, 96), (20, 20, 24)),
)


def cuts(frames: int, height: int, width: int) -> np.ndarray:
    """Draw four pictures one after the other, with hard cuts: at any frame, not at those where a latent frame begins."""
    scenes = (
        scene(height, width), bars(height, width, 191), checkers(height, width, 16), radial(height, width),
    )  # fmt: skip
    return np.stack([scenes[number] for number in scene_of_frame(frames)])


def scene_of_frame(frames: int) -> list[int]:
    """Return which picture of `cuts` each frame shows."""
    return [index * NUM_SCENES // frames for index in range(frames)]


def edges(frames: int, height: int, width: int) -> np.ndarray:
    """Draw four bands, in each a bar that moves to the right at one of SPEEDS; its edges are exact between pixels.

    A pixel that an edge crosses has the mean of both colours, by the share of the pixel that each covers.
    """
    clip = np.empty((frames, height, width, 3), np.uint8)
    bounds = [height * number // len(SPEEDS) for number in range(len(SPEEDS) + 1)]
    for number, (speed, (ground, bar)) in enumerate(zip(SPEEDS, _BANDS, strict=True)):
        for index in range(frames):
            left = width / 4 + speed * index
            share = covered(width, left, left + width / 4)[:, None]
            row = rounded(np.array(ground) * (1 - share) + np.array(bar) * share)
            clip[index, bounds[number] : bounds[number + 1]] = row
    return clip


def covered(width: int, left: float, right: float) -> np.ndarray:
    """Return the share (W,) of each pixel that lies between `left` and `right`, in pixels."""
    pixels = np.arange(width)
    return np.clip(np.minimum(pixels + 1, right) - np.maximum(pixels, left), 0, 1)


def grain(frames: int, height: int, width: int) -> np.ndarray:
    """Draw a radial gradient with the grain of film: grey noise of GRAIN_LEVELS, another one in every frame."""
    picture = radial(height, width).astype(np.float64)
    return np.stack([rounded(picture + GRAIN_LEVELS * noise(seed, (height, width))[..., None]) for seed in range(frames)])
