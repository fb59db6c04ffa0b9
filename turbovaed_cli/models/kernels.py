"""The student's layers in their fastest form: over frames with channels innermost in memory, in reused buffers.

Frames are (n, C, H, W) of one clip in channels_last memory; time is the batch dimension. Results equal those of the modules in
layers.py within rounding. This form saves:

- a copy per padding: the input of a convolution is written into its padded buffer at once;
- fresh memory per operation: the system hands out large blocks page by page, which takes longer than filling them;
- the layouts and weights that oneDNN would rearrange at every call, and its slow path for small inputs;
- multiplications: three taps in time need m + 2 products for m frames instead of 3m (Winograd's minimal filtering F(m, 3),
  by Toom and Cook's construction), and 3 x 3 taps 36 products for 4 x 4 pixels instead of 144 (F(4 x 4, 3 x 3)).
"""

import math
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.models.layers import RMS_EPS

# The polynomials of F(m, r) are evaluated at m + r - 2 of these points, as many as there are, and at infinity.
_POINTS = {len(points): points for points in ((0, 1, -1), (0, 1, -1, 2), (0, 1, -1, 0.5, -0.5), (0, 1, -1, 0.5, -0.5, 2, -2))}
_IN_CACHE = 2**19  # elements of one tile's frame: with more, the transforms wait for memory
_SIDE = 4  # pixels of a tile in space, along both sides
_TILES = 512  # of one product of matrices: fewer read the weights too often, more wait for memory
_FEWEST_TILES, _FEWEST_FRAMES = 64, 8  # of a call that tiles in space are worth, and of what is transformed at once
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Speedups:
    """Optimisations that can be switched off, to measure or to avoid them."""

    winograd: bool = True  # fewer multiplications, by tiles of frames or of pixels
    packed: bool = True  # weights laid out once in oneDNN's layout, on a CPU that has oneDNN
    wide_sums: bool = True  # half precision adds up branches and the products of tiles in fp32
    winograd_channels: int = 64  # input and output channels from which the transforms of tiles in time are worth their time
    winograd_elements: int = sys.maxsize  # of a weight, up to which the transformed weights are worth their memory
    # The same two for tiles in space, which come first, and whose weights take four times as much; channels times taps in time.
    space_channels: int = 576
    space_elements: int = 2**21

    def __str__(self) -> str:
        """Return the name that `bench` prints."""
        return ", ".join(["channels last", *["packed weights"] * self.packed, *["Winograd in time and space"] * self.winograd])

    def sums_in(self, dtype: torch.dtype) -> torch.dtype:
        """Return the precision of sums in a network that computes in `dtype`."""
        return torch.float32 if self.wide_sums and dtype in HALVES else dtype


LAYOUT_ALONE = Speedups(winograd=False, packed=False, wide_sums=False)


