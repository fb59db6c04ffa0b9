"""The error that repeats at the lattice of upsampling, as small drawings: `grid` of a clip, for people to see.

Each is the mean error over the frames and over all tiles of a picture, in colour, with more contrast: grey is no error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from turbovaed_cli.metrics.grid import MIN_SIDE, grid_of, lattice_of

REGION = 32  # pixels a side that are drawn: the largest lattice
_LEAST_SCALE = 4  # levels that reach full contrast, at least: rounding alone shall look grey


@dataclass(frozen=True)
class Cell:
    """Pixels of one colour next to each other in a row of a tile."""

    x: int
    y: int
    width: int
    colour: str  # "#rrggbb"


@dataclass(frozen=True)
class GridTile:
    """The drawing of one decoder's grid: a tile, and where it is repeated."""

    key: str  # of the decoder
    period: int  # pixels a side
    cells: Sequence[Cell]
    places: Sequence[tuple[int, int]]  # (x, y) of each repetition in the region
    score: float | None  # `grid` of the clip, in levels of 255; None if it was not measured


def grid_tile(video: np.ndarray, source: np.ndarray, period: int = 0) -> np.ndarray | None:
    """Return the repeating error of a clip, (P, P, 3) in levels of 255: the mean over frames and tiles, with mean 0.

    Both clips (T, H, W, 3) uint8. `period` is P, at most `lattice_of`; 0 takes that. None for frames too small for a lattice.
    """
    if min(video.shape[1:3]) < MIN_SIDE:
        return None
    mean, reference = (
        torch.from_numpy(clip.mean(axis=0)).permute(2, 0, 1)[:, None] / 127.5 - 1 for clip in (video, source)
    )  # (3, 1, H, W)
    largest = lattice_of(reference)
    tile: np.ndarray = grid_of(mean, reference, min(period, largest) or largest)[:, 0].permute(1, 2, 0).numpy()
    return tile


def drawn_tiles(
    clips: Sequence[Mapping[str, np.ndarray]], scores: Sequence[Mapping[str, Mapping[str, float]]], period: int = 0
) -> tuple[list[list[GridTile]], float]:
    """Return the drawings of each clip, and the level at which their contrast is full, the same for a page.

    A clip is pictures (T, H, W, 3) uint8 by key, the reference first; `scores` has the scores of each by the same keys.
    """
    tiles = [_tiles_of(pictures, period) for pictures in clips]
    largest = max((float(np.abs(tile).max()) for found in tiles for tile in found.values()), default=0.0)
    scale = max(float(np.ceil(largest)), _LEAST_SCALE)
    return [
        [_drawn(key, tile, scale, of_clip.get(key, {}).get("grid")) for key, tile in found.items()]
        for found, of_clip in zip(tiles, scores, strict=True)
    ], scale


def _tiles_of(pictures: Mapping[str, np.ndarray], period: int) -> dict[str, np.ndarray]:
    (_, reference), *others = pictures.items()
    found = {key: grid_tile(video, reference, period) for key, video in others}
    return {key: tile for key, tile in found.items() if tile is not None}


def _drawn(key: str, tile: np.ndarray, scale: float, score: float | None) -> GridTile:
    period = len(tile)
    levels = np.clip(127.5 + tile / scale * 127.5, 0, 255).round().astype(int)
    colours = [["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in row] for row in levels]
    cells = []
    for y, row in enumerate(colours):
        starts = [x for x in range(period) if x == 0 or row[x] != row[x - 1]]
        cells += [Cell(x, y, end - x, row[x]) for x, end in zip(starts, [*starts[1:], period], strict=True)]
    steps = range(0, REGION, period)
    return GridTile(key, period, cells, [(x, y) for y in steps for x in steps], score)
