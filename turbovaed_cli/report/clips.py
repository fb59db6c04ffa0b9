"""Clips in the form that a page can show: source, teacher, student and errors in one video, so that they stay in step."""

import base64
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from turbovaed_cli.video import VideoWriter, read_frames

MAX_FRAMES = 49  # of a clip that is shown
MAX_SIDE = 512  # pixels; of a larger frame the part with the largest error is shown
ENLARGED_TO = 576  # pixels; a smaller frame is enlarged towards that, so that H.264's halved colour resolution costs it little
CRFS = (10, 14, 18, 22)  # H.264 qualities; the first within MAX_BYTES is used, and the page shows its measured PSNR
MAX_BYTES = 2_000_000  # of a clip's video
ERROR_PERCENTILE = 99.5  # of the errors of a clip; the lightest colour is the largest of these
# Dark to light in even steps of lightness, so that it is also readable in grey and for the colour-blind.
_HEAT = ((0, 0, 0), (43, 26, 94), (136, 34, 112), (217, 80, 63), (249, 160, 63), (255, 243, 176))


@dataclass(frozen=True)
class ShownClip:
    """A clip with the teacher's and the student's decode, each (T, H, W, 3) uint8."""

    name: str  # its origin, for display
    role: str  # why it is shown: "worst", "median", ...
    source: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    fps: float = 24.0
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # {"teacher": {"psnr": ..}, "student": ..}


@dataclass(frozen=True)
class ClipPart:
    """The position of a picture in the video, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class ClipVideo:
    """A ShownClip encoded for the page."""

    clip: ShownClip
    data_uri: str
    parts: dict[str, ClipPart]  # source, teacher, student, teacher_error, student_error
    num_frames: int
    fps: float
    width: int  # of the part of the frame that is shown, in pixels of the clip
    height: int
    cut: str  # "" if the whole clip is shown; else a description of the shown part
    crf: int  # the H.264 quality it was written with
    distance_db: float  # PSNR of the three pictures, decoded again from the video, against the original frames


def error_levels(video: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return the absolute error of each pixel, mean of R, G and B, 0 to 255: two (T, H, W, 3) uint8 to (T, H, W) fp32."""
    return np.abs(video.astype(np.int16) - source.astype(np.int16)).mean(axis=-1, dtype=np.float32)


def error_scale(clips: Sequence[ShownClip]) -> int:
    """Return the error, in levels of 255, that gets the lightest colour on every heat map of a page; a multiple of 4."""
    errors = [error_levels(video, clip.source) for clip in clips for video in (clip.teacher, clip.student)]
    tops = [float(np.percentile(error, ERROR_PERCENTILE)) for error in errors]
    return min(max(4 * math.ceil(max(tops, default=0.0) / 4), 4), 252)


def heat(levels: np.ndarray, scale: float) -> np.ndarray:
    """Map errors in levels of 255, of any shape, to colours (..., 3) uint8; errors above `scale` get the colour of `scale`."""
    place = np.clip(levels / scale, 0, 1) * (len(_HEAT) - 1)
    colours = [np.interp(place, range(len(_HEAT)), channel) for channel in zip(*_HEAT, strict=True)]
    return np.stack(colours, axis=-1).round().astype(np.uint8)


def heat_stops() -> list[tuple[int, str]]:
    """Return the colours of `heat` from 0 to 100 %, for a legend."""
    return [(round(100 * i / (len(_HEAT) - 1)), "#{:02x}{:02x}{:02x}".format(*colour)) for i, colour in enumerate(_HEAT)]


