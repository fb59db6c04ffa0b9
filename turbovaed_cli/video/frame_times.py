"""The times at which the frames of a video are shown, and the frames at which decoding may begin."""

import os
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import IO

from turbovaed_cli.errors import VideoError
from turbovaed_cli.video import ffmpeg, messages
from turbovaed_cli.video.input_streams import COMMON_RATES, Pixels, Track, stated_rate

# In these codecs, one packet is one frame unless the table shows otherwise. VP8 hides frames, AVI packs several into one.
_COUNTABLE_CODECS = ("h264", "hevc", "av1", "vp9")
# 23 hours at 60 frames a second. The other limit is the size in bytes: a video has no more frames, but its tables can claim them.
_MAX_FRAMES = 5_000_000
_COARSEST_TICK_S = Fraction(1, 900)  # a millisecond, of Matroska and FLV, and a little more
_DISCARD = 4  # flag of a packet that is decoded and not shown


@dataclass(frozen=True)
class _Packet:
    """A line of ffmpeg's framecrc: a packet, or a decoded frame."""

    time: int | None  # in ticks
    flags: int
    num_bytes: int


@dataclass(frozen=True)
class FrameTable:
    """The output of ffmpeg's framecrc for one track of a video, in units of header["tb"] seconds."""

    log: list[str]
    header: dict[str, str]
    packets: list[_Packet]  # in the order of the file
    marked: set[int | None]  # times of the packets of the second mapping, if there is one

    @property
    def times(self) -> list[int | None]:
        return [packet.time for packet in self.packets]


@dataclass(frozen=True)
class FrameTimes:
    """The times of frames, and the frames at which decoding may begin; fields as in VideoInfo."""

    ticks: tuple[int, ...]
    base: Fraction
    has_exact_times: bool = False
    is_seekable: bool = False
    key_frames: tuple[int, ...] = ()
    closed: frozenset[int] = frozenset()
    sizes: tuple[tuple[int, int], ...] = ()


def frame_times_of(path: Path, picture: Track, keeps_time: bool, text: str) -> FrameTimes:
    """Return the times of the shown frames: from the packets if these are frames, else by decoding all frames.

    Raises VideoError for a damaged file, and if no frame could be decoded.
    """
    clock = ["-copyts"] if keeps_time else []
    where = f"0:{picture.index}"
    packets = None
    if keeps_time and picture.codec in _COUNTABLE_CODECS:
        # Of H.264's key frames, only IDR pictures (NAL type 5) are closed. After any other, frames may look back beyond it, or
        # it may be the first of several that refresh the picture.
        second = ["-map", where, "-bsf:v:1", "filter_units=pass_types=5"] if picture.codec == "h264" else []
        try:
            packets = frame_table(path, where, [*second, "-c", "copy"], clock, of_packets=True)
        except VideoError:
            packets = None  # decoding will find what is wrong, if anything is
    may_be_frames = packets is not None and not _may_hide_frames(packets, picture, text)
    shown = packets
    if packets is None or not may_be_frames or any(messages.is_complaint(line) for line in packets.log):
        try:
            shown = frame_table(path, where, ["-enc_time_base", "demux", "-c:v", "wrapped_avframe"], clock)
        except VideoError:
            if not may_be_frames:
                raise
            # Damage inside of packets: reading those frames raises the error; the rest of the video is whole.
    assert shown is not None
    if not shown.packets:
        raise VideoError(f"{path}: no frame could be decoded")
    times = sorted(time for time in shown.times if time is not None)
    base = Fraction(shown.header["tb"])
    if len(times) < len(shown.packets):  # a stream without times: even, at its stated rate
        step = max(round(1 / (stated_rate(picture.description) or Fraction(24)) / base), 1)
        times = [i * step for i in range(len(shown.packets))]
        return FrameTimes(tuple(times), base, sizes=_sizes_in(shown.log))
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
    return FrameTimes(
        tuple(times),
        base,
        is_exact,
        is_seekable,
        tuple(i for i, time in enumerate(times) if time in keys),
        frozenset(i for i, time in enumerate(times) if time in keys and time in closed),
        _sizes_in(shown.log),
    )


def _may_hide_frames(table: FrameTable, picture: Track, text: str) -> bool:
    """Whether there is any sign that packets and shown frames are not the same."""
    times = table.times
    numbers = sorted(time for time in times if time is not None)
    gaps = [after - before for before, after in pairwise(numbers)]
    return (
        len(numbers) < len(times)
        or not numbers
        or numbers[0] < 0  # the hidden lead-in of a cut
        or times[0] != numbers[0]  # frames that need ones from before the first
        or any(packet.flags & _DISCARD or packet.num_bytes == 0 for packet in table.packets)
        or any(messages.OUTPUT_WORDS.search(line) for line in table.log)  # changed times
        or "multilayer" in picture.dispositions
        or bool(re.search(r"DOVI configuration record:.*el flag: 1", text))
        or Pixels.of(picture.description).field_order not in ("", "progressive")  # a packet may be a field
        # VP9 hides frames in separate packets, a tick before the next.
        or (bool(gaps) and min(gaps) < (statistics.median(gaps) / 2 if picture.codec == "vp9" else 1))
    )


