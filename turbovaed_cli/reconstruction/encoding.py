"""Encoding videos of any length in bounded memory: the teacher's latents, as frames come.

Where the class is causal and local, in the numbers of a whole-clip encode: LTX, whose convolutions are handed the frames they
would have seen, and CogVideoX, whose own whole-clip encode goes through the video by eight frames. Elsewhere (attention,
norms over time, convolutions that look ahead) in windows that overlap and fade into each other, which is an approximation.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import FrameCountError
from turbovaed_cli.models.kernels import Kept
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.specs import TeacherSpec

WINDOW = 33  # pixel frames of a window, unless asked otherwise
_SHORTER_WINDOW = 17  # if memory is short
OVERLAP = 4  # latent frames that neighbouring windows share; of windows shorter than two of that, half of theirs
_CARRIED = ("AutoencoderKLLTXVideo",)
_CHUNKED = {"AutoencoderKLCogVideoX": 8}  # frames that the class itself encodes at once, behind the first


def encodes_exactly(teacher: Teacher) -> bool:
    """Whether `encoded` gives the latents of the whole video at once, within rounding; elsewhere windows fade into each other."""
    is_causal = getattr(teacher.vae.config, "encoder_causal", True)
    return teacher.spec.class_name in _CHUNKED or (teacher.spec.class_name in _CARRIED and is_causal)


def piece_lengths(teacher: Teacher, most: int, num_frames: int = 0) -> list[int]:
    """Pixel frames that `encoded` may take at once, about `most` or fewer, from the most to the fewest.

    Of a teacher that encodes in windows these are their lengths, whatever `most` is: shorter ones are a worse approximation.
    `num_frames` are those of the video, which is no longer; 0: not known.
    """
    spec, ratio = teacher.spec, teacher.spec.time_ratio
    if not encodes_exactly(teacher):
        asked = (min(length, num_frames or length) for length in (WINDOW, _SHORTER_WINDOW, 1))
        return list(dict.fromkeys(_window_length(spec, length) for length in asked))
    if chunk := _CHUNKED.get(spec.class_name):
        return [chunk]
    whole = -(-(num_frames - 1) // ratio) if num_frames else WINDOW  # groups of frames, after the first frame
    groups = max(min(min(most, WINDOW) // ratio, whole), 1)
    lengths = [groups * ratio]
    while groups > 1:
        groups //= 2
        lengths.append(groups * ratio)
    return lengths


def _window_length(spec: TeacherSpec, frames: int) -> int:
    """Frames of a window of about `frames`: two latents at least, of which its neighbour has one."""
    return spec.frames.at_least(max(frames, spec.pixel_frames(2)))


def encoded(teacher: Teacher, pieces: Iterable[Tensor], frames: int = 0) -> Iterator[Tensor]:
    """The posterior means (B, C, n, h, w) of a video that comes in pieces (B, 3, m, H, W) in [-1, 1], any m, one after the other.

    H and W are multiples of what the teacher wants; a number of frames that it does not take is made up to one by repeating
    the last. About `frames` pixel frames are encoded at once (0: eight where that is exact, else 33).
    """
    source = _Frames(pieces)
    if source.ended:
        raise FrameCountError("there is no frame to encode")
    if not encodes_exactly(teacher):
        yield from _by_windows(teacher, source, frames or WINDOW)
        return
    step = _CHUNKED.get(teacher.spec.class_name) or max(frames // teacher.spec.time_ratio, 1) * teacher.spec.time_ratio
    encode, multiple = _one_after_the_other(teacher), teacher.spec.frames.step
    first = source.take(1 + step)
    yield encode(_made_up(first, teacher.spec.frames.at_least(first.shape[2])))
    while not source.ended:
        piece = source.take(step)
        yield encode(_made_up(piece, -(-piece.shape[2] // multiple) * multiple))


class _Frames:
    """A video in pieces, taken in others."""

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self._pieces = iter(pieces)
        self._held: list[Tensor] = []

    @property
    def ended(self) -> bool:
        """Whether no frame is left."""
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._held = [piece] if piece.shape[2] else []
        return False

    def take(self, count: int) -> Tensor:
        """The next `count` frames, or those that are left."""
        taken: list[Tensor] = []
        while count and not self.ended:
            piece = self._held.pop()
            taken.append(piece[:, :, :count])
            if piece.shape[2] > count:
                self._held = [piece[:, :, count:]]
            count -= taken[-1].shape[2]
        return torch.cat(taken, dim=2)


def _made_up(video: Tensor, frames: int) -> Tensor:
    """The video with its last frame repeated until there are `frames`."""
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, frames - video.shape[2], -1, -1)], dim=2)


# --- exactly ------------------------------------------------------------------------------------------------------


def _one_after_the_other(teacher: Teacher) -> Callable[[Tensor], Tensor]:
    """A function that encodes the pieces of one video in order: the first as a clip, those behind it as what goes on."""
    if teacher.spec.class_name in _CHUNKED:
        return partial(_chunk, teacher.vae, {})
    carry = _Carry()

    def encode(video: Tensor) -> Tensor:
        with carry.through(teacher.vae.encoder):
            return teacher.posterior(video).mean

    return encode


@torch.no_grad()
def _chunk(vae: Any, state: dict[str, Any], video: Tensor) -> Tensor:
    """A chunk of CogVideoX as its `encode` treats it, the caches of its convolutions carried in `state`."""
    parameter = next(vae.parameters())
    made, state["cache"] = vae.encoder(video.to(parameter.device, parameter.dtype), conv_cache=state.get("cache"))
    moments = made if vae.quant_conv is None else vae.quant_conv(made)
    return cast(Tensor, moments.chunk(2, dim=1)[0])


class _Carry:
    """Hooks on an LTX encoder: behind the first piece, what stands for the frames before is those frames.

    A causal convolution repeats its first frame kernel - 1 times; in a later piece the last frames of the one before take
    their place, one less than the kernel's by the stride. A downsampler by shuffling repeats frames to fill its first group;
    in a later piece it is given a group of any frames instead, and what it makes of them is dropped.
    """

    def __init__(self) -> None:
        self.goes_on = False
        self._kept = Kept()

    @contextmanager
    def through(self, encoder: nn.Module) -> Iterator[None]:
        """What is encoded in here is the next piece; the encoder is as it was before and after."""
        handles: list[Any] = []
        groups: dict[nn.Module, int] = {}
        try:
            for module in encoder.modules():
                if type(module).__name__ == "LTXVideoDownsampler3d":
                    group = cast(tuple[int, int, int], module.stride)[0]
                    if group > 1:
                        groups[cast(nn.Module, module.conv)] = group
                        handles.append(module.register_forward_pre_hook(partial(self._fill_group, group)))
                        handles.append(module.register_forward_hook(self._drop_group))
            for module in encoder.modules():
                if type(module).__name__ == "LTXVideoCausalConv3d" and cast(tuple[int, ...], module.kernel_size)[0] > 1:
                    hook = partial(self._carry, groups.get(module, 0))
                    handles.append(cast(nn.Conv3d, module.conv).register_forward_pre_hook(hook))
            yield
            self.goes_on = True
        finally:
            for handle in handles:
                handle.remove()

    def _carry(self, group: int, convolution: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """`group` frames behind the repeated ones are any frames, whose outputs are dropped."""
        (padded,) = inputs
        inner = cast(nn.Conv3d, convolution)
        pad, keep = inner.kernel_size[0] - 1, inner.kernel_size[0] - inner.stride[0]
        if self.goes_on:
            kept, new = self._kept[convolution], padded[:, :, pad + group :]
            padded = torch.cat([padded[:, :, :group], kept, new], dim=2)
        self._kept[convolution] = padded[:, :, padded.shape[2] - keep :]
        return (padded,)

    def _fill_group(self, group: int, _module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        return (torch.cat([x[:, :, :1], x], dim=2),) if self.goes_on else (x,)

    def _drop_group(self, _module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output[:, :, 1:] if self.goes_on else output


# --- in windows ---------------------------------------------------------------------------------------------------


def _by_windows(teacher: Teacher, source: _Frames, frames: int) -> Iterator[Tensor]:
    """Windows of `frames` that share OVERLAP latent frames, or half of theirs if that is less, and fade over them."""
    spec = teacher.spec
    length = _window_length(spec, frames)
    overlap = min(OVERLAP, spec.latent_frames(length) // 2)
    step = (spec.latent_frames(length) - overlap) * spec.time_ratio
    # The first latent of a window of a causal class stands for one frame only, and counts for nothing.
    fade = torch.arange(overlap) / overlap if spec.frames.first else (torch.arange(overlap) + 1) / (overlap + 1)
    weight = fade.view(-1, 1, 1)
    window, tail = source.take(length), None
    while True:
        made = teacher.encode(_made_up(window, spec.frames.at_least(window.shape[2]))).mean
        if tail is not None:
            weight = weight.to(made)
            made = torch.cat([tail * (1 - weight) + made[:, :, :overlap] * weight, made[:, :, overlap:]], dim=2)
        if source.ended:
            yield made
            return
        yield made[:, :, :-overlap]
        tail = made[:, :, -overlap:]
        window = torch.cat([window[:, :, step:], source.take(step)], dim=2)
