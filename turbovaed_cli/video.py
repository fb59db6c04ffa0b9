"""Videos: list, probe, read, write; and the only conversion between uint8 and [-1, 1].

Frames are (H, W, 3) uint8 RGB, upright (rotation applied). Reading decodes in a sandboxed ffmpeg (ffmpeg.py) whose exit
code, complaints and number of frames are all checked: a damaged file is an error, never a shorter clip.
"""

import bisect
import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from turbovaed_cli import ffmpeg
from turbovaed_cli.errors import OutputExistsError, SettingsError, VideoError
from turbovaed_cli.rundir import fsync_folder

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts")
WRITABLE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
# In these, one packet is one frame, so counting needs no decoding; VP8 hides frames, AVI packs several into one packet.
_COUNTABLE_CODECS = ("h264", "hevc", "av1", "vp9")
_COUNTABLE_CONTAINERS = ("mov,mp4", "matroska")
# Sound that each container takes as it is; other sound becomes AAC.
_COPIED_AUDIO = {
    ".mp4": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"),
    ".m4v": ("aac", "ac3", "alac"),
    ".mov": ("aac", "mp3", "ac3", "alac"),
    ".mkv": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac", "vorbis"),
}
_COMMON_RATES = [Fraction(n) for n in (1, 5, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120)] + [
    Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)
]
# 23 hours at 60 a second. Nor has a video more frames than bytes, but its tables can say so: what it costs is bounded by its size.
_MAX_FRAMES = 5_000_000
_LEAST_RATE = 5  # frames a second that decoding is trusted to manage, of the largest on a busy machine
_SWS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, upright. `width` and `height` are stored pixels; `sample_aspect_ratio` is the shape of one."""

    path: Path
    width: int
    height: int
    sample_aspect_ratio: Fraction
    fps: Fraction  # average over the video
    num_frames: int
    times_s: tuple[float, ...]  # when each frame is shown, ascending
    is_seekable: bool  # whether reading may jump to a frame by its time and be exact
    key_frames: tuple[int, ...]  # where decoding can begin, ascending; those that counting packets showed
    audio_codec: str | None

    @property
    def has_audio(self) -> bool:
        """Whether it has sound."""
        return self.audio_codec is not None

    @property
    def has_constant_rate(self) -> bool:
        """Whether frames are shown at even distances, up to half of one (containers round their times)."""
        gaps = [after - before for before, after in pairwise(self.times_s)]
        return not gaps or max(gaps) < 1.5 / float(self.fps)

    @property
    def duration_s(self) -> float:
        """Number of frames over their rate."""
        return float(self.num_frames / self.fps)


def list_videos(data: Path) -> list[Path]:
    """Every video under a folder, sorted, or the one file given; hidden files and folders are left out.

    Raises SettingsError where there is none.
    """
    if data.is_dir():
        return [data / name for name in names_of_videos(data)]
    if not data.exists():
        raise SettingsError(f"{data} is not there", "give a folder of videos, or one video")
    return [data]


def names_of_videos(folder: Path) -> list[str]:
    """The same as names relative to the folder, with slashes: paths of a hundred thousand would take seconds."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = os.path.relpath(place, folder).replace(os.sep, "/")
        for name in (*files, *folders):
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
                names.append(name if within == "." else f"{within}/{name}")
    if not names:
        raise SettingsError(f"no video under {folder}", f"videos end in {', '.join(VIDEO_SUFFIXES)}")
    return sorted(names, key=lambda name: name.split("/"))


# --- the one conversion -------------------------------------------------------------------------------------------


