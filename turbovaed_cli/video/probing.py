"""What a video is: size, colours, the time of every frame, its other tracks, and where reading may begin.

Everything comes from ffmpeg: its description of the file, and a table of packets or, if packets may not be frames, of
decoded frames.
"""

import os
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import VideoError
from turbovaed_cli.settings import HDR_CHOICES
from turbovaed_cli.video import ffmpeg, messages
from turbovaed_cli.video.codecs import coders
from turbovaed_cli.video.colour import Colour, colour_of, how_it_is_shown
from turbovaed_cli.video.images import demuxer_of, joined
from turbovaed_cli.video.sources import as_text, frames_in

# In these, one packet is one frame unless the table shows signs of the opposite. VP8 hides frames, AVI packs several into one.
_COUNTABLE_CODECS = ("h264", "hevc", "av1", "vp9")
# Reading may jump in these: every packet has a timestamp that does not depend on where reading began.
_SEEKABLE_CONTAINERS = ("mov,mp4", "matroska")
# In these, every track has its own timestamps; in others, when a picture starts is a matter of decoding order.
_TIMED_CONTAINERS = (*_SEEKABLE_CONTAINERS, "mpegts", "mpeg", "flv", "asf", "ogg")
_FIRST_FRAME = ["-frames:v", "1", "-enc_time_base", "demux", "-c:v", "wrapped_avframe"]
_COMMON_RATES = [Fraction(n) for n in (1, 5, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)] + [
    Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120, 240)
]
# 23 hours at 60 a second. Nor has a video more frames than bytes, but its tables can say so: what it costs is bounded by its size.
_MAX_FRAMES = 5_000_000
_MOST_DRIFT_S = 0.005  # of a constant rate: more than any container rounds, and a quarter of what keeps sound in sync
_COARSEST_TICK_S = Fraction(1, 900)  # a millisecond, of Matroska and FLV, and a little more
_DISCARD = 4  # flag of a packet that is decoded and not shown
_NO_PICTURES = {"attached pic", "still image", "timed thumbnails"}
TRANSPARENT = "transparent parts are shown over black"
_FIELD_ORDERS = ("progressive", "top first", "bottom first", "top coded first (swapped)", "bottom coded first (swapped)")


