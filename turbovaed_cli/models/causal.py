"""The parts of a causal encoder that work on a stream: each keeps the frames that its next output needs.

Frames are (n, C, H, W) of one clip in channels_last memory, as in kernels.py. Every part returns the frames that are determined
by those that came so far, so a clip may come in pieces of any length.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.models.kernels import Convolution, Preparation
from turbovaed_cli.models.scratch import Kept, Scratch

CausalStage = Callable[[Tensor], Tensor]  # new frames (n, C, H, W) to the frames (m, C', H', W') that they determine
CausalMaker = Callable[[], CausalStage]
REPEAT, ZEROS, NOTHING = "repeat", "zeros", "nothing"  # what a convolution sees before the first frame


def run_causal(stages: Iterable[CausalStage], x: Tensor) -> Tensor:
    """Pass frames (n, C, H, W) through stages in order; returns (m, C', H', W')."""
    for stage in stages:
        x = stage(x)
    return x


class CausalConvolution:
    """A convolution over this frame and earlier ones. `before` is what precedes the first frame: its copies, zeros or nothing.

    `after` rows and columns of zeros follow the last ones, instead of the kernel's padding on both sides.
    """

    def __init__(self, kernel: Convolution, prepare: Preparation, scratch: Scratch, before: str, after: int = 0) -> None:
        self.kernel, self.prepare, self.scratch = kernel, prepare, scratch
        self.before, self.after = before, after
        self.kept = Kept()

    def __call__(self, x: Tensor) -> Tensor:
        frames, _, height, width = x.shape
        kept = self.kept.get(0)
        head = kept.shape[0] if kept is not None else self.kernel.taps - 1 if frames and self.before != NOTHING else 0
        shape = (head + frames, x.shape[1], height + self.after, width + self.after)
        padded = self.scratch.frames("padded", shape, self.kernel.dtype, x.device)
        here = padded[:, :, :height, :width]
        self.prepare.write(x, here[head:], self.scratch)
        if head:
            here[:head] = kept if kept is not None else here[head] if self.before == REPEAT else 0
        if self.after:
            padded[:, :, height:] = 0
            padded[:, :, :height, width:] = 0
        used = self.kernel.frames_out(shape[0]) * self.kernel.stride[0]
        if shape[0] > used or kept is not None:
            self.kept[0] = here[used:]
        return self.kernel(padded, pad_height=not self.after, pad_width=not self.after)


class CausalResidual:
    """The sum, in the precision `sums`, of a branch and its input, which may pass a shortcut; both return as many frames."""

    def __init__(self, branch: Sequence[CausalStage], shortcut: CausalStage | None, sums: torch.dtype) -> None:
        self.branch, self.shortcut, self.sums = branch, shortcut, sums

    def __call__(self, x: Tensor) -> Tensor:
        y = run_causal(self.branch, x)
        return y.to(self.sums).add_(self.shortcut(x) if self.shortcut else x)


class Groups:
    """Group frames by `size`; the first frame ends a group of its own, filled up with its copies or zeros before it."""

    def __init__(self, size: int, before: str) -> None:
        self.size, self.before = size, before
        self.kept: Tensor | None = None  # frames that wait for their group to be complete

    def __call__(self, x: Tensor) -> Tensor:
        """Take frames (n, C, H, W); return those (m, C, H, W) of complete groups."""
        if self.size == 1 or not x.shape[0]:
            return x[: x.shape[0] // self.size * self.size]
        if self.kept is None:
            first = x[:1] if self.before == REPEAT else torch.zeros_like(x[:1])
            x = torch.cat([*[first] * (self.size - 1), x])
        elif self.kept.shape[0]:
            x = torch.cat([self.kept, x])
        whole = x.shape[0] // self.size * self.size
        self.kept = x[whole:].clone(memory_format=torch.channels_last)
        return x[:whole]


class ShuffledDownsampling:
    """Frames in groups, a convolution, its space and time moved to channels, plus the mean of as many input values."""

    def __init__(self, convolution: CausalStage, stride: tuple[int, int, int], out_channels: int) -> None:
        self.convolution, self.stride, self.out_channels = convolution, stride, out_channels
        self.groups = Groups(stride[0], REPEAT)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.groups(x)
        made = to_channels(self.convolution(x), self.stride)
        return made.add_(averaged(x, self.stride, self.out_channels))


class AveragedShortcut:
    """The mean over groups of neighbouring values, with a frame of zeros before the first frame if time is halved."""

    def __init__(self, stride: tuple[int, int, int], out_channels: int) -> None:
        self.stride, self.out_channels = stride, out_channels
        self.groups = Groups(stride[0], ZEROS)

    def __call__(self, x: Tensor) -> Tensor:
        return averaged(self.groups(x), self.stride, self.out_channels)


class TimeDownsampling:
    """The first frame as it is, then a convolution of stride 2 over it and all later frames."""

    def __init__(self, convolution: CausalStage) -> None:
        self.convolution = convolution
        self.is_first = True

    def __call__(self, x: Tensor) -> Tensor:
        made = self.convolution(x)
        if self.is_first and x.shape[0]:
            self.is_first = False
            return torch.cat([x[:1], made])
        return made


class FrameAttention:
    """Attention of one head among the positions of each frame, plus its input."""

    def __init__(self, prepare: Preparation, qkv: Convolution, proj: Convolution, scratch: Scratch) -> None:
        self.prepare, self.qkv, self.proj, self.scratch = prepare, qkv, proj, scratch

    def __call__(self, x: Tensor) -> Tensor:
        if not x.shape[0]:
            return x
        n, channels, height, width = x.shape
        normed = self.scratch.frames("padded", x.shape, self.qkv.dtype, x.device)
        self.prepare.write(x, normed, self.scratch)
        rows = self.qkv(normed, pad_height=True).permute(0, 2, 3, 1).reshape(n, 1, height * width, 3 * channels)
        query, key, value = rows.chunk(3, dim=-1)
        found = functional.scaled_dot_product_attention(query, key, value)
        made = self.proj(found.reshape(n, height, width, channels).permute(0, 3, 1, 2), pad_height=True)
        return x + made


def patches(video: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return video (C, n, H, W) as frames (n, C*size*size, H/size, W/size); channel (c*size + column)*size + row."""
    channels, n, height, width = video.shape
    parts = video.reshape(channels, n, height // size, size, width // size, size)
    made = torch.empty(n, height // size, width // size, channels * size * size, dtype=dtype, device=video.device)
    made.view(n, height // size, width // size, channels, size, size).copy_(parts.permute(1, 2, 4, 0, 5, 3))
    return made.permute(0, 3, 1, 2)


def to_channels(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Move blocks of `stride` of frames (n, C, H, W) to channels (((c*t) + i)*h + j)*w + k, in channels_last memory."""
    blocks = _blocks(x, stride)
    n, _, height, _, width, _, _ = blocks.shape
    made = blocks.permute(0, 2, 4, 6, 1, 3, 5).reshape(n, height, width, x.shape[1] * math.prod(stride))
    return made.permute(0, 3, 1, 2)


def averaged(x: Tensor, stride: tuple[int, int, int], out_channels: int) -> Tensor:
    """Return the means (n, out_channels, H', W') over equal runs of the channels that `to_channels` gives."""
    channels, volume = x.shape[1], math.prod(stride)
    run = channels * volume // out_channels
    if volume % run and run % volume:
        return to_channels(x, stride).unflatten(1, (out_channels, run)).mean(2).contiguous(memory_format=torch.channels_last)
    blocks = _blocks(x, stride)
    n, _, height, _, width, _, _ = blocks.shape
    per_channel = max(volume // run, 1)
    made = torch.empty(n, height, width, channels, per_channel, dtype=x.dtype, device=x.device)
    begun = min(run, volume)
    for number in range(volume):
        time, row, column = number // (stride[1] * stride[2]), number // stride[2] % stride[1], number % stride[2]
        values, target = blocks[:, time, :, row, :, column], made[..., number // begun]
        target.copy_(values) if number % begun == 0 else target.add_(values)
    made = made.div_(begun).flatten(3)
    if run > volume:
        made = made.unflatten(3, (out_channels, run // volume)).mean(-1)
    return made.permute(0, 3, 1, 2)


def _blocks(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """View frames (n, C, H, W) as (n/t, t, H/h, h, W/w, w, C)."""
    n, channels, height, width = x.shape
    time, rows, columns = stride
    shape = (n // time, time, height // rows, rows, width // columns, columns, channels)
    return x.permute(0, 2, 3, 1).reshape(shape)
