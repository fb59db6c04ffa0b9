"""Read frames of videos.

Frames are (H, W, 3) uint8 RGB of BT.709, upright (rotation applied). Reading decodes in a sandboxed ffmpeg (ffmpeg.py). Its
exit code, its complaints of the file, and the number and timestamps of the frames are all checked: a damaged file is an error,
never a shorter clip, and a jump that landed elsewhere is tried again from an earlier frame.
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

# Changes whenever other pixels are made of the same file. Caches and runs keep it, so that two versions are not mixed.
POLICY = 2
_DEINTERLACER = "bwdif=mode=send_frame:parity=auto:deint=interlaced"
_NEIGHBOURS = 4  # frames before the first one wanted that the deinterlacer is given too
_LEAD_IN = 8  # frames at the start of a file that was cut there, of which some may lack what they were predicted from


def reading_identity(hdr: str) -> dict[str, object]:
    """What decides which pixels are made of a file, for manifests and runs."""
    return {"version": POLICY, "hdr": hdr}


class _LandedElsewhereError(Exception):
    """A jump did not come out where it should; nothing was yielded yet."""


class _FiltersBeganAnewError(Exception):
    """Frames changed size or format: ffmpeg made its filters anew, and these forgot what they had counted."""


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

    With `size` (height, width) each is scaled to cover it, then cropped; `crop` says where along height and width, 0 to
    1. Without it frames keep their size; `square_pixels` widens them to square pixels. One frame at a time is held.
    `report` gets a note if frames change their size. Raises VideoError if a frame that should be there is not.
    """
    info = video if isinstance(video, VideoInfo) else probe(video)
    wanted = range(start, info.num_frames, stride)
    if count is not None and count > len(wanted):
        raise VideoError(
            f"{info.path} has {info.num_frames} frames; {(count - 1) * stride + 1} from frame {start} on are asked for"
        )
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
    """Which frames of a video."""

    info: VideoInfo
    wanted: range  # numbers of frames
    is_to_the_end: bool  # so that the end of the file is met, and what is wrong there
    images: tuple[Path, ...] = ()  # of a folder of frames: the files to read, one for each

    @property
    def first(self) -> int:
        """The first frame that filters see, which look at neighbours."""
        return max(self.wanted.start - _NEIGHBOURS, 0) if self.info.is_interlaced else self.wanted.start


@dataclass(frozen=True)
class _Shape:
    """What each frame becomes."""

    info: VideoInfo
    size: tuple[int, int] | None  # (height, width)
    crop: tuple[float, float]
    square_pixels: bool

    @property
    def scaled(self) -> tuple[int, int]:
        """(height, width) before the crop. Raises VideoError if that is too large to be meant."""
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
        """(height, width) after the crop."""
        return self.size or self.scaled

    def filters(self, *, fits: bool) -> list[str]:
        """Ffmpeg's filters from the upright stored frame; `fits`: frames of any size become the first one's, with borders."""
        info, scaled = self.info, self.scaled
        filters = readable(info.colour)
        if fits:
            filters += [f"scale={info.width}:{info.height}:flags={SWS}:force_original_aspect_ratio=decrease"]
            filters += [
                f"pad={info.width}:{info.height}:-1:-1",
                f"setsar={info.sample_aspect_ratio.numerator}/{info.sample_aspect_ratio.denominator}",
            ]
        # Any picture of a folder may have it, whether or not the first one does.
        may_have_alpha = info.has_alpha or demuxer_of(info.images) == "png_pipe"
        filters += to_rgb(info.colour, None if scaled == (info.height, info.width) else scaled, has_alpha=may_have_alpha)
        if self.size is not None and scaled != self.size:
            top, left = (
                math.floor(share * (have - want) + 0.5) for share, have, want in zip(self.crop, scaled, self.size, strict=True)
            )
            filters += ["format=rgb24", f"crop={self.size[1]}:{self.size[0]}:{left}:{top}"]
        return [*filters, "format=rgb24"]  # said here, the scaler converts in one go, also where filters are made anew


