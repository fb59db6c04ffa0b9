"""Decode long videos in bounded memory, in overlapping windows that are cross-faded.

A clip that fits into one window gives exactly a whole-clip decode. Longer clips are approximate at the seams.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.errors import FrameCountError, NonFiniteError
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import decode_without_gradients
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.specs import TeacherSpec
from turbovaed_cli.video import to_model

SMALLEST_WINDOW, LARGEST_WINDOW = 17, 33
PIXELS_PER_WINDOW = 33 * 512 * 512  # beyond this, larger frames get shorter windows


def window_frames(spec: TeacherSpec, height: int, width: int, asked: int, overlap: int) -> int:
    """Return the frames per window: `asked`, or for 0 what fits PIXELS_PER_WINDOW, rounded up to a count the teacher takes."""
    frames = asked or min(max(PIXELS_PER_WINDOW // (height * width), SMALLEST_WINDOW), LARGEST_WINDOW)
    return spec.frames.at_least(max(frames, 2 * overlap + 1))


def windows_of(frames: Iterable[np.ndarray], length: int, overlap: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Cut frames into windows (T, H, W, 3) of `length` that share `overlap`; the flag marks the last, which may be shorter."""
    stream = iter(frames)
    window = list(islice(stream, length))
    while window:
        following = list(islice(stream, length - overlap))
        yield np.stack(window), not following
        if not following:
            return
        window = window[-overlap:] + following if overlap else following


def pad_size(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Repeat the right and bottom edges of a video (3, T, H, W) up to `size` (H, W)."""
    height, width = video.shape[-2:]
    return functional.pad(video, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def pad_to_valid(video: Tensor, spec: TeacherSpec) -> Tensor:
    """Repeat the last frame and the right and bottom edges of a video (3, T, H, W) until the teacher takes it."""
    _, frames, height, width = video.shape
    more_frames = spec.frames.at_least(frames) - frames
    video = pad_size(video, (height + -height % spec.space_ratio, width + -width % spec.space_ratio))
    return torch.cat([video, video[:, -1:].expand(-1, more_frames, -1, -1)], dim=1)


def reconstruct_window(frames: np.ndarray, teacher: Teacher, decoders: Iterable[Decoder], *, with_teacher: bool) -> list[Tensor]:
    """Encode frames (T, H, W, 3) uint8 and decode them with each of `decoders`, to videos (3, T, H, W) in [-1, 1], fp32, on the CPU.

    With `with_teacher` the teacher's video comes first in the list. Raises NonFiniteError for values that are not finite, and
    FrameCountError for a decoder that makes fewer frames.
    """
    num_frames, height, width, _ = frames.shape
    latents = teacher.encode(pad_to_valid(to_model(frames, teacher.device), teacher.spec)[None]).mean
    decoded = [teacher.decode(latents)] if with_teacher else []
    decoded += [decode_without_gradients(decoder, latents) for decoder in decoders]
    check_finite(decoded)
    if (fewest := min(video.shape[2] for video in decoded)) < num_frames:
        raise FrameCountError(f"a decoder makes {fewest} frames of {num_frames}", "it belongs to other latents")
    return [video[0, :, :num_frames, :height, :width].float().clamp(-1, 1).cpu() for video in decoded]


def check_finite(videos: Iterable[Tensor]) -> None:
    """Raise NonFiniteError if a decoded video, of any shape, has a value that is not finite."""
    for video in videos:
        if not bool(torch.isfinite(video).all()):
            is_widest = video.dtype == torch.float32
            hint = "check the weights, and that the latents are those of this decoder" if is_widest else "use `dtype` fp32"
            raise NonFiniteError(f"decoding in {video.dtype} gave values that are not finite", hint)


def crossfade(windows: Iterable[tuple[Tensor, bool]], overlap: int) -> Iterator[Tensor]:
    """Join windows (C, T, H, W) that share `overlap` frames by cross-fading; yields finished stretches (C, n, H, W)."""
    tail: Tensor | None = None
    for window, is_last in windows:
        joined = window
        if tail is not None:
            shared = tail.shape[1]
            weight = ((torch.arange(shared) + 1) / (shared + 1)).view(1, -1, 1, 1)
            joined = torch.cat([tail * (1 - weight) + window[:, :shared] * weight, window[:, shared:]], dim=1)
        keep = 0 if is_last else overlap
        yield joined[:, : joined.shape[1] - keep]
        tail = joined[:, joined.shape[1] - keep :] if keep else None
