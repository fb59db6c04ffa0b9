"""Decoding latents as they come: the frames of the whole-clip decode, in memory that does not grow with the clip.

A student looks a finite way ahead and back in time: nothing in it but convolutions sees more than one frame. So each of
them keeps the last frames it was given, and passes on what they determine; at the end the last frame is repeated, as the
whole-clip decode repeats it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import FrameCountError, ShapeError
from turbovaed_cli.models.layers import (
    DepthwiseSeparableConv3d,
    MidBlock,
    ResnetBlock,
    TimeReplicatedConv3d,
    UpBlock,
    Upsampler3d,
    pixel_shuffle_3d,
)
from turbovaed_cli.models.student import StudentDecoder

_TemporalConvolution = TimeReplicatedConv3d | DepthwiseSeparableConv3d


class _Stage(Protocol):
    """A piece of the decoder on a stream of frames (B, C, n, H, W)."""

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        """Take new frames (None: there are none) and return those that are determined by now; `last`: nothing follows."""
        ...

    def behind(self, frames: int) -> int:
        """How many frames are out when `frames` have come in and more will follow."""
        ...


class StreamingDecoder:
    """Decode latents chunk by chunk, equal to the student's decode of the whole clip.

        decoder = StreamingDecoder(student)
        for chunk in chunks:               # (B, C, n, h, w), any n, in the teacher's raw latent space
            show(decoder.push(chunk))      # (B, 3, m, H, W) in [-1, 1], not clamped; m may be 0
        show(decoder.finish())

    `finish` makes it ready for the next clip. The memory it takes is that of the longest chunk and of the few frames that
    every convolution keeps. Raises ShapeError where a chunk does not go with the student or with the chunks before it.
    """

    def __init__(self, student: StudentDecoder) -> None:
        self.student = student
        self._start()

    @property
    def lookahead_frames(self) -> int:
        """By how many pixel frames the output is behind: what `finish` still has to give."""
        many = 1000
        frames = many
        for stage in _stages_of(self.student):
            frames = stage.behind(frames)
        return self.student.pixel_frames(many) - frames

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Take the next latent frames (B, C, n, h, w); return the pixel frames (B, 3, m, H, W) that they determine."""
        self._check(latents)
        self._shape = latents.shape
        return self._frames(_run(self._stages, latents if latents.shape[2] else None, False))

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The frames that are left, (B, 3, m, H, W); FrameCountError where no latent frame was pushed."""
        if self._first is None:
            raise FrameCountError("no latents were pushed, so there is nothing to finish")
        frames = self._frames(_run(self._stages, None, True))
        self._start()
        return frames

    def _start(self) -> None:
        self._stages = _stages_of(self.student)
        self._first: torch.Size | None = None
        self._shape = torch.Size()

    def _check(self, latents: Tensor) -> None:
        self.student.check_latents(latents)
        if latents.shape[2] and self._first is None:
            self._first = latents.shape
        if self._first is not None and (latents.shape[:2] + latents.shape[3:]) != (self._first[:2] + self._first[3:]):
            raise ShapeError(
                f"latents are {tuple(latents.shape)}, and those before them {tuple(self._first)}: only the frames may differ"
            )

    def _frames(self, video: Tensor | None) -> Tensor:
        """The video, or one of no frames."""
        if video is not None:
            return video
        batch, _, _, height, width = self._shape
        ratio = int(self.student.spatial_compression_ratio)
        return torch.empty(batch, 3, 0, height * ratio, width * ratio, device=self.student.device, dtype=self.student.dtype)


def _run(stages: Sequence[_Stage], x: Tensor | None, last: bool) -> Tensor | None:
    for stage in stages:
        x = stage(x, last)
    return x


class _Framewise:
    """What looks at no other frame; `time` frames come out for each that goes in."""

    def __init__(self, layer: Callable[[Tensor], Tensor], time: int = 1) -> None:
        self.layer, self.time = layer, time

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        return None if x is None else self.layer(x)

    def behind(self, frames: int) -> int:
        return frames * self.time


class _Convolution:
    """A convolution in time: keeps the frames that the next output needs."""

    def __init__(self, layer: _TemporalConvolution) -> None:
        self.layer, self.reach = layer, layer.kernel_size // 2
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        pieces = [piece for piece in (self.kept, x) if piece is not None]
        if not pieces or (x is None and not last):
            return None
        if self.kept is None:
            pieces = [pieces[0][:, :, :1]] * self.reach + pieces
        if last:
            pieces += [pieces[-1][:, :, -1:]] * self.reach
        known = torch.cat(pieces, dim=2)
        outputs = known.shape[2] - 2 * self.reach
        self.kept = known[:, :, max(outputs, 0) :].clone()  # a view would keep all of it alive
        return self.layer.inside(known) if outputs > 0 else None

    def behind(self, frames: int) -> int:
        return frames - self.reach


class _Residual:
    """A branch, and the input that waits for it."""

    def __init__(self, branch: Sequence[_Stage], shortcut: Callable[[Tensor], Tensor] | None) -> None:
        self.branch, self.shortcut = branch, shortcut
        self.waiting: Tensor | None = None

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is not None:
            straight = self.shortcut(x) if self.shortcut else x
            self.waiting = straight if self.waiting is None else torch.cat([self.waiting, straight], dim=2)
        y = _run(self.branch, x, last)
        if y is None or self.waiting is None:
            return None
        now, self.waiting = self.waiting[:, :, : y.shape[2]], self.waiting[:, :, y.shape[2] :].clone()
        return y + now

    def behind(self, frames: int) -> int:
        for stage in self.branch:
            frames = stage.behind(frames)
        return frames


class _WithoutFirst:
    """Drops the first frame of the stream."""

    def __init__(self) -> None:
        self.dropped = False

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is None or self.dropped:
            return x
        self.dropped = True
        return x[:, :, 1:] if x.shape[2] > 1 else None

    def behind(self, frames: int) -> int:
        return frames - 1


def _stages_of(student: StudentDecoder) -> list[_Stage]:
    """The student as stages that have seen nothing yet; weights are shared."""
    stages: list[_Stage] = [_Convolution(student.conv_in)]
    for block in (student.mid_block, *student.up_blocks):
        assert isinstance(block, MidBlock | UpBlock)
        if hasattr(block, "conv_in"):
            stages.append(_residual(cast(ResnetBlock, block.conv_in)))
        if hasattr(block, "upsamplers"):
            stages += _upsampling(cast(list[Upsampler3d], block.upsamplers)[0])
        stages += [_residual(cast(ResnetBlock, resnet)) for resnet in block.resnets]
    return [*stages, _Framewise(student.before_last), _Convolution(student.conv_out)]


def _residual(resnet: ResnetBlock) -> _Residual:
    branch: list[_Stage] = []
    for norm, activation, convolution in ((resnet.norm1, resnet.act1, resnet.conv1), (resnet.norm2, resnet.act2, resnet.conv2)):
        branch += [_Framewise(nn.Sequential(norm, activation)), _Convolution(cast(_TemporalConvolution, convolution))]
    has_shortcut = hasattr(resnet, "conv_shortcut")
    return _Residual(branch, nn.Sequential(resnet.norm3, resnet.conv_shortcut) if has_shortcut else None)


def _upsampling(upsampler: Upsampler3d) -> list[_Stage]:
    stages: list[_Stage] = [
        _Convolution(upsampler.conv),
        _Framewise(lambda x: pixel_shuffle_3d(x, upsampler.time), upsampler.time),
    ]
    return [*stages, _WithoutFirst()] if upsampler.drop_first_frame else stages