@dataclass(frozen=True)
class Track:
    """One stream of a file, as ffmpeg describes it."""

    index: int
    kind: str  # video, audio, subtitle, data or attachment
    codec: str  # ffmpeg's name; "none" if it knows none
    language: str  # "" if not given
    dispositions: frozenset[str]  # such as "default", "forced", "attached pic"
    description: str = ""  # the rest of ffmpeg's line

    @property
    def is_default(self) -> bool:
        """Whether players choose it by themselves."""
        return "default" in self.dispositions

    @property
    def is_picture(self) -> bool:
        """Whether it is a moving picture, rather than cover art or thumbnails."""
        return self.kind == "video" and not self.dispositions & _NO_PICTURES

    def __str__(self) -> str:
        return f"{self.kind} {self.index} ({', '.join(filter(None, (self.codec, self.language)))})"


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, upright. `width` and `height` are stored pixels; `sample_aspect_ratio` is the shape of one."""

    path: Path
    width: int
    height: int
    sample_aspect_ratio: Fraction
    fps: Fraction  # average over the video
    ticks: tuple[int, ...]  # when each frame is shown, ascending, in units of time_base
    time_base: Fraction  # seconds
    start: Fraction  # seconds: when the earliest of the file's tracks starts, on the clock of ticks
    keeps_time: bool  # whether timestamps do not depend on where reading began
    has_exact_times: bool  # whether every frame has a timestamp of its own, later than that of the frame before
    is_seekable: bool  # whether reading may jump to a frame by its time and be exact
    key_frames: tuple[int, ...]  # where decoding can begin, ascending; those that counting packets showed
    closed: frozenset[int]  # those of them after which no frame needs one from before
    tracks: tuple[Track, ...]
    track_index: int  # of the picture, in the file
    stored_size: tuple[int, int]  # (height, width) before any rotation
    pixel_format: str  # ffmpeg's name, such as yuv420p10le
    colour: Colour
    field_order: str  # progressive, top first, bottom first, or "" if the file does not say
    has_alpha: bool
    dolby_vision_profile: int = 0  # 0: none
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) that frames change to, as far as probing decoded them
    decoder: str = ""  # ffmpeg's decoder, if not its own choice
    images: tuple[Path, ...] = field(default=(), repr=False)  # of a folder of frames: one file each

    @property
    def num_frames(self) -> int:
        """Number of frames that are shown."""
        return len(self.ticks)

    @cached_property
    def times_s(self) -> tuple[float, ...]:
        """When each frame is shown, in seconds after the file's earliest track starts, ascending."""
        return tuple(float(tick * self.time_base - self.start) for tick in self.ticks)

    @property
    def audio(self) -> Track | None:
        """The sound that players choose: the default track, or the first."""
        sounds = [track for track in self.tracks if track.kind == "audio"]
        return next((track for track in sounds if track.is_default), sounds[0] if sounds else None)

    @property
    def audio_codec(self) -> str | None:
        """Codec of that sound."""
        return self.audio.codec if self.audio else None

    @property
    def has_audio(self) -> bool:
        """Whether it has sound."""
        return self.audio is not None

    @property
    def is_interlaced(self) -> bool:
        """Whether each frame holds two fields of different times."""
        return self.field_order not in ("", "progressive")

    @cached_property
    def has_constant_rate(self) -> bool:
        """Whether no frame is more than 5 ms, or half a frame, from where an even rate would show it."""
        first, step = self.ticks[0], 1 / (self.fps * self.time_base)
        most = min(_MOST_DRIFT_S * float(self.fps), 0.5) * float(step)
        return all(abs(tick - first - i * float(step)) <= most for i, tick in enumerate(self.ticks))

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading its picture changes, a clause each: colours, fields, transparency, sizes."""
        found = list(how_it_is_shown(self.colour))
        if self.is_interlaced:
            found.append(f"interlaced ({self.field_order}): deinterlaced, one frame for each")
        if self.has_alpha and not (self.images and self.pixel_format == "gbrap"):  # which is what ffmpeg makes of CMYK
            found.append(TRANSPARENT)
        if self.sizes:
            found.append(size_change(self, self.sizes))
        return tuple(found)


def size_change(info: VideoInfo, sizes: Sequence[tuple[int, int]]) -> str:
    """The note on frames that change to other sizes (height, width)."""
    others = ", ".join(f"{width}x{height}" for height, width in dict.fromkeys(sizes))
    return f"the frame size changes to {others}: scaled to fit {info.width}x{info.height}, with black borders"


def notes_on(videos: Iterable[VideoInfo]) -> list[str]:
    """The notes on several videos, each once with the videos that it is about."""
    named: dict[str, list[str]] = {}
    for info in videos:
        for note in info.notes:
            named.setdefault(note, []).append(info.path.name)
    return [f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}" for note, names in named.items()]


def probe(path: Path, *, hdr: str = "tonemap", fps: Fraction = Fraction(24)) -> VideoInfo:
    """Read what a video is: one frame is decoded, the rest counted (decoded too if packets may not be frames).

    `hdr` says what happens to PQ and HLG: "tonemap", or "refuse". `fps` is the rate of a folder of frames, which has none.
    Raises VideoError with one reason if it cannot be read, or its name is no text, which neither a manifest nor a page
    could hold.
    """
    path = Path(path)
    if (name := as_text(path)) != str(path):
        raise VideoError(f"{name}: its name is not UTF-8", "rename it")
    check_choice("--hdr", hdr, HDR_CHOICES)
    info = _probe_folder(path, fps) if path.is_dir() else _probe_file(path)
    check_showable(info, hdr)
    return info


def _probe_folder(folder: Path, fps: Fraction) -> VideoInfo:
    """A folder of numbered pictures: the first tells their size; what changes later is met when they are read."""
    images = frames_in(folder)
    if not images:
        raise VideoError(
            f"{folder} is not a regular file",
            "a folder of frames holds numbered .png or .jpg files, all alike but for the number",
        )
    with joined(images[:1], images[0]) as file:
        first = _table_of(folder, file, "0:V:0", _FIRST_FRAME, demuxer=demuxer_of(images))
    base = 1 / fps
    return _info(folder, first, _Frames(tuple(range(len(images))), base), keeps_time=False, images=images)


def _probe_file(path: Path) -> VideoInfo:
    first = _frame_table(path, "0:V:0", _FIRST_FRAME, ["-copyts"])
    tracks = tracks_of(first.log)
    pictures = [track for track in tracks if track.is_picture]
    picture = next((track for track in pictures if track.is_default), pictures[0] if pictures else None)
    if picture is not None and picture is not pictures[0]:
        first = _frame_table(path, f"0:{picture.index}", _FIRST_FRAME, ["-copyts"])
    if picture is None:
        raise VideoError(f"{path}: no frame could be decoded")
    text = "\n".join(first.log)
    keeps_time = (_search(r"Input #0, (\S+),", text) or "").startswith(_SEEKABLE_CONTAINERS)
    return _info(path, first, _frames_of(path, picture, keeps_time, text), keeps_time=keeps_time, picture=picture)


def _info(
    path: Path,
    first: "_Table",
    frames: "_Frames",
    *,
    keeps_time: bool,
    picture: Track | None = None,
    images: tuple[Path, ...] = (),
) -> VideoInfo:
    """Everything together: `first` is about the first frame, `frames` about all."""
    tracks = () if images else tracks_of(first.log)
    picture = picture or next(track for track in tracks_of(first.log) if track.kind == "video")
    if not first.packets:
        raise VideoError(f"{path}: no frame could be decoded")
    width, height = (int(n) for n in first.header["dimensions"].split("x"))
    text = "\n".join(first.log)
    pixels = _Pixels.of(picture.description)
    stored = pixels.size or (height, width)
    has_alpha_mode = bool(re.search(rf"Stream #0:{picture.index}\b(?:(?!Stream #).)*alpha_mode +: 1\b", text, re.DOTALL))
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        # Of pictures, it is the density of print.
        sample_aspect_ratio=Fraction(1) if images else _aspect_of(first.header.get("sar", "")),
        fps=1 / frames.base if images else _rate_of(frames.ticks, frames.base, _stated_rate(picture.description)),
        ticks=frames.ticks,
        time_base=frames.base,
        start=_start_of(first, frames, text),
        keeps_time=keeps_time,
        has_exact_times=frames.has_exact_times,
        is_seekable=frames.is_seekable,
        key_frames=frames.key_frames,
        closed=frames.closed,
        tracks=tracks,
        track_index=picture.index,
        stored_size=stored,
        pixel_format=pixels.format,
        colour=colour_of(pixels.format, pixels.range, pixels.matrix, pixels.primaries, pixels.transfer, stored[0]),
        field_order=pixels.field_order,
        has_alpha=has_alpha_mode or has_alpha(pixels.format),
        dolby_vision_profile=int(_search(r"DOVI configuration record:.*?profile: (\d+)", text) or 0),
        sizes=tuple(size for size in frames.sizes if size != stored),
        decoder={"vp9": "libvpx-vp9", "vp8": "libvpx"}.get(picture.codec, "") if has_alpha_mode else "",
        images=images,
    )


def check_showable(info: VideoInfo, hdr: str) -> None:
    """Raise VideoError for colours that cannot be shown in SDR, here or as asked."""
    if info.dolby_vision_profile == 5:
        raise VideoError(
            f"{info.path}: Dolby Vision profile 5, whose colours only a Dolby Vision decoder can show",
            "convert it to HDR10, HLG or SDR first",
        )
    if info.colour.is_hdr and hdr == "refuse":
        raise VideoError(f"{info.path}: {info.colour.name}, and --hdr refuse", "--hdr tonemap shows it in SDR")
    if not info.colour.is_known or (info.colour.has_odd_matrix and info.has_alpha):
        raise VideoError(f"{info.path}: its colour matrix, {info.colour.matrix}, is one that cannot be converted here")
    if info.colour.needs_zscale and not (ffmpeg.has_filter("zscale") and ffmpeg.has_filter("tonemap")):
        raise VideoError(
            f"{info.path}: {info.colour.name} needs the filters zscale and tonemap, which this ffmpeg does not have",
            "pip install -U imageio-ffmpeg, without IMAGEIO_FFMPEG_EXE",
        )
    if info.decoder and info.decoder not in coders("decoders"):
        raise VideoError(
            f"{info.path}: its transparency needs the decoder {info.decoder}, which this ffmpeg does not have",
            "pip install -U imageio-ffmpeg, without IMAGEIO_FFMPEG_EXE",
        )


# --- tracks and pixels ------------------------------------------------------------------------------------------------

_STREAM = re.compile(r"^(?:\[info\] )? {2,}Stream #0:(\d+)(?:\[\w+\])?(?:\((\w+)\))?: (\w+): (.*)$")


def tracks_of(log: Sequence[str]) -> tuple[Track, ...]:
    """The streams in ffmpeg's description of its input."""
    found: dict[int, Track] = {}
    for line in log:
        if "Output #0" in line:
            break
        if match := _STREAM.match(line):
            index, language, kind, rest = match.groups()
            words = re.findall(r"\(([a-z][a-z ]*)\)", rest)
            codec = rest.split(" ")[0].rstrip(",")
            # Of one track that is listed twice, as in a program of a transport stream, the first line counts.
            language = "" if language in (None, "und") else language
            found.setdefault(int(index), Track(int(index), kind.lower(), codec, language, frozenset(words), rest))
    return tuple(found[index] for index in sorted(found))


