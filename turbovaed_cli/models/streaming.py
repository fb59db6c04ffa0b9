"""Decode latents piece by piece: the frames of the whole-clip decode, in memory that does not grow with the clip.

Only the convolutions of a student see more than one position, so its receptive field is finite in time and space. Each
convolution keeps the last frames and rows that its next output needs. Latents may come in any pieces in time, and each piece
may be cut into stripes of rows: the pixels are the same, nothing is computed twice, and there is no seam.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import FrameCountError, SettingsError, ShapeError
from turbovaed_cli.machine.devices import empty_cache, is_out_of_memory
from turbovaed_cli.models.kernels import (
    LAYOUT_ALONE,
    Convolution,
    Preparation,
    Speedups,
    TimeConvolution,
    packs,
    shuffle,
    shuffle_order,
    state_of,
)
from turbovaed_cli.models.layers import (
    DepthwiseSeparableConv3d,
    ResnetBlock,
    SpaceThenTimeConv3d,
    TimeReplicatedConv3d,
    Upsampler3d,
)
from turbovaed_cli.models.network import StudentNetwork
from turbovaed_cli.models.scratch import Kept, Scratch
from turbovaed_cli.models.spill import Spill
from turbovaed_cli.models.stages import (
    Keep,
    StageMaker,
    StreamConvolution,
    StreamResidual,
    StreamShortcut,
    StreamStage,
    WithoutFirst,
    framewise,
    run_stages,
    stripes_of,
)
from turbovaed_cli.models.tape import Tape

Step = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # of a decode (C, n, h, w) to (3, m, H, W), and latents


class FastDecoder:
    """A student prepared for decoding: its weights in the fastest layouts, in `dtype`, on the student's device.

    The weights must not change any more. Decode piece by piece with `StreamingDecoder`, or a whole clip with `decode`.
    `speedups` None takes those that are known to be faster on the device: all on a CPU, only the layout elsewhere.
    """

    preparation: type[Preparation] = Preparation  # of the input of a convolution

    def __init__(self, student: StudentNetwork, dtype: torch.dtype | None = None, speedups: Speedups | None = None) -> None:
        self.student, self.dtype, self.device = student, dtype or student.dtype, student.device
        speedups = speedups or (Speedups() if self.device.type == "cpu" else LAYOUT_ALONE)
        self.speedups = replace(speedups, packed=speedups.packed and packs(self.dtype))
        self.sums = self.speedups.sums_in(self.dtype)
        self.scratch = Scratch()
        self._kernels: list[Convolution] = []
        self._makers = list(self._makers_of(student))

    def stages(self, keep: Keep = Kept) -> list[StreamStage]:
        """Return the decoder as new stages, which keep frames in memories that `keep` makes; weights are shared."""
        return [make(keep) for make in self._makers]

    def for_pieces(self, _latents: Tensor) -> "FastDecoder":
        """Return the decoder for a stream of pieces like these latents (B, C, n, h, w); GpuDecoder has several."""
        return self

    def stepper(self, _stages: Sequence[StreamStage]) -> Step:
        """Return what takes a piece of one clip through its stages, after which more follow."""
        return _called

    def held(self) -> list[Tensor]:
        """Return the prepared weights and the reused memory."""
        return [*self.scratch.blocks(), *(weight for kernel in self._kernels for weight in kernel.prepared())]

    def forget(self) -> None:
        """Drop the prepared weights and the reused memory; the next decode makes them again."""
        self.scratch.clear()
        for kernel in self._kernels:
            kernel.forget()

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int = 0, rows: int = 0) -> Tensor:
        """Decode latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1], not clamped.

        It works on `frames` latent frames and `rows` latent rows at a time (0: all).
        """
        decoder, ratio = StreamingDecoder(self, rows=rows), int(self.student.spatial_compression_ratio)
        length, height, width = self.student.pixel_frames(latents.shape[2]), latents.shape[3] * ratio, latents.shape[4] * ratio
        video = torch.empty(latents.shape[0], 3, length, height, width, device=self.device, dtype=self.dtype)
        done = 0
        for made in decoder.decode(latents.split(frames or latents.shape[2], dim=2)):
            video[:, :, done : done + made.shape[2]] = made
            done += made.shape[2]
        assert done == length, (done, length)
        return video

    def _makers_of(self, student: StudentNetwork) -> Iterator[StageMaker]:
        yield from self._convolution(student.conv_in)
        for block in (student.mid_block, *student.up_blocks):
            if hasattr(block, "conv_in"):
                yield self._residual(cast(ResnetBlock, block.conv_in))
            if hasattr(block, "upsamplers"):
                yield from self._upsampling(cast(Upsampler3d, block.upsamplers[0]))
            for resnet in block.resnets:
                yield self._residual(cast(ResnetBlock, resnet))
        activation = _name_of(student.act_out)
        for upsampler in student.tail_upsamplers:
            yield from self._convolution(upsampler.conv, activation, shuffled=(1, 2))
            yield framewise(partial(shuffle, time=1))
        patch = student.patch_out
        yield from self._convolution(student.conv_out, activation, shuffled=(1, patch) if patch > 1 else None)
        if patch > 1:
            yield framewise(partial(shuffle, time=1, space=patch))

    def _kernel(self, convolution: nn.Module, shuffled: tuple[int, int] | None = None) -> Convolution:
        """Return the kernel of a convolution; if a shuffle by the factors `shuffled` (time, space) follows, in its order."""
        inner = cast(nn.Conv3d, convolution)
        weight, bias = inner.weight.detach(), cast(Tensor, inner.bias).detach()
        if shuffled:
            order = shuffle_order(len(bias), *shuffled).to(bias.device)
            weight, bias = weight[order], bias[order]
        weight = weight.unsqueeze(2) if weight.ndim == 4 else weight  # 2-D: a convolution of one frame
        self._kernels.append(Convolution(weight, bias, inner.groups, self.dtype, self.speedups, self.scratch))
        return self._kernels[-1]

    def _convolution(
        self, convolution: nn.Module, activation: str | None = None, shuffled: tuple[int, int] | None = None
    ) -> Iterator[StageMaker]:
        """Yield the stages of a convolution, after norm and activation if one is named."""
        causal = bool(getattr(convolution, "causal", False))
        if isinstance(convolution, DepthwiseSeparableConv3d):
            yield self._stage(self._kernel(convolution.depthwise_conv), activation, causal=causal)
            yield framewise(partial(self._kernel(convolution.pointwise_conv), pad_height=True))
        elif isinstance(convolution, SpaceThenTimeConv3d):
            yield self._stage(self._kernel(convolution.spatial_conv, shuffled), activation)
            weight = convolution.temporal_conv.weight
            if shuffled:
                weight = weight[shuffle_order(len(weight), *shuffled).to(weight.device)]
            yield self._stage(TimeConvolution(weight, self.dtype), causal=causal)
        else:
            inner = convolution.conv if isinstance(convolution, TimeReplicatedConv3d) else convolution
            yield self._stage(self._kernel(inner, shuffled), activation, causal=causal)

    def _stage(self, kernel: Convolution | TimeConvolution, activation: str | None = None, *, causal: bool = False) -> StageMaker:
        prepare, scratch = self.preparation(activation), self.scratch
        return lambda keep: StreamConvolution(kernel, prepare, scratch, keep(), causal=causal)

    def _residual(self, resnet: ResnetBlock) -> StageMaker:
        makers = [
            *self._convolution(resnet.conv1, _name_of(resnet.act1)),
            *self._convolution(resnet.conv2, _name_of(resnet.act2)),
        ]
        shortcut, sums = None, self.sums
        if hasattr(resnet, "conv_shortcut"):
            pointwise = partial(self._kernel(resnet.conv_shortcut.conv), pad_height=True)
            shortcut = StreamShortcut(resnet.norm3, pointwise, sums)
        return lambda keep: StreamResidual([make(keep) for make in makers], shortcut, keep(), sums)

    def _upsampling(self, upsampler: Upsampler3d) -> Iterator[StageMaker]:
        time, space = upsampler.time, upsampler.space
        yield from self._convolution(upsampler.conv, shuffled=(time, space))
        yield framewise(partial(shuffle, time=time, space=space), time)
        if upsampler.drop_first_frame:
            yield lambda _keep: WithoutFirst()


def _called(run: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    return run(latents)


def _name_of(activation: nn.Module) -> str:
    return "relu" if isinstance(activation, nn.ReLU) else "silu"


def fast_form(student: StudentNetwork) -> FastDecoder:
    """Return the fast form of a student's weights: made at the first call, and again after they have changed or moved.

    Changes through a parameter's `.data` are not noticed. A running stream keeps the weights it began with.
    """
    weights = state_of(student.parameters())
    if student.fast_form_of is None or student.fast_form_of[0] != (student.fast, weights):
        speedups = LAYOUT_ALONE if student.fast is False else None
        has_choice = student.fast is not False and student.fast_form_class is not None
        made_by = cast(type[FastDecoder], student.fast_form_class) if has_choice else FastDecoder
        fast = made_by(student, speedups=speedups)
        fast.student = cast(StudentNetwork, weakref.proxy(student))  # a strong reference would keep both alive in a cycle
        student.fast_form_of = (student.fast, weights), fast
    return cast(FastDecoder, student.fast_form_of[1])


class StreamingDecoder:
    """Decode latents chunk by chunk, equal to the student's decode of the whole clip.

        decoder = StreamingDecoder(student)
        for chunk in chunks:               # (B, C, n, h, w), any n, in the teacher's raw latent space
            show(decoder.push(chunk))      # (B, 3, m, H, W) in [-1, 1], not clamped; m may be 0
        show(decoder.finish())

    After `finish` the next clip can begin. Memory is needed for the longest chunk and for the few frames that every convolution
    keeps. With `rows`, only that many latent rows of a chunk are decoded at a time, to the same pixels. `spill` is a folder on
    whose disk the kept frames are stored until they are needed. `student` may be a FastDecoder, which several may share. Raises
    ShapeError if a chunk does not fit the student or the chunks before it.
    """

    def __init__(self, student: StudentNetwork | FastDecoder, *, rows: int = 0, spill: Path | None = None) -> None:
        self.fast = student if isinstance(student, FastDecoder) else fast_form(student)
        self.student = self.fast.student if isinstance(student, FastDecoder) else student
        if rows < 0:
            raise SettingsError(f"rows is {rows}; it cannot be below 0")
        self.rows, self._spill = rows, Spill(spill) if spill else None
        self._most = 1  # latent frames of the longest piece
        self._start()

    @property
    def lookahead_frames(self) -> int:
        """The number of pixel frames by which the output lags; `finish` returns them."""
        return self._frames_short(pads=True)

    @property
    def context_frames(self) -> int:
        """The number of pixel frames, before and after it, on whose latents a pixel frame depends."""
        return self._frames_short(pads=False)

    def _frames_short(self, *, pads: bool) -> int:
        many = 1000
        frames = many
        for stage in self.fast.stages():
            frames = stage.frames_out(frames, pads=pads)
        return self.student.pixel_frames(many) - frames

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Take the next latent frames (B, C, n, h, w); return the pixel frames (B, 3, m, H, W) that they determine."""
        self._check(latents)
        if self._first is None:
            return self._nothing(latents.shape)
        self._most = max(self._most, latents.shape[2])
        clips = zip(self._clips, self._steps, latents, strict=True)
        return self._joined([step(partial(self._clip, clip, end=False), one) for clip, step, one in clips])

    def finish(self) -> Tensor:
        """Return the remaining frames, (B, 3, m, H, W); raises FrameCountError if no latent frame was pushed."""
        return torch.cat(list(self.flush()), dim=2)

    @torch.no_grad()
    def flush(self) -> Iterator[Tensor]:
        """Yield the frames of `finish`, (B, 3, m, H, W), in pieces no larger than those of `push`."""
        if self._first is None:
            raise FrameCountError("no latents were pushed, so there is nothing to finish")
        try:
            flushes = [self._flush(clip) for clip in self._clips]
            yield self._nothing(self._first)
            for frames in zip(*flushes, strict=True):
                yield self._joined(frames)
        finally:
            self._start()

    @torch.no_grad()
    def decode(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the frames (B, 3, m, H, W) of one clip, whose latents (B, C, n, h, w) come in `pieces`.

        They are those of `push` and `flush`. A clip that was begun before is dropped. Raises FrameCountError if there is no
        piece, and ShapeError as `push` does.
        """
        self._start()
        pieces = iter(pieces)
        try:
            before = next(pieces, None)
            for piece in pieces:
                assert before is not None
                yield self.push(before)
                before = piece
            if before is None:
                raise FrameCountError("no latents were pushed, so there is nothing to finish")
            if self._first is None and before.shape[2]:  # all in one piece: no frames have to be kept
                self._check(before, streams=False)
                yield self._joined([self._clip(clip, before[i], end=True) for i, clip in enumerate(self._clips)])
            else:
                yield self.push(before)
                yield from self.flush()
        finally:
            self._start()

    def _start(self) -> None:
        self._clips: list[list[StreamStage]] = []
        self._steps: list[Step] = []  # for each clip
        if self._spill:
            self._spill.clear()
        self._first: torch.Size | None = None

    def _check(self, latents: Tensor, *, streams: bool = True) -> None:
        self.student.check_latents(latents)
        if latents.shape[2] and self._first is None:
            self._first = latents.shape
            has_room = not self.rows and self._spill is None
            fast = self.fast.for_pieces(latents) if streams and has_room else self.fast
            self._clips = [fast.stages(self._spill.memory if self._spill else Kept) for _ in range(latents.shape[0])]
            self._steps = [fast.stepper(clip) if has_room else _called for clip in self._clips]
        if self._first is not None and (latents.shape[:2] + latents.shape[3:]) != (self._first[:2] + self._first[3:]):
            raise ShapeError(
                f"latents are {tuple(latents.shape)}, and those before them {tuple(self._first)}: only the frames may differ"
            )

    def _joined(self, clips: Sequence[Tensor]) -> Tensor:
        return clips[0][None] if len(clips) == 1 else torch.stack(list(clips))

    def _clip(self, stages: Sequence[StreamStage], latents: Tensor, *, end: bool) -> Tensor:
        """Decode a piece (C, n, h, w) of one clip to (3, m, H, W)."""
        latents = latents.to(self.fast.device, self.fast.dtype)
        frames = latents.movedim(1, 0).contiguous(memory_format=torch.channels_last)
        return self._through(stages, frames.split(self.rows or frames.shape[2], dim=2), end=end)

    def _through(self, stages: Sequence[StreamStage], stripes: Sequence[Tensor], *, end: bool) -> Tensor:
        """Pass one piece through stages, stripe by stripe, to (3, m, H, W)."""
        made = [run_stages(stages, stripe, at) for at, stripe in stripes_of(stripes, end=end)]
        return (made[0] if len(made) == 1 else torch.cat(made, dim=2)).movedim(0, 1).to(self.fast.dtype)

    def _flush(self, stages: Sequence[StreamStage]) -> Iterator[Tensor]:
        """Flush one clip stage by stage: the last frames of each stage go through the later stages in pieces (3, m, H, W)."""
        assert self._first is not None
        _, channels, _, height, width = self._first
        x = torch.empty(0, channels, height, width, device=self.fast.device, dtype=self.fast.dtype)
        stripes: Sequence[Tensor] = x.split(self.rows or height, dim=2)
        most = self._most
        for number, stage in enumerate(stages):
            left = [stage(x, at) for at, x in stripes_of(stripes, end=True)]
            most *= getattr(stage, "time", 1)
            pieces = zip(*[x.split(most) for x in left], strict=True) if left[0].shape[0] else ()
            for piece in pieces:
                yield self._through(stages[number + 1 :], piece, end=False)
            stripes = [x[:0] for x in left]

    def _nothing(self, shape: torch.Size) -> Tensor:
        batch, _, _, height, width = shape
        ratio = int(self.student.spatial_compression_ratio)
        return torch.empty(batch, 3, 0, height * ratio, width * ratio, device=self.fast.device, dtype=self.fast.dtype)


def decode_as_memory_allows(
    student: StudentNetwork | FastDecoder,
    latents: Iterable[Tensor],
    frames: int,
    *,
    rows: int = 0,
    spill: Path | None = None,
    smaller: Callable[[int, int], None] = lambda before, now: None,
) -> Iterator[Tensor]:
    """Yield the frames (B, 3, m, H, W) of one clip as StreamingDecoder.decode does, with smaller pieces if memory runs out.

    `latents` come in pieces (B, C, n, h, w). Decoded pieces have at most `frames` latent frames; if one does not fit, that
    number is halved. A new decoder begins far enough before the piece that it keeps the same frames again, so every frame is
    yielded once, unchanged. `smaller` is called with the old and the new number of latent frames. The error is raised if a
    piece of one latent frame does not fit, or if it comes from `latents` itself.
    """
    fast = student if isinstance(student, FastDecoder) else fast_form(student)
    ratio = int(fast.student.temporal_compression_ratio)
    context = -(-StreamingDecoder(fast).context_frames // ratio)
    # Frames that are not out yet depend on this many latents before the newest.
    tape, done = Tape(latents, context + 2 + 2 * frames if frames > 1 else 0), 0
    while True:
        decoder = StreamingDecoder(fast, rows=rows, spill=spill)
        known = done - ratio * tape.start  # frames of this decoder that are out already
        try:
            for video in decoder.decode(tape.pieces(frames)):
                made = video[:, :, max(known, 0) :]
                known -= video.shape[2]
                done += made.shape[2]
                yield made
        except Exception as error:
            if tape.has_failed or frames == 1 or not is_out_of_memory(error):
                raise
        else:
            return
        del decoder  # frees, as the error is gone too, everything that the piece had made
        fast.scratch.clear()
        empty_cache(fast.device)
        smaller(frames, frames // 2)
        frames //= 2
