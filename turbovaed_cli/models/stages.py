"""The pieces of a decoder that work on a stream: each keeps the frames and rows that its next output needs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.models.kernels import Convolution, Preparation, TimeConvolution
from turbovaed_cli.models.scratch import Scratch


@dataclass(frozen=True)
class Stripe:
    """The place of a stripe of rows in its piece of a clip."""

    stripe: int  # number of the stripe, from the top
    top: bool  # no row is above it
    bottom: bool  # no row is below it
    end: bool  # no frame follows


class StreamStage(Protocol):
    """A part of the decoder that works on a stream of stripes (n, C, h, W) of frames; n and h may be 0."""

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        """Take new frames (n, C, h, W) of a stripe; return the frames and rows (m, C', h', W') that are determined by now."""
        ...

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        """Return the number of frames that are out after `frames` have come in, if more follow.

        Without `pads`, those are not counted that see frames repeated before the first one.
        """
        ...


class Memory(Protocol):
    """The frames that a stage keeps for the next piece, a tensor per stripe."""

    def __setitem__(self, stripe: int, frames: Tensor, /) -> None: ...

    def get(self, stripe: int, /) -> Tensor | None:
        """Return the last frames (n, C, h, W) of a stripe, which must not be written to; None if there are none."""
        ...


Keep = Callable[[], Memory]
StageMaker = Callable[[Keep], StreamStage]


def run_stages(stages: Iterable[StreamStage], x: Tensor, at: Stripe) -> Tensor:
    """Pass a stripe (n, C, h, W) through stages in order; returns (m, C', h', W')."""
    for stage in stages:
        x = stage(x, at)
    return x


def stripes_of(stripes: Sequence[Tensor], *, end: bool) -> Iterator[tuple[Stripe, Tensor]]:
    """Yield every stripe (n, C, h, W) of a piece, from the top, with its place."""
    for number, stripe in enumerate(stripes):
        yield Stripe(number, number == 0, number == len(stripes) - 1, end), stripe


def framewise(layer: Callable[[Tensor], Tensor], time: int = 1) -> StageMaker:
    """Return a maker of a stage for a layer that works on single frames: (n, C, h, W) to (n * time, C', h', W')."""
    return lambda _keep: _Framewise(layer, time)


class _Framewise:
    """The stage of a layer without context in time or between rows; `time` frames come out for each frame that goes in."""

    def __init__(self, layer: Callable[[Tensor], Tensor], time: int = 1) -> None:
        self.layer, self.time = layer, time

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        return self.layer(x)

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        return frames * self.time


class StreamConvolution:
    """A convolution that keeps the prepared frames, and within a piece the rows, that its next output needs."""

    def __init__(
        self, kernel: Convolution | TimeConvolution, prepare: Preparation, scratch: Scratch, kept: Memory, *, causal: bool = False
    ) -> None:
        self.kernel, self.prepare, self.scratch = kernel, prepare, scratch
        self.ahead = 0 if causal else kernel.reach_time  # frames after an output's own that it needs
        self.kept = kept  # the last frames of each stripe
        self.above: Tensor | None = None  # the last rows of the stripe above

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        padded, top = self._padded(x, at)
        reach, rows = self.kernel.reach, slice(top, top + x.shape[2])
        if not at.end and (frames := padded.shape[0]):
            self.kept[at.stripe] = padded[frames - min(frames, 2 * self.kernel.reach_time) :, :, rows]
        is_whole = at.top and at.bottom
        if not is_whole and reach:
            self.above = None if at.bottom else copied(padded[:, :, -2 * reach :])
        return self.kernel(padded, pad_height=is_whole)

    def _padded(self, x: Tensor, at: Stripe) -> tuple[Tensor, int]:
        """Return the input of the convolution, padded in time and rows, and the number of rows above the stripe.

        In time it is the kept frames, the new frames, and at the end the last one repeated. In rows it is the rows above, or
        zeros at the top, and zeros at the bottom.
        """
        frames, channels, height, width = x.shape
        reach_time, reach = self.kernel.reach_time, self.kernel.reach
        kept = self.kept.get(at.stripe)
        head = kept.shape[0] if kept is not None else 2 * reach_time - self.ahead if frames else 0
        known = head + frames
        tail = self.ahead if at.end and known else 0
        top = bottom = 0
        if reach and not (at.top and at.bottom):
            top = self.above.shape[2] if self.above is not None else reach
            bottom = reach if at.bottom else 0
        shape = (known + tail, channels, top + height + bottom, width)
        padded = self.scratch.frames("padded", shape, self.kernel.dtype, x.device)
        self.prepare.fill(x, padded[:, :, top : top + height], kept, head, self.scratch)
        if top:
            padded[:, :, :top] = self.above if self.above is not None else 0
        if bottom:
            padded[:, :, -bottom:] = 0
        return padded, top

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        return frames - (self.ahead if pads else 2 * self.kernel.reach_time)


class StreamShortcut:
    """The shortcut of a resnet that changes channels: LayerNorm over channels, in the precision `sums`, then the pointwise convolution."""

    def __init__(self, norm: nn.LayerNorm, pointwise: Callable[[Tensor], Tensor], sums: torch.dtype) -> None:
        self.weight, self.bias, self.eps = norm.weight.detach().to(sums), norm.bias.detach().to(sums), norm.eps
        self.pointwise, self.sums = pointwise, sums

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).to(self.sums)
        rows = functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.eps)
        return self.pointwise(rows.permute(0, 3, 1, 2))


