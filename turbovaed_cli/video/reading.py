"""Read frames of videos.

Frames are (H, W, 3) uint8 RGB of BT.709, upright (rotation applied). A sandboxed ffmpeg (ffmpeg.py) decodes them. Its exit
code, its complaints about the file, and the number and timestamps of the frames are all checked: a damaged file is an error,
never a shorter clip. If a seek ends at a wrong frame, an earlier one is tried.
"""

import bisect
import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import numpy as np
from torch import Tensor

from turbovaed_cli.errors import VideoError
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.video import ffmpeg, messages
from turbovaed_cli.video.colour import SWS, readable, to_rgb
from turbovaed_cli.video.images import demuxer_of, joined
from turbovaed_cli.video.input_streams import has_alpha
from turbovaed_cli.video.pixels import to_model
from turbovaed_cli.video.probing import TRANSPARENT, VideoInfo, probe, size_change

# It changes whenever reading makes other pixels of the same file. Caches and runs record it, so that versions are not mixed.
POLICY = 2
_DEINTERLACER = "bwdif=mode=send_frame:parity=auto:deint=interlaced"
_NEIGHBOURS = 4  # frames before the first wanted one that the deinterlacer gets too
_LEAD_IN = 8  # frames at the start of a file that was cut there, of which some may lack their reference frames


def reading_identity(hdr: str) -> dict[str, object]:
    """Return the settings that decide which pixels reading makes of a file, for manifests and runs."""
    return {"version": POLICY, "hdr": hdr}


class _LandedElsewhereError(Exception):
    """A seek ended at a wrong frame; nothing was yielded yet."""


class _FiltersBeganAnewError(Exception):
    """Frames changed size or format, so ffmpeg rebuilt its filters, and these lost their counts."""


