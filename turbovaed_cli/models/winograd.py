"""Convolutions with fewer multiplications: minimal filters, and convolutions over frames in tiles of 4 x 4 pixels.

Three taps take m + 2 products for m outputs instead of 3m (Winograd's minimal filtering F(m, 3), by Toom and Cook's construction);
3 x 3 taps take 36 for 4 x 4 pixels instead of 144, and 5 x 5 taps 64 instead of 400.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv:1509.09308).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor

from turbovaed_cli.machine.threads import spread
from turbovaed_cli.models.scratch import Scratch

SIDE = 4  # pixels of a tile in space, along both sides
# The polynomials of F(m, r) are evaluated at m + r - 2 of these points, as many as there are, and at infinity.
_POINTS = {len(points): points for points in ((0, 1, -1), (0, 1, -1, 2), (0, 1, -1, 0.5, -0.5), (0, 1, -1, 0.5, -0.5, 2, -2))}
_TILES = 192  # of one product of matrices: fewer read the weights too often, more wait for memory
_OF_ALL_THREADS, _OF_EACH = 1024, 64  # tiles that are worked on at once, at most and at least
_OUTPUTS = 32  # channels of one product, at least
_FRAMES = 32  # of the tiles of one product: with several taps in time, the frames at its ends are transformed for two products


@dataclass(frozen=True)
class _Job:
    """Tiles that one thread takes through all steps: output frames `begin` to `end`, and `rows` x `columns` tiles from the first.

    Of the output channels it makes those of the slice `outputs`.
    """

    begin: int
    end: int
    row: int
    column: int
    rows: int
    columns: int
    outputs: slice

    @property
    def frames(self) -> int:
        return self.end - self.begin


class SpatialTiles:
    """A convolution over frames, without stride, in tiles of 4 x 4 pixels: F(4x4, 3x3) or F(4x4, 5x5), one for each tap in time.

    Each of torch's threads takes tiles of its own through all steps: values that another core made arrive slowly.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Transform the weight (O, C, taps, k, k) in fp64; `bias` is (O,)."""
        self.bias, self.taps, self.reach = bias, weight.shape[2], weight.shape[-1] - 1
        to_points, of_weights, from_points = (
            torch.tensor(rows, dtype=torch.float64, device=weight.device) for rows in minimal_filter(SIDE, self.reach + 1)
        )
        made = torch.einsum("ai,bj,octij->tabco", of_weights, of_weights, weight.double())
        self.weights = [tap.flatten(0, 1).to(weight.dtype).contiguous() for tap in made]  # (points, C, O) of each tap in time
        self.to_points, self.from_points = to_points.to(weight.dtype), from_points.to(weight.dtype)

    def __call__(self, x: Tensor, padding: tuple[int, int], scratch: Scratch) -> Tensor:
        """Convolve frames (n, H, W, C) of any strides to dense ones (n - taps + 1, H', W', O).

        `padding` is the number of rows and of columns of zeros at each side.
        """
        frames = x.shape[0] - self.taps + 1
        height, width = (size + 2 * pad - self.reach for size, pad in zip(x.shape[1:3], padding, strict=True))
        out = x.new_empty(frames, height, width, len(self.bias))
        jobs = list(_jobs(frames, -(-height // SIDE), -(-width // SIDE), len(self.bias), torch.get_num_threads()))
        workers = min(torch.get_num_threads(), len(jobs))
        sizes = [max(needed) for needed in zip(*(self._sizes(job, x.shape[3]) for job in jobs), strict=True)]
        memory = [
            [scratch.dense(f"space {i} {worker}", (size,), x.dtype, x.device) for i, size in enumerate(sizes)]
            for worker in range(workers)
        ]
        spread(lambda job, worker: self._work_on(job, x, padding, memory[worker], out), jobs, workers)
        return out

    def _sizes(self, job: _Job, channels: int) -> tuple[int, int, int]:
        """Return the elements of three blocks of memory that a job needs, which its steps read and write in turns."""
        side, tiles, frames = SIDE + self.reach, job.rows * job.columns, job.frames + self.taps - 1
        pixels = frames * (job.rows * SIDE + self.reach) * (job.columns * SIDE + self.reach) * channels
        gathered, made = frames * tiles * channels, job.frames * tiles * (job.outputs.stop - job.outputs.start)
        return (
            max(pixels, side**2 * made),
            max(side**2 * gathered, SIDE**2 * made),
            side * max(side * gathered, SIDE * made),
        )

    def _work_on(self, job: _Job, x: Tensor, padding: tuple[int, int], memory: Sequence[Tensor], out: Tensor) -> None:
        """Write the tiles of a job into `out`: to points, a product of matrices for each point and tap, and back."""
        side, tiles, frames, channels = SIDE + self.reach, job.rows * job.columns, job.frames + self.taps - 1, x.shape[3]
        blocks = [partial(_part, block) for block in memory]
        pixels = blocks[0]((frames, job.rows * SIDE + self.reach, job.columns * SIDE + self.reach, channels))
        _cut_out(x[job.begin :][:frames], (job.row * SIDE - padding[0], job.column * SIDE - padding[1]), pixels)
        image, row, column, _ = pixels.stride()
        shape = side, side, frames, job.rows, job.columns, channels
        blocks[1](shape).copy_(pixels.as_strided(shape, (row, column, image, row * SIDE, column * SIDE, 1)))
        at_points = _along_both(self.to_points, blocks[1]((side, side, frames * tiles * channels)), blocks[2], blocks[1])
        at_points = at_points.view(side**2, frames, tiles, channels)
        products = blocks[0]((side**2, job.frames * tiles, job.outputs.stop - job.outputs.start))
        for tap, weight in enumerate(self.weights):
            values, taken = at_points[:, tap : tap + job.frames].flatten(1, 2), weight[:, :, job.outputs]
            if tap == 0:
                torch.bmm(values, taken, out=products)
            else:
                products.baddbmm_(values, taken)
        products[side + 1] += self.bias[job.outputs]  # at (1, 1), which every pixel takes exactly once
        made = _along_both(self.from_points, products.view(side, side, -1), blocks[2], blocks[1])
        made = made.view(SIDE, SIDE, job.frames, job.rows, job.columns, -1).permute(2, 3, 0, 4, 1, 5)
        band = out[job.begin : job.end, job.row * SIDE : (job.row + job.rows) * SIDE]
        band = band[:, :, job.column * SIDE : (job.column + job.columns) * SIDE, job.outputs]
        height, width = band.shape[1:3]
        if (height, width) == (job.rows * SIDE, job.columns * SIDE):
            band.unflatten(2, (job.columns, SIDE)).unflatten(1, (job.rows, SIDE)).copy_(made)
        else:
            band.copy_(made.reshape(job.frames, job.rows * SIDE, job.columns * SIDE, -1)[:, :height, :width])


def _along_both(matrix: Tensor, x: Tensor, between: Callable[..., Tensor], out: Callable[..., Tensor]) -> Tensor:
    """Multiply `x` (s, s, X) by a matrix (m, s) along both sides, in memory that `between` and `out` give: (m, m, X)."""
    m, s = matrix.shape
    half = torch.mm(matrix, x.flatten(1), out=between((m, s * x.shape[2])))
    return torch.bmm(matrix.expand(m, m, s), half.view(m, s, -1), out=out((m, m, x.shape[2])))


def _part(block: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the first elements of a block as a tensor of `shape`."""
    return block[: math.prod(shape)].view(*shape)


def _jobs(frames: int, down: int, across: int, outputs: int, threads: int) -> Iterator[_Job]:
    """Divide `down` x `across` tiles of all frames into jobs, about as many for each thread.

    Few tiles are not divided, but their output channels are: each thread would else read all weights.
    """
    at_once = -(-frames // -(-frames // _FRAMES))
    channels = outputs
    if frames * down * across <= _TILES:
        rows, columns = down, across
        channels = max(-(-outputs // threads), min(_OUTPUTS, outputs))
    else:
        tiles = max(min(_TILES, max(_OF_ALL_THREADS // threads, _OF_EACH)) // at_once, 1)  # of a frame
        rows, columns = max(tiles // across, 1), -(-across // -(-across // tiles))
        if rows > 1:  # whole rows: as many bands as threads, or a multiple
            bands = -(-down // rows)
            bands = -(-bands // threads) * threads
            rows = -(-down // min(bands, down))
    for begin, row, column, first in product(
        range(0, frames, at_once), range(0, down, rows), range(0, across, columns), range(0, outputs, channels)
    ):
        yield _Job(
            begin,
            min(begin + at_once, frames),
            row,
            column,
            min(rows, down - row),
            min(columns, across - column),
            slice(first, min(first + channels, outputs)),
        )


def _cut_out(x: Tensor, corner: tuple[int, int], out: Tensor) -> None:
    """Write the rectangle of frames (n, H, W, C) that begins at `corner` into `out` (n, h, w, C), zeros where it reaches beyond them."""
    (top, left), (height, width) = corner, out.shape[1:3]
    inside = x[:, max(top, 0) : top + height, max(left, 0) : left + width]
    above, before = max(-top, 0), max(-left, 0)
    below, after = above + inside.shape[1], before + inside.shape[2]
    for edge in (out[:, :above], out[:, below:], out[:, :, :before], out[:, :, after:]):
        edge.zero_()
    out[:, above:below, before:after] = inside


@cache
def tiling(frames: int, largest: int) -> tuple[tuple[int, int], ...]:
    """Split `frames` into tiles (size, count) of 1 to `largest` frames, so that the fewest products are needed."""
    best: list[tuple[int, list[int]]] = [(0, [])]
    for total in range(1, frames + 1):
        sizes = [size for size in (1, *range(2, largest + 1)) if size <= total]
        best.append(min((best[total - size][0] + size + 2, [*best[total - size][1], size]) for size in sizes))
    chosen = best[frames][1]
    return tuple((size, chosen.count(size)) for size in sorted(set(chosen), reverse=True))


@cache
def minimal_filter(size: int, taps: int = 3) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Return F(size, taps) as (A: input to points, B: weights to points, C: points to output).

    y = C ((B g) * (A d)), with d of size + taps - 1 frames. Source: Winograd, Arithmetic Complexity of Computations (1980). The
    points are small, so that fp32 loses little.
    """
    points = [Fraction(point) for point in _POINTS[size + taps - 2]]
    roots_of = [[other for other in points if other != point] for point in points]
    inputs = [_with_roots(roots) for roots in roots_of] + [_with_roots(points)]
    inputs = [row + [Fraction(0)] * (size + taps - 1 - len(row)) for row in inputs]
    norms = [
        math.prod((point - other for other in roots), start=Fraction(1)) for point, roots in zip(points, roots_of, strict=True)
    ]
    weights = [[point**k / norm for k in range(taps)] for point, norm in zip(points, norms, strict=True)]
    weights.append([Fraction(int(k == taps - 1)) for k in range(taps)])
    outputs = [[point**i for point in points] + [Fraction(int(i == size - 1))] for i in range(size)]
    return _floats(inputs), _floats(weights), _floats(outputs)


def _floats(rows: Sequence[Sequence[Fraction]]) -> list[list[float]]:
    return [[float(value) for value in row] for row in rows]


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of (x - root), lowest first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients
