"""What a video is: size, rate, the time of every frame, and where reading may begin."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from turbovaed_cli.errors import VideoError
from turbovaed_cli.video import ffmpeg
from turbovaed_cli.video.sources import as_text

# In these, one packet is one frame, so counting needs no decoding; VP8 hides frames, AVI packs several into one packet.
_COUNTABLE_CODECS = ("h264", "hevc", "av1", "vp9")
_COUNTABLE_CONTAINERS = ("mov,mp4", "matroska")
_COMMON_RATES = [Fraction(n) for n in (1, 5, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120)] + [
    Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)
]
# 23 hours at 60 a second. Nor has a video more frames than bytes, but its tables can say so: what it costs is bounded by its size.
_MAX_FRAMES = 5_000_000


@dataclass(frozen=True)
class Track:
    """One stream of a file, as ffmpeg lists it."""

    index: int
    kind: str  # video, audio, subtitle, data or attachment
    codec: str  # "none" if ffmpeg does not know it
    language: str  # such as "eng"; "" if the file names none
    is_default: bool
    is_attached_picture: bool


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
    audio_codec: str | None  # of the default sound track
    tracks: tuple[Track, ...] = ()  # every stream of the file
    track_index: int = 0  # of the picture that is read
    ticks: tuple[int, ...] = ()  # frame i is shown ticks[i] * time_base - start seconds after the file's start
    time_base: Fraction = Fraction(1)
    start: Fraction = Fraction(0)  # of the file's earliest stream

    @property
    def has_audio(self) -> bool:
        """Whether it has sound."""
        return self.audio_codec is not None

    @property
    def has_constant_rate(self) -> bool:
        """Whether no frame is further from even spacing than 10 ms and half a frame."""
        if not self.times_s:
            return True
        first, gap_s = self.times_s[0], 1 / float(self.fps)
        drift_s = max(abs(time - first - i * gap_s) for i, time in enumerate(self.times_s))
        return drift_s <= min(0.010, gap_s / 2)

    @property
    def duration_s(self) -> float:
        """Number of frames over their rate."""
        return float(self.num_frames / self.fps)


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
    tracks = _tracks_of(first.log)
    pictures = [track for track in tracks if track.kind == "video" and not track.is_attached_picture]
    sounds = [track for track in tracks if track.kind == "audio"]
    start = Fraction(_search(r"Duration: .*?, start: (-?[\d.]+)", text) or 0)
    is_countable = codec in _COUNTABLE_CODECS and (container or "").startswith(_COUNTABLE_CONTAINERS)
    if is_countable:
        table = _frame_table(path, ["-c", "copy"])
        # Negative times are the hidden lead-in of a cut: which of its packets show only decoding tells.
        is_countable = all(time is not None and time * Fraction(table.header["tb"]) >= start for time in table.times)
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
        times_s=tuple(float(time * base - start) for time in times),
        is_seekable=is_countable and len(set(times)) == len(table.times),
        key_frames=tuple(i for i, time in enumerate(times) if time in table.key_times) if is_countable else (),
        audio_codec=min(sounds, key=lambda track: not track.is_default).codec if sounds else None,
        tracks=tracks,
        track_index=pictures[0].index if pictures else 0,
        ticks=tuple(times),
        time_base=base,
        start=start,
    )


_STREAM = re.compile(r"Stream #0:(\d+)(?:\[0x[0-9a-f]+\])?(?:\((\w+)\))?: (Video|Audio|Subtitle|Data|Attachment): (\w+)")


def _tracks_of(log: list[str]) -> tuple[Track, ...]:
    """The streams of the input, from ffmpeg's log."""
    tracks = []
    for line in log:
        if "Stream mapping:" in line or "Output #0" in line:
            break
        if found := _STREAM.search(line):
            number, language, kind, codec = found.groups()
            tracks.append(
                Track(int(number), kind.lower(), codec, language or "", "(default)" in line, "(attached pic)" in line)
            )
    return tuple(tracks)


@dataclass(frozen=True)
class _FrameTable:
    """What ffmpeg's framecrc says of a video, in units of header["tb"] seconds."""

    log: list[str]
    header: dict[str, str]
    times: list[int | None]  # of every frame, in the order of the file
    key_times: set[int | None]


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
            "-copyts",
            *ffmpeg.input_options(file.fileno()),
            "-map",
            "0:V:0",
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