def read_frames(
    video: Path | VideoInfo,
    *,
    size: tuple[int, int] | None = None,
    start: int = 0,
    count: int | None = None,
    stride: int = 1,
    crop: tuple[float, float] = (0.5, 0.5),
    square_pixels: bool = True,
    report: Reporter = quiet,
) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) uint8, upright: `count` of them (None: all) from frame `start`, every `stride`-th.

    With `size` (height, width) each is scaled to cover it, then cropped; `crop` is the position along height and width, 0 to
    1. Without it frames keep their size, and `square_pixels` resizes the width so that pixels are square. One frame at a
    time is in memory. `report` gets a note if frames change their size. Raises VideoError if a frame is missing or damaged.
    """
    info = video if isinstance(video, VideoInfo) else probe(video)
    wanted = range(start, info.num_frames, stride)
    if count is not None and count > len(wanted):
        raise VideoError(f"{info.path} has {info.num_frames} frames; {(count - 1) * stride + 1} from frame {start} on are needed")
    wanted = wanted if count is None else wanted[:count]
    if info.images:
        images = tuple(info.images[i] for i in wanted)
        clip = _Clip(replace(info, ticks=tuple(range(len(images)))), range(len(images)), is_to_the_end=True, images=images)
    else:
        clip = _Clip(info, wanted, is_to_the_end=count is None)
    shape = _Shape(info, size, crop, square_pixels)
    yielded = 0
    try:
        for frame in _frames(clip, shape, fits=bool(info.sizes), report=report):
            yield frame
            yielded += 1
    except _FiltersBeganAnewError:
        yield from _frames(replace(clip, wanted=clip.wanted[yielded:]), shape, fits=True, report=report)


# --- what to read -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clip:
    """The wanted frames of a video."""

    info: VideoInfo
    wanted: range  # numbers of frames
    is_to_the_end: bool  # whether reading goes on to the end of the file, so that damage there is found
    images: tuple[Path, ...] = ()  # of a folder of frames: the files to read, one for each

    @property
    def first(self) -> int:
        """The first frame that filters get: a deinterlacer needs neighbours of the first wanted one."""
        return max(self.wanted.start - _NEIGHBOURS, 0) if self.info.is_interlaced else self.wanted.start


@dataclass(frozen=True)
class _Shape:
    """The size and crop of the frames that are yielded."""

    info: VideoInfo
    size: tuple[int, int] | None  # (height, width)
    crop: tuple[float, float]
    square_pixels: bool

    @property
    def scaled(self) -> tuple[int, int]:
        """The (height, width) before the crop. Raises VideoError if that is more than MAX_PIXELS."""
        info = self.info
        square = info.height, max(round(info.width * info.sample_aspect_ratio), 1)
        if self.size is None:
            scaled = square if self.square_pixels else (info.height, info.width)
        else:
            factor = max(Fraction(self.size[0], square[0]), Fraction(self.size[1], square[1]))
            scaled = max(round(square[0] * factor), self.size[0]), max(round(square[1] * factor), self.size[1])
        if scaled[0] * scaled[1] > ffmpeg.MAX_PIXELS:  # a strip, or pixels of a strange shape
            raise VideoError(
                f"{info.path}: {info.width}x{info.height} with pixels of {info.sample_aspect_ratio} would be scaled to {scaled[1]}x{scaled[0]}"
            )
        return scaled

    @property
    def result(self) -> tuple[int, int]:
        """The (height, width) after the crop."""
        return self.size or self.scaled

    def filters(self, *, fits: bool) -> list[str]:
        """Return ffmpeg's filters for upright stored frames; with `fits`, other sizes are fitted into the first, with borders."""
        info, scaled = self.info, self.scaled
        filters = readable(info.colour)
        if fits:
            filters += [f"scale={info.width}:{info.height}:flags={SWS}:force_original_aspect_ratio=decrease"]
            filters += [
                f"pad={info.width}:{info.height}:-1:-1",
                f"setsar={info.sample_aspect_ratio.numerator}/{info.sample_aspect_ratio.denominator}",
            ]
        # Any picture of a folder may be transparent, even if the first one is not.
        may_have_alpha = info.has_alpha or demuxer_of(info.images) == "png_pipe"
        filters += to_rgb(info.colour, None if scaled == (info.height, info.width) else scaled, has_alpha=may_have_alpha)
        if self.size is not None and scaled != self.size:
            top, left = (
                math.floor(share * (have - want) + 0.5) for share, have, want in zip(self.crop, scaled, self.size, strict=True)
            )
            filters += ["format=rgb24", f"crop={self.size[1]}:{self.size[0]}:{left}:{top}"]
        return [*filters, "format=rgb24"]  # stated here, the scaler converts in one step, even if filters are rebuilt


def _jumps(clip: _Clip) -> list[int]:
    """Return the key frames at which decoding may begin instead of at the first frame, the cheapest first.

    After a closed key frame, every frame is right. After an open one, all frames shown later are right if decoding began at
    the key frame before it: a refresh that takes several frames is over by then.
    """
    info = clip.info
    nearest = bisect.bisect_right(info.key_frames, clip.first) - 1
    if not info.is_seekable or nearest < 0:
        return []
    if info.key_frames[nearest] not in info.closed:
        nearest -= 1
    return [info.key_frames[i] for i in (nearest, nearest - 2) if i >= 0 and info.key_frames[i] > 0]


# --- reading ----------------------------------------------------------------------------------------------------------


def _frames(clip: _Clip, shape: _Shape, *, fits: bool, report: Reporter) -> Iterator[np.ndarray]:
    """Yield the frames of a clip, decoded from a key frame if a seek works, else from the first frame of the video on.

    With `fits`, frames may change their size. Without it, a change raises _FiltersBeganAnewError before that frame.
    """
    if not clip.wanted and not clip.is_to_the_end:
        return
    for jump in _jumps(clip):
        frames = _decoded(clip, shape, jump, fits, report)
        with closing(frames):
            try:
                first = next(frames)
            except _LandedElsewhereError:
                continue
            yield first
            yield from frames
            return
    yield from _decoded(clip, shape, None, fits, report)


