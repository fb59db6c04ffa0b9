"""The student's layers in their fastest form: over frames with channels innermost in memory, in reused buffers.

Frames are (n, C, H, W) of one clip in channels_last memory; time is the batch dimension. Results equal those of the modules in
layers.py within rounding. This form saves:

- a copy per padding: the input of a convolution is written into its padded buffer at once;
- fresh memory per operation (scratch.py);
- the layouts and weights that oneDNN would rearrange at every call, and its slow path for small inputs;
- multiplications (winograd.py): of tiles of 4 x 4 pixels in fp32, and of tiles of frames.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.models.layers import RMS_EPS
from turbovaed_cli.models.scratch import Scratch
from turbovaed_cli.models.winograd import SpatialTiles, minimal_filter, tiling

_IN_CACHE = 2**19  # elements of one tile's frame: with more, the transforms wait for memory
_WORTH_TILES_IN_SPACE = 2**28  # products of a call in the direct form, from which its threads are worth their start
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Speedups:
    """Optimisations that can be switched off, to measure or to avoid them."""

    winograd: bool = True  # fewer multiplications, by tiles of frames or of pixels
    packed: bool = True  # weights laid out once in oneDNN's layout, on a CPU that has oneDNN
    wide_sums: bool = True  # half precision adds up branches and the products of tiles in fp32
    winograd_channels: int = 64  # input and output channels from which the transforms of tiles in time are worth their time
    winograd_elements: int = sys.maxsize  # of a weight, up to which the transformed weights are worth their memory
    # The same two for tiles in space, which come first, and whose weights take four times as much.
    space_channels: int = 32
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
        is_worth = min(weight.shape[:2]) >= speedups.space_channels and weight.numel() <= speedups.space_elements
        self._has_tiles_in_space = speedups.winograd and has_space and is_worth
        self.dtype_out = speedups.sums_in(dtype) if self._has_tiles else dtype
        self._largest_tile = 2 if dtype in HALVES else 3  # frames; tiles of 2 round less
        self._to_points: dict[int, Tensor] = {}  # matrices from the frames of a tile to its points, by its size
        self._ready: dict[int, list[Tensor]] = {}  # prepared weights: 1 for the direct form, m for tiles of m frames
        self._in_space: SpatialTiles | None = None

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
        if self._has_tiles_in_space and frames * height * width * self.weight.numel() >= _WORTH_TILES_IN_SPACE:
            self._in_space = self._in_space or SpatialTiles(self.weight, self.bias)
            return self._in_space(x.permute(0, 2, 3, 1), padding[1:], self.scratch).permute(0, 3, 1, 2)
        if not self._has_tiles or frames == 1:
            return self._convolve(x, 1, 0, self.bias, padding).to(self.dtype_out)
        return self._by_tiles(x, (frames, height, width), padding)

    def frames_out(self, frames: int) -> int:
        """Return the number of output frames for `frames` input frames."""
        return max((frames - self.taps) // self.stride[0] + 1, 0)

    def prepared(self) -> list[Tensor]:
        """Return the prepared weights."""
        return [weight for weights in self._ready.values() for weight in weights] + (
            self._in_space.weights if self._in_space else []
        )

    def forget(self) -> None:
        """Drop the prepared weights; the next call prepares them again."""
        self._ready.clear()
        self._to_points.clear()
        self._in_space = None

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
