"""Encode videos of any length to the teacher's latents, piece by piece, in bounded memory.

Causal, local teachers give the latents of a whole-clip encode, within rounding. For LTX, each convolution is handed the frames
it would have seen. CogVideoX's own whole-clip encode already takes eight frames at a time. Other teachers (attention, norms
over time, convolutions that look ahead) are encoded in overlapping windows that are cross-faded, which is an approximation.
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
OVERLAP = 4  # latent frames that neighbouring windows share; at most half of a window
_CARRIED = ("AutoencoderKLLTXVideo",)
_CHUNKED = {"AutoencoderKLCogVideoX": 8}  # frames that the class itself encodes at once, after the first frame


def encodes_exactly(teacher: Teacher) -> bool:
    """Whether `encoded` gives the latents of a whole-clip encode, within rounding; if not, it cross-fades windows."""
    is_causal = getattr(teacher.vae.config, "encoder_causal", True)
    return teacher.spec.class_name in _CHUNKED or (teacher.spec.class_name in _CARRIED and is_causal)


def piece_lengths(teacher: Teacher, most: int, num_frames: int = 0) -> list[int]:
    """Return the numbers of pixel frames that `encoded` may take at once, from the most (about `most`) to the fewest.

    For a teacher that encodes in windows these are the window lengths, whatever `most` is; shorter ones approximate worse.
    `num_frames` is the length of the video; 0 if it is not known.
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
    """Return the length of a window of about `frames` pixel frames: at least two latents, so that it can share one."""
    return spec.frames.at_least(max(frames, spec.pixel_frames(2)))


def encoded(teacher: Teacher, pieces: Iterable[Tensor], frames: int = 0) -> Iterator[Tensor]:
    """Yield the posterior means (B, C, n, h, w) of a video that comes in pieces (B, 3, m, H, W) in [-1, 1], of any m.

    H and W are multiples of the teacher's ratio. The last frame is repeated up to a number of frames that the teacher takes.
    About `frames` pixel frames are encoded at once (0: eight if the teacher encodes exactly, else 33). Raises
    FrameCountError if there is no frame.
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
    """A video that comes in pieces of any length and is taken in pieces of other lengths."""

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
        """Return the next `count` frames (B, 3, count, H, W), or those that are left."""
        taken: list[Tensor] = []
        while count and not self.ended:
            piece = self._held.pop()
            taken.append(piece[:, :, :count])
            if piece.shape[2] > count:
                self._held = [piece[:, :, count:]]
            count -= taken[-1].shape[2]
        return torch.cat(taken, dim=2)


def _made_up(video: Tensor, frames: int) -> Tensor:
    """Repeat the last frame of a video (B, 3, T, H, W) until there are `frames`."""
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, frames - video.shape[2], -1, -1)], dim=2)


# --- exactly ------------------------------------------------------------------------------------------------------


def _one_after_the_other(teacher: Teacher) -> Callable[[Tensor], Tensor]:
    """Return a function that encodes the pieces of one video in order: the first as a clip, later ones as its continuation."""
    if teacher.spec.class_name in _CHUNKED:
        return partial(_chunk, teacher.vae, {})
    carry = _Carry()

    def encode(video: Tensor) -> Tensor:
        with carry.through(teacher.vae.encoder):
            return teacher.posterior(video).mean

    return encode


@torch.no_grad()
def _chunk(vae: Any, state: dict[str, Any], video: Tensor) -> Tensor:
    """Encode a chunk as CogVideoX's own `encode` does; `state` carries the caches of its convolutions."""
    parameter = next(vae.parameters())
    made, state["cache"] = vae.encoder(video.to(parameter.device, parameter.dtype), conv_cache=state.get("cache"))
    moments = made if vae.quant_conv is None else vae.quant_conv(made)
    return cast(Tensor, moments.chunk(2, dim=1)[0])


class _Carry:
    """Hooks on an LTX encoder that replace its padding by the real frames, in all pieces after the first.

    A causal convolution pads with its first frame, repeated kernel - 1 times. In a later piece the last kernel - stride frames
    of the piece before take their place. A downsampler by shuffling repeats frames to fill its first group. In a later piece
    it is given a group of filler frames, and its output for them is dropped.
    """

    def __init__(self) -> None:
        self.goes_on = False
        self._kept = Kept()

    @contextmanager
    def through(self, encoder: nn.Module) -> Iterator[None]:
        """Encode the next piece within this context; afterwards the encoder is as it was before."""
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
        """Replace the repeated frames by those kept from the piece before; `group` leading filler frames stay in front."""
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
    """Encode windows of `frames` that share OVERLAP latent frames, at most half of theirs, and cross-fade these."""
    spec = teacher.spec
    length = _window_length(spec, frames)
    overlap = min(OVERLAP, spec.latent_frames(length) // 2)
    step = (spec.latent_frames(length) - overlap) * spec.time_ratio
    # With a causal teacher the first latent of a window stands for one frame only: its weight is zero.
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