def _decoded(clip: _Clip, shape: _Shape, jump: int | None, fits: bool, report: Reporter) -> Generator[np.ndarray, None, None]:
    """Yield the frames of a clip, by one ffmpeg that begins at key frame `jump`, or at the first frame.

    Raises _LandedElsewhereError, before the first frame, if the seek ended elsewhere.
    """
    info = clip.info
    height, width = shape.result
    # Filters select by counting only if they are not rebuilt half-way; otherwise frames are selected here.
    arriving = range(clip.first if info.has_exact_times else 0, clip.wanted[-1] + 1) if fits and clip.wanted else clip.wanted
    with (
        joined(clip.images, info.images[0]) if clip.images else ffmpeg.open_regular(info.path) as file,
        ffmpeg.Child(
            lambda reporting: _arguments(clip, shape, jump, fits, len(arriving), file.fileno(), reporting),
            descriptors=[file.fileno()],
        ) as child,
    ):
        watch = _Watch(clip, child, jump, fits, report)
        for number in arriving:
            watch.await_frame(number)
            data = child.read(height * width * 3)
            if len(data) < height * width * 3:
                child.finish()
                raise VideoError(
                    f"{info.path}: frame {number} of {info.num_frames} could not be decoded: {watch.complaint() or 'the file ends'}"
                )
            watch.check_messages()
            if number in clip.wanted:
                watch.has_begun = True
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        if clip.is_to_the_end:
            extra, code = child.read(1), child.finish()
            watch.check_messages()
            if code or extra:
                raise VideoError(f"{info.path}: damaged: more than the {info.num_frames} frames it should hold")


def _arguments(
    clip: _Clip, shape: _Shape, jump: int | None, fits: bool, num_arriving: int, descriptor: int, reporting: str
) -> list[str]:
    """Return ffmpeg's arguments; `reporting` is the filter that reports each decoded frame."""
    info = clip.info
    arguments = ["-loglevel", "level+verbose", "-nostats", *(["-copyts"] if info.keeps_time else [])]
    if jump is not None:
        # Half-way to the next frame: no rounding leads to another key frame. The time of the first frame shows which one it was.
        after = info.ticks[min(jump + 1, info.num_frames - 1)]
        arguments += [
            "-seek_timestamp",
            "1",
            "-noaccurate_seek",
            "-ss",
            f"{float((info.ticks[jump] + after) * info.time_base / 2):.6f}",
        ]
    arguments += ["-c:v", info.decoder] if info.decoder else []
    arguments += ffmpeg.input_options(descriptor, demuxer=demuxer_of(clip.images))
    filters = [reporting]
    if info.has_exact_times and clip.first:
        filters += [f"select=gte(pts\\,{info.ticks[clip.first]})"]
    elif clip.first and not fits:
        filters += [f"select=gte(n\\,{clip.first})"]
    filters += [_DEINTERLACER] if info.is_interlaced else []
    if not fits:
        lead, stride = clip.wanted.start - clip.first, clip.wanted.step
        filters += [f"select=gte(n\\,{lead})"] if lead else []
        filters += [f"select=not(mod(n\\,{stride}))"] if stride > 1 else []
    filters += shape.filters(fits=fits)
    arguments += ["-map", f"0:{info.track_index}", "-an", "-sn", "-dn", "-fps_mode", "passthrough", "-vf", ",".join(filters)]
    # Without a number of frames, ffmpeg reads to the end and reports damage there.
    arguments += [] if clip.is_to_the_end else ["-frames:v", str(num_arriving)]
    return [*arguments, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]