def _jumps(clip: _Clip) -> list[int]:
    """Key frames at which decoding may begin instead of at the first frame, the cheapest first.

    After a closed key frame, every frame is right. After an open one, so are all that are shown later, if decoding began at
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
    """The frames of a clip: after a jump, if one leads there, else from the first frame of the video on.

    With `fits`, frames may change their size. Without, that raises _FiltersBeganAnewError in place of the frame at hand.
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
    """The frames of a clip, by one ffmpeg that begins at key frame `jump`, or at the first frame.

    Raises _LandedElsewhereError, before the first frame, if the jump did not lead there.
    """
    info = clip.info
    height, width = shape.result
    # Filters count frames only if they do not begin anew half-way; otherwise what they let pass is sorted out here.
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
    """ffmpeg's, of which `reporting` is the filter that reports each decoded frame."""
    info = clip.info
    arguments = ["-loglevel", "level+verbose", "-nostats", *(["-copyts"] if info.keeps_time else [])]
    if jump is not None:
        # Half-way to the next frame: no rounding leads to another key frame. Which one it was, the first frame will show.
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
    # Asking for every last frame leaves it to ffmpeg to meet the end, and what is wrong there.
    arguments += [] if clip.is_to_the_end else ["-frames:v", str(num_arriving)]
    return [*arguments, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]


class _Watch:
    """Compares what one ffmpeg reports with what is known of the video."""

    def __init__(self, clip: _Clip, child: ffmpeg.Child, jump: int | None, fits: bool, report: Reporter) -> None:
        self.clip, self.info, self.child, self.jump, self.fits, self.report = clip, clip.info, child, jump, fits, report
        self.has_begun = False  # whether a frame was handed on
        self._next = 0 if jump is None else None  # number of the frame that the next report should be of; None after a jump
        self._num_reports = 0
        self._sizes: list[tuple[int, int]] = []
        self._has_filters = False
        self._has_noted_alpha = False

    def await_frame(self, number: int) -> None:
        """Wait until frame `number` was decoded. VideoError, or _LandedElsewhereError, if others come in its place."""
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
        """Judge a frame after a jump: one before the first one wanted, that one, or one that should not come first."""
        assert self.jump is not None
        if tick is None or (self._num_reports == 1 and tick > self.info.ticks[self.jump]):
            raise _LandedElsewhereError
        first = self.info.ticks[self.clip.first]
        if tick > first:
            raise _LandedElsewhereError
        if tick == first:
            self._next = self.clip.first + 1

    def check_messages(self) -> None:
        """VideoError for what ffmpeg has complained of, if it is about the file and frames that count."""
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
        """What ffmpeg complained of, for a frame that did not come."""
        self.check_messages()
        return messages.first_error(self.child.messages)

    def _is_before_what_counts(self) -> bool:
        return not self.has_begun if self.jump is not None else self._num_reports <= _LEAD_IN

    def _miss(self, reason: str) -> NoReturn:
        if self.jump is not None and not self.has_begun:
            raise _LandedElsewhereError
        raise VideoError(f"{self.info.path}: damaged: {reason}")

    def _judge_size(self, size: tuple[int, int]) -> None:
        """Filters were made for frames of this size: for the first time, or anew, which forgets what they have counted."""
        is_first, self._has_filters = not self._has_filters, True
        if not self.fits and (not is_first or size != self.info.stored_size):
            raise _FiltersBeganAnewError
        if size != self.info.stored_size and not self.info.sizes and size not in self._sizes:
            self._sizes.append(size)
            self.report.note(f"{self.info.path.name}: {size_change(self.info, [size])}")

    def _judge_format(self, pixels: str) -> None:
        """Transparency that the first frame does not have: pictures are ready for it, videos are not."""
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