def state_of(parameters: Iterable[Tensor]) -> list[tuple[object, ...]]:
    """Return what differs after weights were changed, moved or converted; changes through a parameter's `.data` are not noticed."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in parameters]


class Scratch(threading.local):
    """Memory for results that last for one operation: a block per purpose and thread, as large as the largest request."""

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def frames(self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return uninitialised frames (n, C, H, W) in channels_last memory; earlier frames of the same purpose become invalid."""
        n, channels, height, width = shape
        return self.dense(purpose, (n, height, width, channels), dtype, device).permute(0, 3, 1, 2)

    def dense(self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised tensor; earlier ones of the same purpose become invalid."""
        block = self._blocks.get(purpose)
        if block is None or block.numel() < math.prod(shape) or block.dtype != dtype or block.device != device:
            with torch.inference_mode(False):  # else later calls outside of inference mode could not write there
                block = self._blocks[purpose] = torch.empty(math.prod(shape), dtype=dtype, device=device)
        return block[: math.prod(shape)].view(*shape)

    def blocks(self) -> list[Tensor]:
        """Return the blocks of this thread."""
        return list(self._blocks.values())

    def clear(self) -> None:
        """Free all memory."""
        self._blocks.clear()


class Kept(dict[Hashable, Tensor]):
    """Copies of the frames that later pieces need; a new copy of the same shape is written into the memory of the old one.

    So long-lived memory stays in place, and the temporary memory of every piece finds the same free blocks.
    """

    def __setitem__(self, key: Hashable, frames: Tensor) -> None:
        before = self.get(key)
        if before is None or before.shape != frames.shape:
            with torch.inference_mode(False):  # as for Scratch
                before = torch.empty_like(frames)  # dense, of the same layout
            super().__setitem__(key, before)
        before.copy_(frames)


class Convolution:
    """A k_t x k x k convolution over frames. It pads width and height with zeros, if asked; time is already padded.

    `stride` is (time, rows, columns). It computes in `dtype` and returns frames in `dtype_out`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        dtype: torch.dtype,
        speedups: Speedups,
        scratch: Scratch,
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        self.dtype = dtype
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)  # (O, C / groups, k_t, k, k) and (O,)
        self.groups, self.scratch, self.stride = groups, scratch, stride
        self.out_channels = weight.shape[0]
        self.taps = weight.shape[2]  # in time
        self.reach_time, self.reach = weight.shape[2] // 2, weight.shape[3] // 2
        self._is_packed = speedups.packed and weight.device.type == "cpu"
        is_wide = groups == 1 and min(weight.shape[:2]) >= speedups.winograd_channels
        is_worth = is_wide and weight.numel() <= speedups.winograd_elements
        self._has_tiles = speedups.winograd and is_worth and self.taps == 3 and stride[0] == 1
        has_space = groups == 1 and stride == (1, 1, 1) and weight.shape[3:] == (3, 3) and dtype not in HALVES
        is_worth = self.taps * min(weight.shape[:2]) >= speedups.space_channels and weight.numel() <= speedups.space_elements
        self._has_tiles_in_space = speedups.winograd and has_space and is_worth
        self.dtype_out = speedups.sums_in(dtype) if self._has_tiles else dtype
        self._largest_tile = 2 if dtype in HALVES else 3  # frames; tiles of 2 round less
        self._to_points: dict[int, Tensor] = {}  # matrices from the frames of a tile to its points, by its size
        # Prepared weights: 1 for the direct form, m for tiles of m frames, 0 for tiles in space.
        self._ready: dict[int, list[Tensor]] = {}

    def __call__(self, x: Tensor, *, pad_height: bool, pad_width: bool = True) -> Tensor:
        """Convolve `x` (n, C, H, W) to (frames_out(n), O, H', W'); without stride, H' is H or H - k + 1 and W' likewise."""
        x = x.to(self.dtype)
        padding = (0, self.reach if pad_height else 0, self.reach if pad_width else 0)
        frames = self.frames_out(x.shape[0])
        height, width = (
            max((size + 2 * pad - 2 * self.reach - 1) // stride + 1, 0)
            for size, pad, stride in zip(x.shape[2:], padding[1:], self.stride[1:], strict=True)
        )
        if min(frames, height) <= 0:
            return x.new_empty(frames, self.out_channels, height, width, dtype=self.dtype_out)
        if self._has_tiles_in_space and frames * -(-height // _SIDE) * -(-width // _SIDE) >= _FEWEST_TILES:
            return self._by_tiles_in_space(x, (frames, height, width), padding[1:])
        if not self._has_tiles or frames == 1:
            return self._convolve(x, 1, 0, self.bias, padding).to(self.dtype_out)
        return self._by_tiles(x, (frames, height, width), padding)

    def frames_out(self, frames: int) -> int:
        """Return the number of output frames for `frames` input frames."""
        return max((frames - self.taps) // self.stride[0] + 1, 0)

    def prepared(self) -> list[Tensor]:
        """Return the prepared weights."""
        return [weight for weights in self._ready.values() for weight in weights]

    def forget(self) -> None:
        """Drop the prepared weights; the next call prepares them again."""
        self._ready.clear()
        self._to_points.clear()

    def _by_tiles(self, x: Tensor, shape: tuple[int, int, int], padding: tuple[int, int, int]) -> Tensor:
        out = torch.empty(*shape, self.out_channels, dtype=self.dtype_out, device=x.device).permute(0, 3, 1, 2)
        frames, height = shape[:2]
        at_once = max(_IN_CACHE // max(x[0].numel(), out[0].numel()), 1)
        rows = max(_IN_CACHE * height // max(x[0].numel(), out[0].numel()), 1) if self.stride == (1, 1, 1) else height
        begin = 0
        for size, count in tiling(frames, self._largest_tile):
            end = begin + size * count
            if size == 1:
                out[begin:end] = self._convolve(x[begin : end + 2], 1, 0, self.bias, padding)
            for first in range(begin, end if size > 1 else begin, size * at_once):
                last = min(first + size * at_once, end)
                for top in range(0, height, rows):
                    band = out[first:last, :, top : top + rows]
                    self._tile(x[first : last + 2], size, (top, band.shape[2], height), padding, band)
            begin = end
        return out

    def _by_tiles_in_space(self, x: Tensor, shape: tuple[int, int, int], padding: tuple[int, int]) -> Tensor:
        frames, height, width = shape
        out = torch.empty(*shape, self.out_channels, dtype=x.dtype, device=x.device)
        down, across = (-(-side // _SIDE) for side in (height, width))
        at_once = min(max(_TILES // across, _FEWEST_FRAMES), frames)
        rows = max(_TILES // (at_once * across), 1)
        for begin in range(0, frames, at_once):
            end = min(begin + at_once, frames)
            some = x[begin : end + self.taps - 1].permute(0, 2, 3, 1)
            for top in range(0, down, rows):
                band = out[begin:end, top * _SIDE : (top + rows) * _SIDE]
                self._tiles_in_space(some, (top * _SIDE - padding[0], -padding[1]), band)
        return out.permute(0, 3, 1, 2)

    def _tiles_in_space(self, x: Tensor, corner: tuple[int, int], out: Tensor) -> None:
        """Write rows `out` (n, h, w, O) from frames `x` (n + taps - 1, H, W, C): to points, a product for each, and back.

        `corner` is the first row and column of `x` that they need; below 0 and beyond the frame there are zeros.
        """
        to_points, _, from_points = (self._in_space(matrix, x) for matrix in minimal_filter(_SIDE))
        frames, height, width, _ = out.shape
        points, down, across = _SIDE + 2, -(-height // _SIDE), -(-width // _SIDE)
        number, _, _, channels = x.shape
        dense = partial(self.scratch.dense, dtype=x.dtype, device=x.device)
        padded = dense("cut out", (number, down * _SIDE + 2, across * _SIDE + 2, channels))
        _cut_out(x, corner, padded)
        image, row, column, _ = padded.stride()
        tiles = padded.as_strided(
            (points, points, number, down, across, channels), (row, column, image, row * _SIDE, column * _SIDE, 1)
        )
        gathered = dense("tiles", (points**2, number * down * across * channels))
        gathered.view(tiles.shape).copy_(tiles)
        at_points = dense("points", gathered.shape)
        torch.mm(to_points, gathered, out=at_points)
        at_points = at_points.view(points**2, number, down * across, channels)
        products = dense("products", (points**2, frames * down * across, out.shape[3]))
        for tap, weight in enumerate(self._weights_in_space()):
            values = at_points[:, tap : tap + frames].flatten(1, 2)
            if tap == 0:
                torch.bmm(values, weight, out=products)
            else:
                products.baddbmm_(values, weight)
        products[points + 1] += self.bias  # at (1, 1), which every pixel takes exactly once
        made = dense("tiles", (_SIDE**2, products[0].numel()))
        torch.mm(from_points, products.flatten(1), out=made)
        made = made.view(_SIDE, _SIDE, frames, down, across, -1).permute(2, 3, 0, 4, 1, 5)
        if (height, width) == (down * _SIDE, across * _SIDE):
            out.unflatten(2, (across, _SIDE)).unflatten(1, (down, _SIDE)).copy_(made)
        else:
            out.copy_(made.reshape(frames, down * _SIDE, across * _SIDE, -1)[:, :height, :width])

    def _in_space(self, matrix: list[list[float]], like: Tensor) -> Tensor:
        """Return a matrix of a minimal filter for both sides of a tile."""
        one = torch.tensor(matrix, dtype=like.dtype, device=like.device)
        return torch.kron(one, one)

    def _weights_in_space(self) -> list[Tensor]:
        """Return the weights (points, C, O) of each tap in time."""
        if 0 not in self._ready:
            of_weights = torch.tensor(minimal_filter(_SIDE)[1], dtype=torch.float64, device=self.weight.device)
            made = torch.einsum("ai,bj,octij->tabco", of_weights, of_weights, self.weight.double())
            self._ready[0] = [weight.flatten(0, 1).to(self.weight.dtype).contiguous() for weight in made]
        return self._ready[0]

    def _tile(self, x: Tensor, size: int, rows: tuple[int, int, int], padding: tuple[int, int, int], out: Tensor) -> None:
        """Write tiles of `size` output frames into `out`: transform, one 2-D convolution per point, transform back.

        `rows` are the first output row, their number, and that of all; `out` has these rows.
        """
        to_points, _, from_points = minimal_filter(size)
        at_points, padding = self._at_points(x, size, rows, padding)
        started = [False] * size
        firsts: list[Tensor | None] = [None] * size  # the first product of each output waits for the second
        for point in range(len(to_points)):
            # Every output takes the product at the point 1 exactly once: the bias is added there.
            made = self._convolve(at_points[point], size, point, self.bias if point == 1 else None, padding).to(out.dtype)
            for i, first_made in enumerate(firsts):
                factor, target = from_points[i][point], out[i::size]
                if factor and not started[i]:
                    assert factor == 1
                    firsts[i], started[i] = made, True
                elif factor and first_made is not None:
                    torch.add(first_made, made, alpha=factor, out=target)
                    firsts[i] = None
                elif factor:
                    target.add_(made, alpha=factor)

    def _at_points(
        self, x: Tensor, size: int, rows: tuple[int, int, int], padding: tuple[int, int, int]
    ) -> tuple[list[Tensor], tuple[int, int, int]]:
        """Return the input of `rows` at every point, a tensor (tiles, C, h, W) each, and the padding that it still needs."""
        top, num_rows, height = rows
        first, last, above, below = 0, x.shape[2], 0, 0
        if num_rows < height:
            first, last = top - padding[1], top + num_rows + 2 * self.reach - padding[1]
            above, below = max(-first, 0), max(last - x.shape[2], 0)
            first, last, padding = max(first, 0), min(last, x.shape[2]), (padding[0], 0, padding[2])
        count, channels, width = (x.shape[0] - 2) // size, x.shape[1], x.shape[3]
        if size not in self._to_points:
            self._to_points[size] = torch.tensor(minimal_filter(size)[0], dtype=x.dtype, device=x.device)
        matrix = self._to_points[size]
        made = self.scratch.frames(
            "tiles", (len(matrix) * count, channels, above + last - first + below, width), x.dtype, x.device
        )
        made = made.unflatten(0, (len(matrix), count))
        for edge in (made[:, :, :, :above], made[:, :, :, made.shape[3] - below :]):
            edge.zero_()
        inner = made[:, :, :, above : made.shape[3] - below].permute(0, 1, 3, 4, 2)  # (points, tiles, h, W, C)
        values = x.permute(0, 2, 3, 1)[:, first:last].flatten(1)
        for tile in range(count):
            torch.mm(matrix, values[tile * size : tile * size + size + 2], out=inner[:, tile].flatten(1))
        return list(made), padding

    def _convolve(self, x: Tensor, size: int, point: int, bias: Tensor | None, padding: tuple[int, int, int]) -> Tensor:
        """Convolve `x` with the weights of `point` of tiles of `size` frames."""
        weight = self._weights(size, x)[point]
        video = x.movedim(0, 1)[None]  # (1, C, n, H, W), channels_last_3d
        ones = (1, 1, 1)
        if self._is_packed:
            made = torch.ops.mkldnn._convolution_pointwise(
                video, weight, bias, padding, self.stride, ones, self.groups, "none", [], ""
            )
        else:
            made = functional.conv3d(video, weight, bias, self.stride, padding, groups=self.groups)
        return cast(Tensor, made)[0].movedim(1, 0)

    def _weights(self, size: int, like: Tensor) -> list[Tensor]:
        if size not in self._ready:
            weights = [self.weight] if size == 1 else self._transformed(size)
            self._ready[size] = [self._pack(weight, like) for weight in weights]
        return self._ready[size]

    def _transformed(self, size: int) -> list[Tensor]:
        """Return the weights (O, C, 1, k, k) at every point of tiles of `size` frames."""
        rows = torch.tensor(minimal_filter(size)[1], dtype=torch.float64, device=self.weight.device)
        at_points = torch.einsum("pk,ocktu->poctu", rows, self.weight.double())
        return [weight.unsqueeze(2).to(self.weight.dtype) for weight in at_points]

    def _pack(self, weight: Tensor, like: Tensor) -> Tensor:
        if not self._is_packed:
            return weight.contiguous(memory_format=torch.channels_last_3d)
        ones, padding = [1, 1, 1], [0, self.reach, self.reach]
        shape = [1, like.shape[1], *like.shape[:1], *like.shape[2:]]
        return _reorder(weight.contiguous().to_mkldnn(), padding, self.stride, ones, self.groups, shape)


def _cut_out(x: Tensor, corner: tuple[int, int], out: Tensor) -> None:
    """Write the rectangle of frames (n, H, W, C) that begins at `corner` into `out` (n, h, w, C), zeros where it reaches beyond them."""
    (top, left), (height, width) = corner, out.shape[1:3]
    inside = x[:, max(top, 0) : top + height, max(left, 0) : left + width]
    above, before = max(-top, 0), max(-left, 0)
    below, after = above + inside.shape[1], before + inside.shape[2]
    for edge in (out[:, :above], out[:, below:], out[:, :, :before], out[:, :, after:]):
        edge.zero_()
    out[:, above:below, before:after] = inside


class TimeConvolution:
    """A depthwise 3 x 1 x 1 convolution over frames, without bias: three products and sums. Time is already padded."""

    reach_time, reach = 1, 0

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.taps = weight.detach().to(dtype).flatten(1).unbind(1)  # of (O, 1, 3, 1, 1): three of (O,)

    def __call__(self, x: Tensor, *, pad_height: bool) -> Tensor:
        """Convolve `x` (n, O, H, W) to (n - 2, O, H, W); there is nothing to pad."""
        rows, frames = x.permute(0, 2, 3, 1), max(x.shape[0] - 2, 0)
        made = rows[:frames] * self.taps[0]
        for i, tap in enumerate(self.taps[1:], start=1):
            made.addcmul_(rows[i : i + frames], tap)
        return made.permute(0, 3, 1, 2)


_reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv3d_weight  # newer than its type stub


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN on this CPU for `dtype`, and torch.compile's operator that takes packed weights."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or (dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()))


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


@dataclass(frozen=True, eq=False)
class Preparation:
    """The step before a convolution: RMSNorm over channels and an activation, or a plain copy."""

    activation: str | None = None  # relu, silu or none, after the norm; None: no norm either
    eps: float = RMS_EPS  # added to the mean square
    least: float = 0.0  # the mean square is this at least
    gamma: Tensor | None = None  # (C,), a factor per channel after the norm

    def write(self, x: Tensor, out: Tensor, scratch: Scratch) -> None:
        """Write the prepared frames of `x` (n, C, H, W) into `out` of the same shape, in the precision of `out`."""
        if self.activation is None or not x.numel():
            out.copy_(x)
            return
        rows, target = x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
        if rows.dtype != target.dtype or (rows.dtype in HALVES and rows.device.type == "cpu"):
            # In fp32 and back, a few frames at a time: on a CPU as quick as half precision, and rounded only once.
            at_once = max(_IN_CACHE // x[0].numel(), 1)
            for some, made in zip(rows.split(at_once), target.split(at_once), strict=True):
                shape = some.permute(0, 3, 1, 2).shape
                wide = scratch.frames("wide", shape, torch.float32, x.device).permute(0, 2, 3, 1)
                made.copy_(self._normalised(some if some.dtype == wide.dtype else wide.copy_(some), wide))
        else:
            self._normalised(rows, target)

    def fill(self, x: Tensor, out: Tensor, kept: Tensor | None, head: int, scratch: Scratch) -> None:
        """Write the prepared frames of `x` (n, C, H, W) into `out` (m, C, H, W) from frame `head` on, and fill the others.

        The frames before them are `kept`, which are prepared, or the first one repeated; those after them repeat the last one.
        """
        known = head + x.shape[0]
        self.write(x, out[head:known], scratch)
        if head:
            out[:head] = kept if kept is not None else out[head]
        if out.shape[0] > known:
            out[known:] = out[known - 1]

    def _normalised(self, rows: Tensor, target: Tensor) -> Tensor:
        """Write norm and activation of `rows` (..., C) into `target`; sums are taken in fp32 at least."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        sums = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide).square_()
        means = sums.div_(rows.shape[-1]).add_(self.eps)
        means = means.clamp_min_(self.least) if self.least else means
        torch.mul(rows, means.rsqrt_().to(rows.dtype), out=target)
        if self.gamma is not None:
            target.mul_(self.gamma)
        if self.activation == "none":
            return target
        return target.relu_() if self.activation == "relu" else functional.silu(target, inplace=True)


def shuffle_order(channels: int, time: int, space: int = 2) -> Tensor:
    """Return the order (channels,) of a convolution's outputs for `shuffle`: (t, i, j, c), from ((c*2 + i)*2 + j)*time + t.

    The 2 is `space`.
    """
    return torch.arange(channels).view(-1, space, space, time).permute(3, 1, 2, 0).flatten()


def shuffle(x: Tensor, time: int, space: int = 2) -> Tensor:
    """Shuffle `x` (n, time*space*space*C, h, w) to (time*n, C, space*h, space*w) in channels_last memory.

    The channels of `x` are in `shuffle_order`.
    """
    n, channels, height, width = x.shape
    kept = channels // (time * space**2)
    wide = x.permute(0, 2, 3, 1).reshape(n, height, width, time, space, space, kept)
    made = wide.permute(0, 3, 1, 4, 2, 5, 6).reshape(n * time, height * space, width * space, kept)
    return made.permute(0, 3, 1, 2)
