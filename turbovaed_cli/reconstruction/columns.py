"""Frames of several decoders side by side, decoded in windows; also the frames of a decoder that only takes whole clips."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import decode_without_gradients, pixel_frames
from turbovaed_cli.models.pair import Pair, short_name
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.reconstruction.windows import check_finite, crossfade, reconstruct_window, window_frames, windows_of
from turbovaed_cli.settings import ReconstructSettings
from turbovaed_cli.video import find_codec, to_model, to_uint8, to_uint16

LATENTS_AT_ONCE, LATENTS_SHARED = 9, 2  # of a decoder that only takes whole clips, on latents of a longer one


def column_labels(pair: Pair, settings: ReconstructSettings) -> tuple[str, ...]:
    """Return the names of the columns of an output frame; of a single column, which has no label, an empty tuple."""
    if not settings.compare and not pair.beside:
        return ()
    own = "student" if isinstance(pair.student, StudentDecoder) else short_name(pair.name)
    return ("source", *(("teacher",) if settings.compare else ()), own, *pair.labels)


def decoded_frames(
    frames: Iterator[np.ndarray], height: int, width: int, pair: Pair, settings: ReconstructSettings
) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) of the pair's decoder, or (H, n * W, 3) of the columns of `column_labels`. Windows are cross-faded.

    A clip of one window is decoded as a whole. `eval` measures short clips this way. `reconstruct` decodes this way for
    `compare`, with decoders beside the pair's, and for a decoder that does not stream.
    """
    assert pair.teacher is not None
    teacher, has_source = pair.teacher, bool(column_labels(pair, settings))
    length = window_frames(teacher.spec, height, width, settings.window, settings.overlap)

    def decoded() -> Iterator[tuple[Tensor, bool]]:
        for window, is_last in windows_of(frames, length, settings.overlap):
            videos = reconstruct_window(window, teacher, pair.decoders, with_teacher=settings.compare)
            if has_source:
                videos.insert(0, to_model(window))
            yield torch.cat(videos, dim=3), is_last

    to_pixels = pixels_of(settings)
    for stretch in crossfade(decoded(), settings.overlap):
        yield from to_pixels(stretch)


def windowed_in_words(pair: Pair, height: int, width: int, settings: ReconstructSettings, num_frames: int = 0) -> str:
    """Return a note that a decoder without a stream is approximated in windows; "" if the clip fits into one."""
    assert pair.teacher is not None
    length = window_frames(pair.teacher.spec, height, width, settings.window, settings.overlap)
    if 0 < num_frames <= length:
        return ""
    return (
        f"{short_name(pair.name)} ({pair.student.family}) decodes whole clips only: windows of {length} frames fade over "
        f"{settings.overlap}, which is an approximation"
    )


def is_one_window(latents: Tensor) -> bool:
    """Whether latents (C, t, h, w) are few enough for a decoder that only takes whole clips."""
    return latents.shape[1] <= LATENTS_AT_ONCE


def decoded_latents(decoder: Decoder, latents: Tensor) -> Iterator[Tensor]:
    """Yield the video (3, n, H, W) of latents (C, t, h, w) from a decoder that only takes whole clips, in fp32 on the CPU.

    More than LATENTS_AT_ONCE latent frames are decoded in windows that share LATENTS_SHARED and fade, an approximation. A
    decoder whose number of frames is another than 1 + (t - 1) * ratio decodes everything at once.
    """
    ratio, num = int(decoder.temporal_compression_ratio), latents.shape[1]
    is_regular = all(pixel_frames(decoder, t) == 1 + (t - 1) * ratio for t in (2, LATENTS_AT_ONCE))
    if is_one_window(latents) or not is_regular:
        yield _checked(decoder, latents)
        return

    def windows() -> Iterator[tuple[Tensor, bool]]:
        for start in count(0, LATENTS_AT_ONCE - LATENTS_SHARED):
            is_last = start + LATENTS_AT_ONCE >= num
            yield _checked(decoder, latents[:, start : start + LATENTS_AT_ONCE]), is_last
            if is_last:
                return

    # The first latent of a window stands for one frame: the last of the frames that it has within a clip.
    yield from crossfade(windows(), 1 + (LATENTS_SHARED - 1) * ratio)


def _checked(decoder: Decoder, latents: Tensor) -> Tensor:
    video = decode_without_gradients(decoder, latents[None])
    check_finite([video])
    return video[0].float().clamp(-1, 1).cpu()


def pixels_of(settings: ReconstructSettings) -> Callable[[Tensor], np.ndarray]:
    """Return the function that converts a video in [-1, 1] to frames of the written bit depth."""
    return to_uint8 if (settings.bits or find_codec(settings.codec).bits[0]) == 8 else to_uint16


def labelled(frame: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """Write each label in the top left corner of its column, white on black; frames are uint8 or uint16."""
    frame = frame.copy()
    column = frame.shape[1] // len(labels)
    for i, label in enumerate(labels):
        left = i * frame.shape[1] // len(labels)
        corner = frame[:15, left : left + min(9 + 6 * len(label), column)]
        image = Image.new("L", (corner.shape[1], corner.shape[0]))
        ImageDraw.Draw(image).text((4, 2), label, fill=255)
        corner[:] = np.asarray(image)[:, :, None].astype(frame.dtype) * (1 if frame.dtype == np.uint8 else 257)
    return frame
