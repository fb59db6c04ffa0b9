"""A clip as several decoders decode it: all pictures and their errors in one video, so that they stay in step."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from turbovaed_cli.report.clips import (
    ENLARGED_TO,
    ERROR_PERCENTILE,
    MAX_FRAMES,
    MAX_SIDE,
    ClipPart,
    enlarged,
    error_levels,
    heat,
    largest_window,
    through_h264,
)

_PER_ROW = 3  # pictures of a row of the sheet: wider videos do not play everywhere
Scores = Mapping[str, float]


@dataclass(frozen=True)
class SharedClip:
    """A clip by each decoder: frames (T, H, W, 3) uint8 by key, those of the reference first."""

    name: str
    role: str  # why it is shown: "worst", "median", ...
    pictures: Mapping[str, np.ndarray]
    fps: float = 24.0
    scores: Mapping[str, Scores] = field(default_factory=dict)  # by the same keys


@dataclass(frozen=True)
class SharedVideo:
    """A SharedClip encoded for the page; error maps have the key of their decoder and "_error"."""

    clip: SharedClip
    data_uri: str
    parts: dict[str, ClipPart]
    num_frames: int
    fps: float
    width: int  # of the part of the frame that is shown, in pixels of the clip
    height: int
    cut: str  # "" if the whole clip is shown; else a description of the shown part
    crf: int
    distance_db: float  # PSNR of the pictures, decoded again from the video, against the frames that were measured
    factor: int  # that pictures are enlarged by


def shared_scale(clips: Sequence[SharedClip]) -> int:
    """Return the error, in levels of 255, that gets the lightest colour on every error map of a page; a multiple of 4."""
    tops = [float(np.percentile(error, ERROR_PERCENTILE)) for clip in clips for error in _errors(clip.pictures).values()]
    return min(max(4 * -(-int(np.ceil(max(tops, default=0.0))) // 4), 4), 252)


def encode_shared(clip: SharedClip, scale: float) -> SharedVideo:
    """Write a clip as one H.264 video: the pictures in rows of three, and below them the errors at half their size."""
    pictures, cut = _cut(clip.pictures)
    frames, height, width, _ = next(iter(pictures.values())).shape
    factor = {1: 1, 2: 2, 3: 2}.get(ENLARGED_TO // max(height, width), 4)
    shown = {name: enlarged(video, factor) for name, video in pictures.items()}
    errors = {f"{name}_error": _half(error, scale, factor) for name, error in _errors(pictures).items()}
    sheet, parts = _sheet(shown, errors)
    encoded, back, crf = through_h264(sheet, clip.fps)
    return SharedVideo(
        clip=clip,
        data_uri="data:video/mp4;base64," + base64.b64encode(encoded).decode(),
        parts=parts,
        num_frames=frames,
        fps=clip.fps,
        width=width,
        height=height,
        cut=cut,
        crf=crf,
        distance_db=_distance_db(back, pictures, parts, factor),
        factor=factor,
    )


def _errors(pictures: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    reference, *_ = pictures.values()
    return {name: error_levels(video, reference) for name, video in list(pictures.items())[1:]}


def _half(error: np.ndarray, scale: float, factor: int) -> np.ndarray:
    """Return the colours of errors (T, H, W) at half the size of pictures that are enlarged by `factor`."""
    frames, height, width = error.shape
    if factor == 1:
        error = error.reshape(frames, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    return enlarged(heat(error, scale), max(factor // 2, 1))


def _sheet(pictures: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, ClipPart]]:
    """Return one video (T, H, W, 3) with even sides that holds all of them, and the place of each."""
    frames, height, width, _ = next(iter(pictures.values())).shape
    parts: dict[str, ClipPart] = {}
    top = 0
    for group, w, h, most in ((pictures, width, height, _PER_ROW), (errors, width // 2, height // 2, 2 * _PER_ROW)):
        names = list(group)
        for start in range(0, len(names), most):
            for place, name in enumerate(names[start : start + most]):
                parts[name] = ClipPart(place * w, top, w, h)
            top += h
    columns = min(len(pictures), _PER_ROW)
    sheet = np.zeros((frames, top + top % 2, max(columns * width, min(len(errors), 2 * _PER_ROW) * (width // 2)), 3), np.uint8)
    for name, video in (*pictures.items(), *errors.items()):
        part = parts[name]
        sheet[:, part.top : part.top + part.height, part.left : part.left + part.width] = video
    return sheet[:, :, : sheet.shape[2] // 2 * 2], parts


def _distance_db(back: np.ndarray, pictures: Mapping[str, np.ndarray], parts: Mapping[str, ClipPart], factor: int) -> float:
    squares = []
    for name, video in pictures.items():
        part = parts[name]
        rows = slice(part.top + factor // 2, part.top + part.height, factor)
        columns = slice(part.left + factor // 2, part.left + part.width, factor)
        squares.append(float(np.square(back[:, rows, columns].astype(np.float32) - video).mean()))
    mean = sum(squares) / len(squares)
    return 100.0 if mean == 0 else float(10 * np.log10(255**2 / mean))


def _cut(pictures: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Cut all to at most MAX_FRAMES frames and MAX_SIDE pixels a side, even; return them with a description of the part."""
    frames, height, width, _ = next(iter(pictures.values())).shape
    kept = min(frames, MAX_FRAMES)
    h, w = min(height, MAX_SIDE) // 2 * 2, min(width, MAX_SIDE) // 2 * 2
    if (kept, h, w) == (frames, height, width):
        return dict(pictures), ""
    error = sum(error[:kept].mean(axis=0) for error in _errors(pictures).values())
    top, left = largest_window(np.asarray(error), h, w)
    said = [f"the first {kept} of {frames} frames"] if kept < frames else []
    said += [f"the {w}x{h} pixels of {width}x{height} with the largest error"] if (h, w) != (height, width) else []
    return {name: video[:kept, top : top + h, left : left + w] for name, video in pictures.items()}, ", ".join(said)
