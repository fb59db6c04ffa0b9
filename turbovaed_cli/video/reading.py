"""Read frames of videos.

Frames are (H, W, 3) uint8 RGB, upright (rotation applied). Reading decodes in a sandboxed ffmpeg (ffmpeg.py) whose exit
code, complaints and number of frames are all checked: a damaged file is an error, never a shorter clip.
"""

import bisect
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from turbovaed_cli.errors import VideoError
from turbovaed_cli.video import ffmpeg
from turbovaed_cli.video.pixels import to_model
from turbovaed_cli.video.probing import VideoInfo, probe

_LEAST_RATE = 5  # frames a second that decoding is trusted to manage, of the largest on a busy machine
SWS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def read_frames(
    video: Path | VideoInfo,
    *,
    size: tuple[int, int] | None = None,
    start: int = 0,
    count: int | None = None,
    stride: int = 1,
    crop: tuple[float, float] = (0.5, 0.5),
    square_pixels: bool = True,
) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) uint8, upright: `count` of them (None: all) from frame `start`, every `stride`-th.

    With `size` (height, width) each is scaled to cover it, then cropped; `crop` says where along height and width, 0 to
    1. Without it frames keep their size; `square_pixels` widens them to square pixels. One frame at a time is held.
    Raises VideoError where a frame that should be there is not.
    """
    info = video if isinstance(video, VideoInfo) else probe(video)
    wanted = len(range(start, info.num_frames, stride))
    if count is not None and count > wanted:
        raise VideoError(
            f"{info.path} has {info.num_frames} frames; {(count - 1) * stride + 1} from frame {start} on are asked for"
        )
    wanted = wanted if count is None else count
    filters, (height, width) = _filters(info, size, crop, square_pixels=square_pixels)
    seek, skip = _seek_to(info, start)
    if skip or stride > 1:
        filters[:0] = [ffmpeg.SIGN_OF_LIFE, f"select=gte(n\\,{skip})*not(mod(n-{skip}\\,{stride}))"]
    with ffmpeg.open_regular(info.path) as file:
        arguments = ["-loglevel", "error", *seek, *ffmpeg.input_options(file.fileno()), "-map", "0:V:0", "-an", "-sn", "-dn"]
        arguments += ["-fps_mode", "passthrough", "-enc_time_base", "demux", "-vf", ",".join(filters)]
        # Asking for every last frame leaves it to ffmpeg to meet the end, and what is wrong there.
        arguments += ["-frames:v", str(wanted)] if count is not None else []
        # Behind a jump, frames are decoded from the key frame on and give no sign.
        patience_s = ffmpeg.STALL_S + (_behind_key_frame(info, start) / _LEAST_RATE if seek else 0)
        arguments += ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
        with ffmpeg.Child(arguments, descriptors=[file.fileno()], patience_s=patience_s) as child:
            num_bytes = height * width * 3
            for i in range(wanted):
                data = child.read(num_bytes)
                if len(data) < num_bytes:
                    child.finish()
                    raise VideoError(
                        f"{info.path}: frame {start + i * stride} of {info.num_frames} could not be decoded: {child.complaint() or 'the file ends'}"
                    )
                if child.complaint():
                    raise VideoError(f"{info.path}: damaged: {child.complaint()}")
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            extra = child.read(1)
            code = child.finish()
            if code or extra or child.complaint():
                raise VideoError(
                    f"{info.path}: damaged: {child.complaint() or f'more than the {info.num_frames} frames it should hold'}"
                )


def _filters(
    info: VideoInfo, size: tuple[int, int] | None, crop: tuple[float, float], *, square_pixels: bool
) -> tuple[list[str], tuple[int, int]]:
    """The ffmpeg filters from the upright stored frame to what was asked for, and its (height, width)."""
    square = (info.height, max(round(info.width * info.sample_aspect_ratio), 1))
    if size is None:
        _check_pixels(info, square if square_pixels else (info.height, info.width))
        if not square_pixels or square[1] == info.width:
            return [f"scale=flags={SWS}"], (info.height, info.width)
        return [f"scale={square[1]}:{square[0]}:flags={SWS}"], square
    factor = max(Fraction(size[0], square[0]), Fraction(size[1], square[1]))
    height, width = max(round(square[0] * factor), size[0]), max(round(square[1] * factor), size[1])
    _check_pixels(info, (height, width))
    top, left = (math.floor(share * (have - want) + 0.5) for share, have, want in zip(crop, (height, width), size, strict=True))
    filters = [f"scale={width}:{height}:flags={SWS}"]
    if (height, width) != size:
        filters += ["format=rgb24", f"crop={size[1]}:{size[0]}:{left}:{top}"]
    return filters, size


def _check_pixels(info: VideoInfo, scaled: tuple[int, int]) -> None:
    """A strip, or pixels of a strange shape, would make gigabytes of a small frame."""
    if scaled[0] * scaled[1] > ffmpeg.MAX_PIXELS:
        raise VideoError(
            f"{info.path}: {info.width}x{info.height} with pixels of {info.sample_aspect_ratio} would be scaled to {scaled[1]}x{scaled[0]}"
        )


def _behind_key_frame(info: VideoInfo, start: int) -> int:
    """How many frames are decoded in front of frame `start` after a jump to it."""
    before = bisect.bisect_right(info.key_frames, start)
    return start - (info.key_frames[before - 1] if before else 0)


def _seek_to(info: VideoInfo, start: int) -> tuple[list[str], int]:
    """Options that jump to frame `start`, and how many frames to skip after the jump."""
    if start == 0 or not info.is_seekable:
        return [], start
    between = (info.times_s[start - 1] + info.times_s[start]) / 2
    return ["-ss", f"{between:.6f}"], 0


def read_clip_uint8(
    video: Path | VideoInfo,
    frames: int,
    size: tuple[int, int],
    *,
    start: int = 0,
    stride: int = 1,
    crop: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """One clip, (T, H, W, 3) uint8: `frames` frames of `size` (height, width). See read_frames."""
    return np.stack(list(read_frames(video, size=size, start=start, count=frames, stride=stride, crop=crop)))


def read_clip(
    video: Path | VideoInfo,
    frames: int,
    size: tuple[int, int],
    *,
    start: int = 0,
    stride: int = 1,
    crop: tuple[float, float] = (0.5, 0.5),
) -> Tensor:
    """One clip, (3, T, H, W) in [-1, 1]: `frames` frames of `size` (height, width). See read_frames."""
    return to_model(read_clip_uint8(video, frames, size, start=start, stride=stride, crop=crop))
