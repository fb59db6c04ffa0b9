"""The times of the frames of a written video, and the stream that carries raw frames with these times to the encoder."""

import struct
from dataclasses import dataclass
from fractions import Fraction

from turbovaed_cli.video.probing import VideoInfo

_LEAST_TICKS = 90_000  # per second: a rounding of 6 microseconds at most
_MOST_TICKS = 100_000_000  # beyond it, a file's 32-bit fields and the pipe's nanoseconds would round
_FEWER_TICKS = 1_000_000
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Timing:
    """The time of every frame: from `start` seconds after the file's start, evenly at `fps`, or at `ticks`."""

    fps: Fraction  # the average of a variable rate
    start: Fraction = Fraction(0)  # of the first frame, in seconds
    ticks: tuple[int, ...] = ()  # for a variable rate: frame i is shown (ticks[i] - ticks[0]) * time_base after the first
    time_base: Fraction = Fraction(1)

    @classmethod
    def of(cls, info: VideoInfo) -> "Timing":
        """Return the timing of a video: exactly even if its rate is constant, else with its own times."""
        start = max(info.ticks[0] * info.time_base - info.start, Fraction(0))
        if info.has_constant_rate:
            return cls(info.fps, start)
        return cls(info.fps, start, info.ticks, info.time_base)

    @property
    def ticks_per_s(self) -> int:
        """A time scale in which every frame's time is a whole number, fine enough for `start` and for sound.

        If that takes more than 100 million ticks per second, it is a million, to which times are rounded.
        """
        rate = self.time_base.denominator if self.ticks else self.fps.numerator
        if rate > _MOST_TICKS:
            return _FEWER_TICKS
        return rate * -(-_LEAST_TICKS // rate)

    def on_grid(self, ticks_per_s: int) -> list[int]:
        """Return the times of a variable rate after the first frame, rounded to a scale and strictly ascending in it."""
        times: list[int] = []
        for tick in self.ticks:
            time = round((tick - self.ticks[0]) * self.time_base * ticks_per_s)
            times.append(max(time, times[-1] + 1) if times else 0)
        return times

    def after_first(self, index: int) -> Fraction:
        """Return the seconds from the first frame to frame `index`."""
        if self.ticks:
            return (self.ticks[index] - self.ticks[0]) * self.time_base
        return index / self.fps


def stream_head(height: int, width: int, fps: Fraction, bytes_per_pixel: int) -> bytes:
    """Return the head of a Matroska stream of raw RGB frames whose times are in nanoseconds.

    Unlike in rawvideo, each frame has its time. Source: RFC 9559 (Matroska) and RFC 8794 (EBML); the pixel formats are
    ffmpeg's FourCCs of rgb24 and rgb48le.
    """
    document = _element(0x1A45DFA3, _element(0x4282, b"matroska") + _element(0x4287, b"\4") + _element(0x4285, b"\2"))
    picture = _number(0xB0, width) + _number(0xBA, height) + _element(0x2EB524, b"RGB" + bytes([bytes_per_pixel * 8]))
    track = _number(0xD7, 1) + _number(0x73C5, 1) + _number(0x83, 1) + _number(0x9C, 0) + _element(0x22B59C, b"und")
    track += _element(0x86, b"V_UNCOMPRESSED") + _number(0x23E383, round(NANOSECONDS / fps)) + _element(0xE0, picture)
    info = _number(0x2AD7B1, 1)  # nanoseconds per unit of time
    segment = b"\x18\x53\x80\x67\x01" + b"\xff" * 7  # of unknown length: it ends when the pipe does
    return document + segment + _element(0x1549A966, info) + _element(0x1654AE6B, _element(0xAE, track))


def frame_head(time_ns: int, num_bytes: int) -> bytes:
    """Return the head of one frame of `num_bytes` in that stream: it begins a new cluster, with the frame's time."""
    block = struct.pack(">BQ", 0xA3, 1 << 56 | num_bytes + 4) + b"\x81\0\0\x80"  # track 1, time as the cluster, key frame
    time = _number(0xE7, time_ns)
    return struct.pack(">IQ", 0x1F43B675, 1 << 56 | len(time) + len(block) + num_bytes) + time + block


def _element(name: int, content: bytes) -> bytes:
    return name.to_bytes((name.bit_length() + 7) // 8) + (1 << 56 | len(content)).to_bytes(8) + content


def _number(name: int, value: int) -> bytes:
    return _element(name, value.to_bytes(8))