@dataclass(frozen=True)
class _Pixels:
    """What ffmpeg's line says of a picture's pixels; "" for what it does not."""

    format: str = ""
    range: str = ""  # tv or pc
    matrix: str = ""
    primaries: str = ""
    transfer: str = ""
    field_order: str = ""
    size: tuple[int, int] | None = None  # (height, width) before any rotation

    @classmethod
    def of(cls, description: str) -> "_Pixels":
        """Take "vp9 (Profile 2), yuv420p10le(tv, bt2020nc/unknown/unknown, progressive), 426x240, ..." apart."""
        found = re.search(r", ([a-z]\w+)(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\))?, (?:\d+x|none)", description)
        if found is None:
            return cls()
        said: dict[str, str] = {}
        for part in (found[2] or "").split(", "):
            if part in ("tv", "pc"):
                said["range"] = part
            elif part in _FIELD_ORDERS:
                said["field_order"] = part
            elif part.count("/") == 2:
                names = ("" if name in ("unknown", "reserved") else name for name in part.split("/"))
                said |= dict(zip(("matrix", "primaries", "transfer"), names, strict=True))
            elif re.fullmatch(r"[a-z]+\d+\w*|ycgco|fcc|gbr", part) and not part.endswith("bpc"):  # all three alike
                said |= dict.fromkeys(("matrix", "primaries", "transfer"), part)
        size = re.search(r", (\d+)x(\d+)", description)
        return cls(found[1], size=(int(size[2]), int(size[1])) if size else None, **said)


def has_alpha(pixel_format: str) -> bool:
    """Whether a pixel format has transparency."""
    return bool(re.match(r"(yuva|gbrap|rgba|bgra|argb|abgr|ya\d|ayuv|vuya|pal8)", pixel_format))


# --- frames -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packet:
    """A line of ffmpeg's framecrc: a packet, or a decoded frame."""

    time: int | None  # in ticks
    flags: int
    num_bytes: int


@dataclass(frozen=True)
class _Table:
    """What ffmpeg's framecrc prints of one track of a video, in units of header["tb"] seconds."""

    log: list[str]
    header: dict[str, str]
    packets: list[_Packet]  # in the order of the file
    marked: set[int | None]  # times of those that came through the second mapping, if there is one

    @property
    def times(self) -> list[int | None]:
        return [packet.time for packet in self.packets]


@dataclass(frozen=True)
class _Frames:
    """When frames are shown, and where decoding may begin."""

    ticks: tuple[int, ...]
    base: Fraction
    has_exact_times: bool = False
    is_seekable: bool = False
    key_frames: tuple[int, ...] = ()
    closed: frozenset[int] = frozenset()
    sizes: tuple[tuple[int, int], ...] = ()


def _frames_of(path: Path, picture: Track, keeps_time: bool, text: str) -> _Frames:
    """The frames that are shown: by the packets if these are frames, else by decoding them all."""
    clock = ["-copyts"] if keeps_time else []
    where = f"0:{picture.index}"
    packets = None
    if keeps_time and picture.codec in _COUNTABLE_CODECS:
        # Of H.264's key frames, only IDR pictures (NAL type 5) start anew; the others may have frames that look back, or
        # be the first of several that refresh the picture.
        second = ["-map", where, "-bsf:v:1", "filter_units=pass_types=5"] if picture.codec == "h264" else []
        try:
            packets = _frame_table(path, where, [*second, "-c", "copy"], clock, of_packets=True)
        except VideoError:
            packets = None  # decoding will say what is wrong, if anything is
    may_be_frames = packets is not None and not _may_hide_frames(packets, picture, text)
    shown = packets
    if packets is None or not may_be_frames or any(messages.is_complaint(line) for line in packets.log):
        try:
            shown = _frame_table(path, where, ["-enc_time_base", "demux", "-c:v", "wrapped_avframe"], clock)
        except VideoError:
            if not may_be_frames:
                raise
            # Damage inside of packets, which those who read there will meet; the rest of the video is whole.
    assert shown is not None
    if not shown.packets:
        raise VideoError(f"{path}: no frame could be decoded")
    times = sorted(time for time in shown.times if time is not None)
    base = Fraction(shown.header["tb"])
    if len(times) < len(shown.packets):  # a stream without times: as evenly as its rate says
        step = max(round(1 / (_stated_rate(picture.description) or Fraction(24)) / base), 1)
        times = [i * step for i in range(len(shown.packets))]
        return _Frames(tuple(times), base, sizes=_sizes_in(shown.log))
    known = set(times)
    is_exact = len(known) == len(times) and (shown is packets or shown.times == times)
    is_seekable = (
        packets is not None
        and is_exact
        and Fraction(packets.header["tb"]) == base
        and known <= {packet.time for packet in packets.packets}
    )
    keys = {packet.time for packet in packets.packets if packet.flags & 1} if packets is not None and is_seekable else set()
    closed = packets.marked if packets is not None and picture.codec == "h264" else keys
    return _Frames(
        tuple(times),
        base,
        is_exact,
        is_seekable,
        tuple(i for i, time in enumerate(times) if time in keys),
        frozenset(i for i, time in enumerate(times) if time in keys and time in closed),
        _sizes_in(shown.log),
    )


def _may_hide_frames(table: _Table, picture: Track, text: str) -> bool:
    """Whether there is any sign that packets and shown frames are not the same."""
    times = table.times
    numbers = sorted(time for time in times if time is not None)
    gaps = [after - before for before, after in pairwise(numbers)]
    return (
        len(numbers) < len(times)
        or not numbers
        or numbers[0] < 0  # the hidden lead-in of a cut
        or times[0] != numbers[0]  # frames that look back to before the first
        or any(packet.flags & _DISCARD or packet.num_bytes == 0 for packet in table.packets)
        or any(messages.OUTPUT_WORDS.search(line) for line in table.log)  # changed times
        or "multilayer" in picture.dispositions
        or bool(re.search(r"DOVI configuration record:.*el flag: 1", text))
        or _Pixels.of(picture.description).field_order not in ("", "progressive")  # a packet may be a field
        # VP9 hides frames in packets of their own, a tick before the next.
        or (bool(gaps) and min(gaps) < (statistics.median(gaps) / 2 if picture.codec == "vp9" else 1))
    )


def _sizes_in(log: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """The sizes (height, width) of decoded frames, in ffmpeg's log."""
    return tuple(dict.fromkeys(size for line in log if (size := messages.filtered_size(line))))


def _frame_table(path: Path, where: str, options: list[str], clock: Sequence[str] = (), *, of_packets: bool = False) -> _Table:
    """Run ffmpeg to a table of frames, or `of_packets`, whose contents do not count.

    Raises VideoError if it gives up, complains of the file, or finds more frames than there can be.
    """
    with ffmpeg.open_regular(path) as file:
        return _table_of(path, file, where, options, clock, of_packets=of_packets)


def _table_of(
    path: Path,
    file: IO[bytes],
    where: str,
    options: list[str],
    clock: Sequence[str] = (),
    *,
    demuxer: str = "",
    of_packets: bool = False,
) -> _Table:
    header: dict[str, str] = {}
    packets: list[_Packet] = []
    marked: set[int | None] = set()
    most = min(os.fstat(file.fileno()).st_size, _MAX_FRAMES)
    arguments = ["-loglevel", "level+verbose", "-nostats", *clock, *ffmpeg.input_options(file.fileno(), demuxer=demuxer)]
    arguments += ["-map", where, *options, "-an", "-sn", "-dn", "-fps_mode", "passthrough", "-f", "framecrc", "pipe:1"]
    with ffmpeg.Child(arguments, descriptors=[file.fileno()]) as child:
        for line in _lines(child):
            if line.startswith("#"):
                name, _, value = line[1:].partition(":")
                header[name.removesuffix(" 0")] = value.strip()
                continue
            stream, packet = _packet_of(line)
            if stream:
                marked.add(packet.time)
                continue
            packets.append(packet)
            if len(packets) > most:
                raise VideoError(f"{path}: it claims more than {most} frames, which is no video")
        code = child.finish()
        log = child.messages
    if code != 0:
        raise VideoError(f"{path}: {_reason(log)}")
    if damage := messages.damage(log, in_container=of_packets):
        raise VideoError(f"{path}: damaged: {damage}")
    if "tb" not in header:
        raise VideoError(f"{path}: no video in it")
    return _Table(log, header, packets, marked)


def _packet_of(line: str) -> tuple[int, _Packet]:
    """Number of the mapping, and what framecrc prints: stream, dts, pts, duration, size, checksum, then flags that are not "key"."""
    fields = [text.strip() for text in line.split(",")]
    flags = next((text[2:] for text in fields[6:] if text.startswith("F=")), "0x1")
    time = int(fields[2]) if fields[2].lstrip("-").isdigit() else None
    return int(fields[0]), _Packet(time, int(flags, 16), int(fields[4]))


def _lines(child: ffmpeg.Child) -> Iterator[str]:
    rest = b""
    while data := child.read(1 << 16, whole=False):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines if line)