def to_model(frames: np.ndarray | Tensor) -> Tensor:
    """(T, H, W, 3) uint8 to (3, T, H, W) fp32 in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
    return tensor.permute(3, 0, 1, 2).to(torch.float32) / 127.5 - 1


def to_uint8(video: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1], clamped there, to (T, H, W, 3) uint8, rounded to nearest."""
    rounded = ((video.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rounded.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def to_unit(video: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (video + 1) / 2


# --- reading ------------------------------------------------------------------------------------------------------


def probe(path: Path) -> VideoInfo:
    """Read what a video is: one frame is decoded, the rest counted (decoded too where counting packets would lie).

    Raises VideoError with one reason where it cannot be read, or its name is no text, which neither a manifest nor a page
    could hold.
    """
    path = Path(path)
    if (name := as_text(path)) != str(path):
        raise VideoError(f"{name}: its name is not UTF-8", "rename it")
    first = _frame_table(path, ["-frames:v", "1", "-c:v", "rawvideo", "-pix_fmt", "rgb24"])
    if not first.times:
        raise VideoError(f"{path}: no frame could be decoded")
    width, height = (int(n) for n in first.header["dimensions"].split("x"))
    text = "\n".join(first.log)
    container, codec = _search(r"Input #0, (\S+),", text), _search(r"Stream #0.*?: Video: (\w+)", text)
    audio = _search(r"Stream #0.*?: Audio: (\w+)", text)
    is_countable = codec in _COUNTABLE_CODECS and (container or "").startswith(_COUNTABLE_CONTAINERS)
    if is_countable:
        table = _frame_table(path, ["-c", "copy"])
        # Negative times are the hidden lead-in of a cut: which of its packets show only decoding tells.
        is_countable = all(time is not None and time >= 0 for time in table.times)
    if not is_countable:
        table = _frame_table(path, ["-enc_time_base", "demux", "-c:v", "wrapped_avframe"])
    base = Fraction(table.header["tb"])
    times = sorted(time for time in table.times if time is not None)
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        sample_aspect_ratio=_aspect_of(first.header.get("sar", "")),
        fps=_rate_of(times, base, text),
        num_frames=len(table.times),
        times_s=tuple(float(time * base) for time in times),
        is_seekable=is_countable and len(set(times)) == len(table.times),
        key_frames=tuple(i for i, time in enumerate(times) if time in table.key_times) if is_countable else (),
        audio_codec=audio,
    )


@dataclass(frozen=True)
class _FrameTable:
    """What ffmpeg's framecrc says of a video, in units of header["tb"] seconds."""

    log: list[str]
    header: dict[str, str]
    times: list[int | None]  # of every frame, in the order of the file
    key_times: set[int | None]


def as_text(path: Path | str) -> str:
    r"""A path as text that any file or page can hold: bytes of a name that are no UTF-8 become \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _frame_table(path: Path, options: list[str]) -> _FrameTable:
    """Run ffmpeg to a table of frames; VideoError where it gives up, complains, or finds more of them than there can be."""
    header: dict[str, str] = {}
    times: list[int | None] = []
    key_times: set[int | None] = set()
    with ffmpeg.open_regular(path) as file:
        most = min(os.fstat(file.fileno()).st_size, _MAX_FRAMES)
        arguments = [
            "-loglevel",
            "level+info",
            "-nostats",
            *ffmpeg.input_options(file.fileno()),
            "-map",
            "0:v:0",
            "-an",
            "-sn",
            "-dn",
        ]
        with ffmpeg.Child(
            [*arguments, "-fps_mode", "passthrough", *options, "-f", "framecrc", "pipe:1"], descriptors=[file.fileno()]
        ) as child:
            for line in _lines(child):
                if line.startswith("#"):
                    name, _, value = line[1:].partition(":")
                    header[name.removesuffix(" 0")] = value.strip()
                    continue
                fields = [field.strip() for field in line.split(",")]
                times.append(int(fields[2]) if fields[2].lstrip("-").isdigit() else None)
                if not any(field.startswith("F=") for field in fields):  # flags of what is no key frame
                    key_times.add(times[-1])
                if len(times) > most:
                    raise VideoError(f"{path}: it claims more than {most} frames, which is no video")
            code = child.finish()
            messages = child.messages
    if code != 0:
        raise VideoError(f"{path}: {_reason(messages)}")
    if damage := ffmpeg.complaint([line for line in messages if "[error]" in line or "[fatal]" in line]):
        raise VideoError(f"{path}: damaged: {damage}")
    if "tb" not in header:
        raise VideoError(f"{path}: no video in it")
    return _FrameTable(messages, header, times, key_times)


def _lines(child: ffmpeg.Child) -> Iterator[str]:
    rest = b""
    while data := child.read(1 << 16, whole=False):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines if line)


def _search(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


_NO_CONTAINER = "not a video container (mp4, mov, mkv, webm, avi, ts)"
# What ffmpeg says, and what it means: wherever it says it, and where it has said nothing else before.
_MEANINGS = {"whitelist": _NO_CONTAINER, "m3u8": _NO_CONTAINER, "matches no streams": "no video in it"}
_MEANINGS_AT_FIRST = {
    "Error opening input: Invalid data found": "not a video, or damaged from its first bytes on",
    "Cannot determine format of input": "no frame could be decoded",
}


def _reason(messages: list[str]) -> str:
    """Why ffmpeg gave up, from a log that says other things too."""
    wanted = re.compile(
        r"invalid|error|failed|not found|no such|moov|matches no streams|does not contain|not in .*whitelist|unknown|cannot|end of file|unsupported|exceeds|too large",
        re.IGNORECASE,
    )
    last_words = [
        re.sub(r"^(\[[^\]]*\] )+", "", line.strip()) for line in messages if wanted.search(line) and "configuration:" not in line
    ]
    for signs, lines in ((_MEANINGS, last_words), (_MEANINGS_AT_FIRST, last_words[:1])):
        for sign, meaning in signs.items():
            if any(sign in line for line in lines):
                return meaning
    return last_words[0].rstrip(".") if last_words else "ffmpeg could not read it"


def _aspect_of(text: str) -> Fraction:
    numerator, _, denominator = text.partition("/")
    if numerator.isdigit() and denominator.isdigit() and int(numerator) and int(denominator):
        return Fraction(int(numerator), int(denominator))
    return Fraction(1)


def _rate_of(times: list[int], base: Fraction, text: str) -> Fraction:
    """Average rate from the frames' times, taken as the common rate it is nearest to where rounding explains the rest."""
    stated = _search(r"Video: .*?, ([\d.]+)k? fps", text)
    if len(times) < 2 or times[-1] == times[0]:
        rate = Fraction(stated).limit_denominator(1001) if stated and float(stated) > 0 else Fraction(24)
    else:
        rate = Fraction(len(times) - 1, times[-1] - times[0]) / base
    slack = 1 / (max(len(times) - 1, 1) * float(1 / rate)) * float(base)  # relative: one tick over the whole length
    for common in _COMMON_RATES:
        if abs(float(rate / common) - 1) <= max(slack, 1e-6):
            return common
    return rate.limit_denominator(100_000)


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
        arguments = ["-loglevel", "error", *seek, *ffmpeg.input_options(file.fileno()), "-map", "0:v:0", "-an", "-sn", "-dn"]
        arguments += ["-fps_mode", "passthrough", "-vf", ",".join(filters)]
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
            return [f"scale=flags={_SWS}"], (info.height, info.width)
        return [f"scale={square[1]}:{square[0]}:flags={_SWS}"], square
    factor = max(Fraction(size[0], square[0]), Fraction(size[1], square[1]))
    height, width = max(round(square[0] * factor), size[0]), max(round(square[1] * factor), size[1])
    _check_pixels(info, (height, width))
    top, left = (math.floor(share * (have - want) + 0.5) for share, have, want in zip(crop, (height, width), size, strict=True))
    filters = [f"scale={width}:{height}:flags={_SWS}"]
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


# --- writing ------------------------------------------------------------------------------------------------------


class VideoWriter:
    """Write frames (H, W, 3) uint8 to an H.264 file that appears whole, once every frame is in it, or not at all.

    bt709 matrix and tags; never rescaled: odd sizes become 4:4:4, which can hold them. `audio_from` lends its sound. Use
    as a context manager; leaving it with an error leaves no file.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        fps: Fraction,
        audio_from: VideoInfo | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
        crf: int = 16,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in WRITABLE_SUFFIXES:
            raise SettingsError(f"{self.path.name} is no name this can write to", f"videos end in {', '.join(WRITABLE_SUFFIXES)}")
        if self.path.exists() and not overwrite:
            raise OutputExistsError(f"{self.path} is there already", "add --overwrite to replace it")
        if not 0 <= crf <= 51:
            raise SettingsError(f"--crf {crf} is not a quality", "0 (lossless) to 51")
        self.shape = (height, width, 3)
        self.num_frames = 0
        self._open = contextlib.ExitStack()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self.path.stem}.", suffix=self.path.suffix, dir=self.path.parent)
        os.close(handle)
        self._temporary = Path(name)
        self._open.callback(self._temporary.unlink, missing_ok=True)
        pixel_format = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        filters = f"scale=out_color_matrix=bt709:out_range=tv:flags={_SWS},format={pixel_format},setsar={sample_aspect_ratio.numerator}/{sample_aspect_ratio.denominator}"
        # The encoder takes its tags from the frames; a matrix without primaries and transfer is guessed at by browsers.
        filters += ",setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
        arguments = [
            "-loglevel",
            "error",
            "-y",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{width}x{height}",
            "-r",
            str(fps),
            "-i",
            "pipe:0",
        ]
        descriptors = []
        if audio_from is not None:
            file = self._open.enter_context(ffmpeg.open_regular(audio_from.path))
            descriptors.append(file.fileno())
            arguments += ffmpeg.input_options(file.fileno())
            copied = audio_from.audio_codec in _COPIED_AUDIO[self.path.suffix.lower()]
            arguments += ["-map", "0:v:0", "-map", "1:a:0", *(["-c:a", "copy"] if copied else ["-c:a", "aac", "-b:a", "192k"])]
        arguments += [
            "-vf",
            filters,
            "-c:v",
            "libx264",
            "-preset",
            "medium",
            "-crf",
            str(crf),
            "-pix_fmt",
            pixel_format,
            "-fps_mode",
            "passthrough",
        ]
        arguments += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
        arguments += [] if self.path.suffix == ".mkv" else ["-movflags", "+faststart"]
        self._child = self._open.enter_context(
            ffmpeg.Child([*arguments, str(self._temporary)], descriptors=descriptors, feed=True, may_write=True)
        )

    def write(self, frame: np.ndarray) -> None:
        """Add one frame (H, W, 3) uint8."""
        assert frame.shape == self.shape and frame.dtype == np.uint8, (frame.shape, frame.dtype)
        self._child.write(np.ascontiguousarray(frame).data.cast("B"))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file, count its frames, and give it its name. Raises VideoError where it is not what was written."""
        if self.num_frames == 0:
            raise VideoError(f"{self.path}: there was no frame to write")
        code = self._child.finish()
        if code != 0:
            raise VideoError(f"{self.path} could not be written: {self._child.complaint()}", "is the disk full?")
        written = probe(self._temporary).num_frames
        if written != self.num_frames:
            raise VideoError(f"{self.path}: {written} of {self.num_frames} frames arrived in the file")
        self._temporary.chmod(0o644)
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._temporary.replace(self.path)
        fsync_folder(self.path.parent)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._open:
            if kind is None:
                self.close()
