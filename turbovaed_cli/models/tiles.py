"""Encode frames in overlapping tiles, so that the encoder's memory does not grow with the frame.

Neighbouring tiles share a strip and fade into each other there. This is exact for an encoder of finite reach whose strips are
wide enough (`Family.reach`). It is an approximation for attention and for norms over the frame, which then see a tile only;
docs/measurements.md has the measured errors.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 64  # pixels that neighbouring tiles share at least, if their reach is not known
SMALLEST_TILE = 256  # pixels a side: smaller tiles are not tried


@dataclass(frozen=True)
class Tiles:
    """Tiles of `height` x `width` pixels that share at least `overlap` pixels with the next; `reach` is that of an exact encoder.

    Pixels within `reach` of a cut are left out; without a reach the whole strip fades. All are multiples of the teacher's ratio.
    With `windows`, a long video is encoded in windows even if the teacher could do so exactly, and tiles keep nothing between them.
    """

    height: int
    width: int
    overlap: int = OVERLAP
    reach: int = 0
    windows: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    def __str__(self) -> str:
        """Return the tiles as text: '384x320' (width x height)."""
        return f"{self.width}x{self.height}"

    def count(self, size: Sequence[int]) -> int:
        """Return the number of tiles in a frame of `size` (H, W)."""
        return math.prod(
            len(starts_of(side, tile, self.overlap, 1)) for side, tile in zip(size, (self.height, self.width), strict=True)
        )


def tilings(size: tuple[int, int], ratio: int, reach: int | None) -> list[Tiles]:
    """Return the tilings of frames of `size` (H, W) from the largest tiles to the smallest; none for a frame that is too small.

    Sides are multiples of `ratio`. `reach` is that of the encoder in pixels; None: it sees the whole frame.
    """
    reach = None if reach is None else _up(reach, ratio)
    overlap = _up(OVERLAP, ratio) if reach is None else 2 * reach
    least = _up(max(SMALLEST_TILE, overlap + ratio), ratio)
    counts, found, last = [1, 1], [], size
    while True:
        sides = [min(_up((side + (n - 1) * overlap) / n, ratio), side) for side, n in zip(size, counts, strict=True)]
        if max(counts) > 1 and tuple(sides) != last:
            found.append(Tiles(sides[0], sides[1], overlap, reach or 0))
            last = (sides[0], sides[1])
        longest = max(range(2), key=lambda axis: sides[axis])
        if sides[longest] <= least:
            return found
        counts[longest] += 1


def _up(value: float, step: int) -> int:
    return math.ceil(value / step) * step


def starts_of(length: int, tile: int, overlap: int, ratio: int) -> list[int]:
    """Return where the tiles of one axis begin: evenly spread multiples of `ratio`, of which neighbours share `overlap`."""
    if tile >= length:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [i * ((length - tile) // ratio) // (count - 1) * ratio for i in range(count)]


def weights_of(length: int, tile: int, starts: Sequence[int], overlap: int, reach: int) -> Tensor:
    """Return the share of each tile in each place of one axis, (tiles, length); shares of a place add up to 1.

    All numbers are in latents.
    """
    place = torch.arange(length, dtype=torch.float64) + 0.5
    shares = []
    for start in starts:
        share = ((place > start) & (place < start + tile)).double()
        for cut, distance in ((start > 0, place - start), (start + tile < length, start + tile - place)):
            if cut:
                share *= (distance > reach).double() if reach else (distance / overlap).clamp(0, 1)
        shares.append(share)
    stacked = torch.stack(shares)
    return stacked / stacked.sum(dim=0)


def in_tiles(
    tiles: Tiles, ratio: int, video: Tensor, encoders: Iterator[Callable[[Tensor], tuple[Tensor, ...]]]
) -> tuple[Tensor, ...]:
    """Encode a video (B, 3, T, H, W) tile by tile and return the joined results, each (B, C, t, h, w).

    `encoders` yields the function for each tile, from the top left by rows; each returns as many tensors of the tile's latents.
    """
    tile, size = (min(tiles.height, video.shape[3]), min(tiles.width, video.shape[4])), video.shape[3:]
    axes = [starts_of(size[axis], tile[axis], tiles.overlap, ratio) for axis in range(2)]
    shares = [
        weights_of(size[axis] // ratio, tile[axis] // ratio, [s // ratio for s in axes[axis]], tiles.overlap // ratio, tiles.reach // ratio)
        for axis in range(2)
    ]  # fmt: skip
    joined: tuple[Tensor, ...] = ()
    for row, top in enumerate(axes[0]):
        for column, left in enumerate(axes[1]):
            made = next(encoders)(video[..., top : top + tile[0], left : left + tile[1]])
            places = slice(top // ratio, (top + tile[0]) // ratio), slice(left // ratio, (left + tile[1]) // ratio)
            share = torch.outer(shares[0][row, places[0]], shares[1][column, places[1]]).to(made[0])
            if not joined:
                joined = tuple(part.new_zeros(*part.shape[:3], size[0] // ratio, size[1] // ratio) for part in made)
            for whole, part in zip(joined, made, strict=True):
                whole[..., places[0], places[1]] += part * share
    return joined