def _search(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


_NO_CONTAINER = "not a video container (mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, gif, webp, y4m)"
# What ffmpeg says, and what it means: wherever it says it, and where it has said nothing else before.
_MEANINGS = {"whitelist": _NO_CONTAINER, "m3u8": _NO_CONTAINER, "matches no streams": "no video in it"}
_MEANINGS_AT_FIRST = {
    "Error opening input: Invalid data found": "not a video, or damaged from its first bytes on",
    "Cannot determine format of input": "no frame could be decoded",
}


def _reason(log: list[str]) -> str:
    """Why ffmpeg gave up, from a log that says other things too."""
    wanted = re.compile(
        r"invalid|error|failed|not found|no such|moov|matches no streams|does not contain|not in .*whitelist|unknown|cannot|end of file|unsupported|exceeds|too large",
        re.IGNORECASE,
    )
    last_words = [messages.parse(line).text for line in log if wanted.search(line) and "configuration:" not in line]
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


def _start_of(first: _Table, frames: _Frames, text: str) -> Fraction:
    """When the file's earliest track starts, on the clock of `frames`, of which `first` has the first on the file's own clock."""
    picture = frames.ticks[0] * frames.base
    stated = _search(r"Duration: [^,]+, start: (-?[\d.]+)", text)
    first_tick = first.packets[0].time
    if stated is None or first_tick is None or not re.search(rf"Input #0, ({'|'.join(_TIMED_CONTAINERS)})", text):
        return picture
    delay = first_tick * Fraction(first.header["tb"]) - Fraction(stated)
    # ffmpeg prints the start to a microsecond: no difference if the picture is the earliest.
    return picture - delay if delay > Fraction(1, 1_000_000) else picture


# --- rates ------------------------------------------------------------------------------------------------------------


def _stated_rate(description: str) -> Fraction | None:
    """The rate in ffmpeg's line, which has two decimals, as the standard rate that it may stand for."""
    found = re.search(r", ([\d.]+)(k?) fps", description)
    if found is None or not float(found[1]):
        return None
    rate = Fraction(found[1]) * (1000 if found[2] else 1)
    near = min(_COMMON_RATES, key=lambda common: abs(common - rate))
    return near if abs(near - rate) <= Fraction(1, 200) else rate


def _rate_of(ticks: Sequence[int], base: Fraction, stated: Fraction | None) -> Fraction:
    """The average rate: exactly, or as a standard or the stated one if the rounding of times explains the difference."""
    if len(ticks) < 2 or ticks[-1] == ticks[0]:
        return stated or Fraction(24)
    rate = Fraction(len(ticks) - 1, ticks[-1] - ticks[0]) / base
    gaps = [after - before for before, after in pairwise(ticks)]
    spread = max(gaps) - min(gaps)  # of times that another container rounded to milliseconds before
    rounding = spread if spread * base <= _COARSEST_TICK_S else 1
    slack = max(Fraction(max(rounding, 1), ticks[-1] - ticks[0]), Fraction(1, 1_000_000))  # relative, over the whole length
    fitting = [common for common in _COMMON_RATES if abs(common / rate - 1) <= slack]
    if stated is not None and (stated in fitting or (not fitting and abs(stated / rate - 1) <= slack)):
        return stated
    if fitting:
        return min(fitting, key=lambda common: abs(common - rate))
    return rate.limit_denominator(100_000)