def _sizes_in(log: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return the sizes (height, width) of decoded frames in ffmpeg's log."""
    return tuple(dict.fromkeys(size for line in log if (size := messages.filtered_size(line))))


def frame_table(path: Path, where: str, options: list[str], clock: Sequence[str] = (), *, of_packets: bool = False) -> FrameTable:
    """Run ffmpeg and return its table of frames, or `of_packets`; damage inside of packets then does not count.

    Raises VideoError if ffmpeg fails, complains about the file, or finds more frames than possible.
    """
    with ffmpeg.open_regular(path) as file:
        return table_of(path, file, where, options, clock, of_packets=of_packets)


def table_of(
    path: Path,
    file: IO[bytes],
    where: str,
    options: list[str],
    clock: Sequence[str] = (),
    *,
    demuxer: str = "",
    of_packets: bool = False,
) -> FrameTable:
    """Return the table of an open file, as `frame_table` does; ffmpeg chooses the demuxer unless `demuxer` names one."""
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
                raise VideoError(f"{path}: it claims more than {most} frames, which is too many")
        code = child.finish()
        log = child.messages
    if code != 0:
        raise VideoError(f"{path}: {_reason(log)}")
    if damage := messages.damage(log, in_container=of_packets):
        raise VideoError(f"{path}: damaged: {damage}")
    if "tb" not in header:
        raise VideoError(f"{path}: no video in it")
    return FrameTable(log, header, packets, marked)


def _packet_of(line: str) -> tuple[int, _Packet]:
    """Return (number of the mapping, packet) of a line of framecrc.

    Its fields are stream, dts, pts, duration, size, checksum, then flags that are not "key".
    """
    fields = [text.strip() for text in line.split(",")]
    flags = next((text[2:] for text in fields[6:] if text.startswith("F=")), "0x1")
    time = int(fields[2]) if fields[2].lstrip("-").isdigit() else None
    return int(fields[0]), _Packet(time, int(flags, 16), int(fields[4]))


def _lines(child: ffmpeg.Child) -> Iterator[str]:
    rest = b""
    while data := child.read(1 << 16, whole=False):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines if line)


_NO_CONTAINER = "not a video container (mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, gif, webp, y4m)"
# ffmpeg's messages and their meanings: in any line, and in the first line only.
_MEANINGS = {"whitelist": _NO_CONTAINER, "m3u8": _NO_CONTAINER, "matches no streams": "no video in it"}
_MEANINGS_AT_FIRST = {
    "Error opening input: Invalid data found": "not a video, or damaged from its first bytes on",
    "Cannot determine format of input": "no frame could be decoded",
}


def _reason(log: list[str]) -> str:
    """Return the reason why ffmpeg failed, from its log."""
    wanted = re.compile(
        r"invalid|error|failed|not found|no such|moov|matches no streams|does not contain|not in .*whitelist|unknown|cannot|end of file|unsupported|exceeds|too large",
        re.IGNORECASE,
    )
    reasons = [messages.parse(line).text for line in log if wanted.search(line) and "configuration:" not in line]
    for signs, lines in ((_MEANINGS, reasons), (_MEANINGS_AT_FIRST, reasons[:1])):
        for sign, meaning in signs.items():
            if any(sign in line for line in lines):
                return meaning
    return reasons[0].rstrip(".") if reasons else "ffmpeg could not read it"


def rate_of(ticks: Sequence[int], base: Fraction, stated: Fraction | None) -> Fraction:
    """Return the average rate: the exact one, or the stated or a standard one if rounded times explain the difference."""
    if len(ticks) < 2 or ticks[-1] == ticks[0]:
        return stated or Fraction(24)
    rate = Fraction(len(ticks) - 1, ticks[-1] - ticks[0]) / base
    gaps = [after - before for before, after in pairwise(ticks)]
    spread = max(gaps) - min(gaps)  # more than 1 if another container has rounded the times to milliseconds before
    rounding = spread if spread * base <= _COARSEST_TICK_S else 1
    slack = max(Fraction(max(rounding, 1), ticks[-1] - ticks[0]), Fraction(1, 1_000_000))  # relative, over the whole length
    fitting = [common for common in COMMON_RATES if abs(common / rate - 1) <= slack]
    if stated is not None and (stated in fitting or (not fitting and abs(stated / rate - 1) <= slack)):
        return stated
    if fitting:
        return min(fitting, key=lambda common: abs(common - rate))
    return rate.limit_denominator(100_000)