class StreamResidual:
    """The sum, in the precision `sums`, of a branch and its input, which is kept until the branch has caught up."""

    def __init__(
        self, branch: Sequence[StreamStage], shortcut: StreamShortcut | None, waiting: Memory, sums: torch.dtype
    ) -> None:
        self.branch, self.shortcut, self.sums = branch, shortcut, sums
        self.waiting = waiting  # frames of each stripe that the branch has not caught up with
        self.above: Tensor | None = None  # rows of the stripe above that it has not caught up with

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        y = run_stages(self.branch, x, at).to(self.sums)
        straight = self.shortcut(x) if self.shortcut else x
        before = self.waiting.get(at.stripe)
        # The frames that waited and the new ones, and the rows above and these, are added where they are, not put together first.
        earlier = before if before is not None else straight[:0]
        num_new = max(y.shape[0] - earlier.shape[0], 0)
        due = earlier[: y.shape[0]], straight[:num_new]
        above = self.above if self.above is not None else y[:, :, :0]
        top = min(above.shape[2], y.shape[2])
        y[:, :, :top].add_(above[:, :, :top])
        rows = y.shape[2] - top
        for part, target in zip(due, y[:, :, top:].split([len(part) for part in due]), strict=True):
            target.add_(part[:, :, :rows])
        if not at.top or not at.bottom:
            here = torch.cat([part[:, :, rows:] for part in due])
            self.above = None if at.bottom else copied(torch.cat([above[:, :, top:], here], dim=2))
        if not at.end:
            late = straight[num_new:]
            self.waiting[at.stripe] = torch.cat([earlier[y.shape[0] :], late]) if earlier.shape[0] > y.shape[0] else late
        return y

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        for stage in self.branch:
            frames = stage.frames_out(frames, pads=pads)
        return frames


class WithoutFirst:
    """A stage that drops the first frame of the stream."""

    def __init__(self) -> None:
        self.dropped: set[int] = set()  # stripes whose first frame was dropped

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        if at.stripe in self.dropped or not x.shape[0]:
            return x
        self.dropped.add(at.stripe)
        return x[1:]

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        return frames - 1


def copied(x: Tensor) -> Tensor:
    """Return a copy of `x` (n, C, h, W) in channels_last memory, which keeps no larger tensor alive."""
    return x.clone(memory_format=torch.channels_last)