class _Watch:
    """Compares the reports of one ffmpeg with the facts about the video."""

    def __init__(self, clip: _Clip, child: ffmpeg.Child, jump: int | None, fits: bool, report: Reporter) -> None:
        self.clip, self.info, self.child, self.jump, self.fits, self.report = clip, clip.info, child, jump, fits, report
        self.has_begun = False  # whether a frame was yielded
        self._next = 0 if jump is None else None  # number of the frame that is expected next; None after a seek
        self._num_reports = 0
        self._sizes: list[tuple[int, int]] = []
        self._has_filters = False
        self._has_noted_alpha = False

    def await_frame(self, number: int) -> None:
        """Wait until frame `number` is decoded; raises VideoError or _LandedElsewhereError if other frames come instead."""
        while self._next is None or self._next <= number:
            try:
                tick = self.child.next_report()
            except EOFError:
                return
            self._num_reports += 1
            if self._num_reports == _LEAD_IN:
                self.check_messages()
            if self._next is None:
                self._land(tick)
            elif self.info.has_exact_times and (self._next >= self.info.num_frames or tick != self.info.ticks[self._next]):
                self._miss(f"frame {self._next} of {self.info.num_frames} is missing, or not where the file's index has it")
            else:
                self._next += 1

    def _land(self, tick: int | None) -> None:
        """Check a frame after a seek: it has to come before the first wanted frame, or to be that frame."""
        assert self.jump is not None
        if tick is None or (self._num_reports == 1 and tick > self.info.ticks[self.jump]):
            raise _LandedElsewhereError
        first = self.info.ticks[self.clip.first]
        if tick > first:
            raise _LandedElsewhereError
        if tick == first:
            self._next = self.clip.first + 1

    def check_messages(self) -> None:
        """Raise VideoError or _LandedElsewhereError for a complaint of ffmpeg about the file, if it concerns wanted frames."""
        for line in self.child.new_messages():
            if size := messages.filtered_size(line):
                self._judge_size(size)
                self._judge_format(messages.filtered_format(line))
                continue
            about = messages.about(line)
            if about is messages.About.REFERENCES and not self._is_before_what_counts():
                about = messages.About.INPUT
            if about is messages.About.INPUT:
                self._miss(messages.parse(line).text)

    def complaint(self) -> str:
        """Return ffmpeg's first complaint, for a frame that did not come."""
        self.check_messages()
        return messages.first_error(self.child.messages)

    def _is_before_what_counts(self) -> bool:
        return not self.has_begun if self.jump is not None else self._num_reports <= _LEAD_IN

    def _miss(self, reason: str) -> NoReturn:
        if self.jump is not None and not self.has_begun:
            raise _LandedElsewhereError
        raise VideoError(f"{self.info.path}: damaged: {reason}")

    def _judge_size(self, size: tuple[int, int]) -> None:
        """Handle a report that filters were made for frames of this size; if rebuilt, they have lost their counts."""
        is_first, self._has_filters = not self._has_filters, True
        if not self.fits and (not is_first or size != self.info.stored_size):
            raise _FiltersBeganAnewError
        if size != self.info.stored_size and not self.info.sizes and size not in self._sizes:
            self._sizes.append(size)
            self.report.note(f"{self.info.path.name}: {size_change(self.info, [size])}")

    def _judge_format(self, pixels: str) -> None:
        """Handle transparency that the first frame does not have: folders of pictures allow it, videos do not."""
        if not has_alpha(pixels) or self.info.has_alpha or self._has_noted_alpha:
            return
        if pixels == "gbrap" or not self.info.images:
            raise VideoError(f"{self.info.path}: its pixels change to {pixels}, unlike those of its first frame")
        self._has_noted_alpha = True
        self.report.note(f"{self.info.path.name}: {TRANSPARENT}")


def read_clip_uint8(
    video: Path | VideoInfo,
    frames: int,
    size: tuple[int, int],
    *,
    start: int = 0,
    stride: int = 1,
    crop: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Return one clip (T, H, W, 3) uint8: `frames` frames of `size` (height, width). Raises as `read_frames` does."""
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
    """Return one clip (3, T, H, W) fp32 in [-1, 1]: `frames` frames of `size` (height, width). Raises as `read_frames` does."""
    return to_model(read_clip_uint8(video, frames, size, start=start, stride=stride, crop=crop))
