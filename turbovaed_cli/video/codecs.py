"""The codecs for writing videos: one row each, with its encoder, containers, pixel formats and options."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from turbovaed_cli.errors import MissingError, SettingsError
from turbovaed_cli.settings import MOST_CRF, check_video_name
from turbovaed_cli.video import ffmpeg

DEFAULT_CRF = 16


@dataclass(frozen=True)
class VideoCodec:
    """One codec for writing videos."""

    name: str
    encoder: str  # ffmpeg's name
    suffixes: tuple[str, ...]  # containers that hold it and that players can play; the first is the default
    bits: tuple[int, ...]  # per channel; the first is the default
    pixel_format: Callable[[int, bool], str]  # of (bits, whether height and width are even)
    options: Callable[[int, int], tuple[str, ...]]  # of (bits, the shorter side in pixels)
    has_crf: bool = False
    is_rgb: bool = False  # stores RGB, not YUV


def _yuv420_or_444(bits: int, is_even: bool) -> str:
    return ("yuv420p" if is_even else "yuv444p") + ("10le" if bits == 10 else "")


def _x265_options(bits: int, side: int) -> tuple[str, ...]:
    # x265's assembly for 10 bits writes beyond the end of pictures 40 and 48 pixels wide (4.3), which ends the process.
    assembly = ":asm=0" if bits == 10 and side < 64 else ""
    return "-preset", "medium", "-x265-params", f"log-level=error{assembly}"


VIDEO_CODECS = {
    codec.name: codec
    for codec in (
        VideoCodec(
            "h264",
            "libx264",
            (".mp4", ".m4v", ".mov", ".mkv"),
            (8, 10),
            _yuv420_or_444,
            lambda *_: ("-preset", "medium"),
            has_crf=True,
        ),
        VideoCodec(
            "h265",
            "libx265",
            (".mp4", ".mov", ".mkv"),
            (8, 10),
            _yuv420_or_444,
            _x265_options,
            has_crf=True,
        ),
        VideoCodec(
            "prores",
            "prores_ks",
            (".mov", ".mkv"),
            (10,),
            lambda _, is_even: "yuv422p10le" if is_even else "yuv444p10le",
            lambda *_: ("-vendor", "apl0"),
        ),
        # In .mov, only ffmpeg itself can play it. 8-bit RGB is stored with a fourth, empty channel.
        VideoCodec(
            "ffv1",
            "ffv1",
            (".mkv",),
            (8, 10),
            lambda bits, _: "gbrp10le" if bits == 10 else "bgr0",
            lambda *_: ("-level", "3", "-g", "1", "-slicecrc", "1"),
            is_rgb=True,
        ),
    )
}
DEFAULT_CODEC = "h264"


def find_codec(name: str, *, bits: int | None = None, crf: int | None = None, path: Path | None = None) -> VideoCodec:
    """Return the codec of this name. `bits` and `crf` of None are its defaults, `path` of None is any file.

    Raises SettingsError for an unknown name, and for a depth, quality or file suffix that the codec does not have;
    MissingError if this ffmpeg has no encoder for it.
    """
    if name not in VIDEO_CODECS:
        raise SettingsError(f"`codec` {name} is not a codec to write in", f"one of: {', '.join(VIDEO_CODECS)}")
    codec = VIDEO_CODECS[name]
    suffix = codec.suffixes[0] if path is None else path.suffix.lower()
    if path is not None:
        check_video_name(path)
    if suffix not in codec.suffixes:
        raise SettingsError(f"{suffix} files do not hold {name}", f"{name} is written to {' or '.join(codec.suffixes)}")
    if bits is not None and bits not in codec.bits:
        depths = " or ".join(map(str, codec.bits))
        raise SettingsError(f"`bits` {bits} is not a depth of {name}", f"{name} has {depths} bits per channel")
    if crf is not None and not codec.has_crf:
        with_crf = " or ".join(other.name for other in VIDEO_CODECS.values() if other.has_crf)
        raise SettingsError(f"`crf` is not for {name}, which has one quality", f"leave out `crf`, or take `codec` {with_crf}")
    if crf is not None and not 0 <= crf <= MOST_CRF:
        raise SettingsError(f"`crf` {crf} is not a quality", f"0 (best) to {MOST_CRF}")
    if codec.encoder not in coders("encoders"):
        raise MissingError(
            f"this ffmpeg has no {codec.encoder}, which writes {name}",
            "pip install -U imageio-ffmpeg, without IMAGEIO_FFMPEG_EXE; or take another --codec",
        )
    return codec


@cache
def coders(kind: str) -> frozenset[str]:
    """Return the names of all "encoders" or "decoders" in this ffmpeg, and of their codecs."""
    text = subprocess.run([ffmpeg.executable(), "-hide_banner", f"-{kind}"], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in text.partition("------")[2].splitlines() if line.strip()]
    names = {words[1] for words in lines if len(words) > 1}
    return frozenset(names | {words[-1].rstrip(")") for words in lines if words[-2:-1] == ["(codec"]})