def encode(clip: ShownClip, scale: float) -> ClipVideo:
    """Write a clip as one H.264 video: source, teacher and student side by side, and a column with the two errors.

    It is H.264 in 4:2:0, which every browser plays. A small frame is enlarged; the page shows the middle of each block,
    which the neighbours' colours do not reach. The column is half as wide as a picture.
    """
    clip, cut = _cut(clip)
    frames, height, width, _ = clip.source.shape
    factor = {1: 1, 2: 2, 3: 2}.get(ENLARGED_TO // max(height, width), 4)
    videos = [enlarged(video, factor) for video in (clip.source, clip.teacher, clip.student)]
    errors = [error_levels(video, clip.source) for video in (clip.teacher, clip.student)]
    if factor == 1:
        errors = [error.reshape(frames, height // 2, 2, width // 2, 2).mean(axis=(2, 4)) for error in errors]
    column = np.concatenate([enlarged(heat(error, scale), max(factor // 2, 1)) for error in errors], axis=1)
    sheet = np.concatenate([*videos, column], axis=2)
    encoded, back, crf = through_h264(sheet, clip.fps)
    middle = (slice(None), slice(factor // 2, None, factor), slice(factor // 2, 3 * width * factor, factor))
    distance = np.square(back[middle].astype(np.float32) - sheet[middle]).mean()
    w, h = width * factor, height * factor
    parts = {name: ClipPart(i * w, 0, w, h) for i, name in enumerate(("source", "teacher", "student"))}
    parts |= {f"{name}_error": ClipPart(3 * w, i * (h // 2), w // 2, h // 2) for i, name in enumerate(("teacher", "student"))}
    return ClipVideo(
        clip=clip,
        data_uri="data:video/mp4;base64," + base64.b64encode(encoded).decode(),
        parts=parts,
        num_frames=frames,
        fps=clip.fps,
        width=width,
        height=height,
        cut=cut,
        crf=crf,
        distance_db=100.0 if distance == 0 else float(10 * np.log10(255**2 / distance)),
    )


class EncodedVideo(Protocol):
    """A clip that is encoded for a page."""

    @property
    def fps(self) -> float:
        """Frames per second."""
        ...

    @property
    def num_frames(self) -> int:
        """The number of frames."""
        ...

    @property
    def parts(self) -> Mapping[str, ClipPart]:
        """The place of each picture."""
        ...


def data_of_clip(video: EncodedVideo) -> dict[str, Any]:
    """Return the data that page.js needs to draw a clip."""
    return {
        "fps": video.fps,
        "frames": video.num_frames,
        "parts": {name: [part.left, part.top, part.width, part.height] for name, part in video.parts.items()},
    }


def _cut(clip: ShownClip) -> tuple[ShownClip, str]:
    """Cut a clip to at most MAX_FRAMES frames and MAX_SIDE pixels a side, even; return it with a description of the part."""
    frames, height, width, _ = clip.source.shape
    kept = min(frames, MAX_FRAMES)
    h, w = min(height, MAX_SIDE) // 2 * 2, min(width, MAX_SIDE) // 2 * 2
    if (kept, h, w) == (frames, height, width):
        return clip, ""
    error = error_levels(clip.student[:kept], clip.source[:kept]).mean(axis=0)
    top, left = largest_window(error, h, w)
    videos = {name: getattr(clip, name)[:kept, top : top + h, left : left + w] for name in ("source", "teacher", "student")}
    said = [f"the first {kept} of {frames} frames"] if kept < frames else []
    said += [f"the {w}x{h} pixels of {width}x{height} with the largest error"] if (h, w) != (height, width) else []
    return replace(clip, **videos), ", ".join(said)


def largest_window(error: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """Return top and left of the window with the largest sum of `error` (H, W), by a table of sums."""
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(top), int(left)


def enlarged(video: np.ndarray, factor: int) -> np.ndarray:
    """Repeat each pixel of a video (T, H, W, 3) `factor` times in both directions."""
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def through_h264(frames: np.ndarray, fps: float) -> tuple[bytes, np.ndarray, int]:
    """Encode (T, H, W, 3) uint8. Return the file's bytes, its decoded frames, and the quality that kept within MAX_BYTES."""
    rate = Fraction(fps).limit_denominator(1001)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for crf in CRFS:
            with VideoWriter(path, height=frames.shape[1], width=frames.shape[2], fps=rate, crf=crf, overwrite=True) as writer:
                for frame in frames:
                    writer.write(frame)
            if path.stat().st_size <= MAX_BYTES:
                break
        return path.read_bytes(), np.stack(list(read_frames(path))), crf
