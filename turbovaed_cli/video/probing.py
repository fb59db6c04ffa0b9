"""The facts about a video: size, colours, the time of every frame, its other tracks, and where reading may begin.

All come from ffmpeg: its description of the file, and a table of packets or, if packets may not be frames, of decoded
frames.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import VideoError
from turbovaed_cli.settings import HDR_CHOICES
from turbovaed_cli.video import ffmpeg
from turbovaed_cli.video.codecs import coders
from turbovaed_cli.video.colour import Colour, colour_of, how_it_is_shown
from turbovaed_cli.video.frame_times import FrameTable, FrameTimes, frame_table, frame_times_of, rate_of, table_of
from turbovaed_cli.video.images import demuxer_of, joined
from turbovaed_cli.video.input_streams import Pixels, Track, has_alpha, search, stated_rate, tracks_of
from turbovaed_cli.video.sources import as_text, frames_in

# Reading may seek in these containers: the timestamp of a packet does not depend on where reading began.
_SEEKABLE_CONTAINERS = ("mov,mp4", "matroska")
# In these, every track has its own timestamps; in others, the start of the picture depends on the decoding order.
_TIMED_CONTAINERS = (*_SEEKABLE_CONTAINERS, "mpegts", "mpeg", "flv", "asf", "ogg")
_FIRST_FRAME = ["-frames:v", "1", "-enc_time_base", "demux", "-c:v", "wrapped_avframe"]
_MOST_DRIFT_S = 0.005  # of a constant rate: more than any container rounds, and a quarter of the delay of sound that shows
TRANSPARENT = "transparent parts are shown over black"


@dataclass(frozen=True)
class VideoInfo:
    """The facts about a video, upright. `width` and `height` are stored pixels, each of the shape `sample_aspect_ratio`."""

    path: Path
    width: int
    height: int
    sample_aspect_ratio: Fraction
    fps: Fraction  # average over the video
    ticks: tuple[int, ...]  # the time of each frame, ascending, in units of time_base
    time_base: Fraction  # seconds
    start: Fraction  # seconds: the start of the file's earliest track, on the clock of ticks
    keeps_time: bool  # whether timestamps do not depend on where reading began
    has_exact_times: bool  # whether every frame has a timestamp, later than that of the frame before
    is_seekable: bool  # whether reading can seek to a frame exactly, by its time
    key_frames: tuple[int, ...]  # frames at which decoding can begin, ascending; empty if not seekable
    closed: frozenset[int]  # the key frames after which no frame needs one from before
    tracks: tuple[Track, ...]
    track_index: int  # of the picture, in the file
    stored_size: tuple[int, int]  # (height, width) before any rotation
    pixel_format: str  # ffmpeg's name, such as yuv420p10le
    colour: Colour
    field_order: str  # progressive, top first, bottom first, or "" if the file does not state it
    has_alpha: bool
    dolby_vision_profile: int = 0  # 0: none
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) that frames change to, as far as probing decoded them
    decoder: str = ""  # ffmpeg's decoder, if not its own choice
    images: tuple[Path, ...] = field(default=(), repr=False)  # of a folder of frames: one file each

    @property
    def num_frames(self) -> int:
        """The number of frames that are shown."""
        return len(self.ticks)

    @cached_property
    def times_s(self) -> tuple[float, ...]:
        """The time of each frame in seconds after the start of the file's earliest track, ascending."""
        return tuple(float(tick * self.time_base - self.start) for tick in self.ticks)

    @property
    def audio(self) -> Track | None:
        """The sound that players choose: the default track, or the first."""
        sounds = [track for track in self.tracks if track.kind == "audio"]
        return next((track for track in sounds if track.is_default), sounds[0] if sounds else None)

    @property
    def is_interlaced(self) -> bool:
        """Whether each frame holds two fields of different times."""
        return self.field_order not in ("", "progressive")

    @cached_property
    def has_constant_rate(self) -> bool:
        """Whether every frame is within 5 ms, and half a frame, of its time at an even rate."""
        first, step = self.ticks[0], 1 / (self.fps * self.time_base)
        most = min(_MOST_DRIFT_S * float(self.fps), 0.5) * float(step)
        return all(abs(tick - first - i * float(step)) <= most for i, tick in enumerate(self.ticks))

    @property
    def notes(self) -> tuple[str, ...]:
        """The changes that reading makes to the picture, a clause each: colours, fields, transparency, sizes."""
        found = list(how_it_is_shown(self.colour))
        if self.is_interlaced:
            found.append(f"interlaced ({self.field_order}): deinterlaced, one frame for each")
        if self.has_alpha and not (self.images and self.pixel_format == "gbrap"):  # ffmpeg's format for CMYK
            found.append(TRANSPARENT)
        if self.sizes:
            found.append(size_change(self, self.sizes))
        return tuple(found)


def size_change(info: VideoInfo, sizes: Sequence[tuple[int, int]]) -> str:
    """Return the note about frames that change to other sizes (height, width)."""
    texts = ", ".join(f"{width}x{height}" for height, width in dict.fromkeys(sizes))
    return f"the frame size changes to {texts}: scaled to fit {info.width}x{info.height}, with black borders"


def notes_on(videos: Iterable[VideoInfo]) -> list[str]:
    """Return the notes about several videos, each once, with the first video that it is about and the number of the rest."""
    named: dict[str, list[str]] = {}
    for info in videos:
        for note in info.notes:
            named.setdefault(note, []).append(info.path.name)
    return [f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}" for note, names in named.items()]


def probe(path: Path, *, hdr: str = "tonemap", fps: Fraction = Fraction(24)) -> VideoInfo:
    """Return the facts about a video: one frame is decoded, the rest are counted (or decoded, if packets may not be frames).

    `hdr` selects the treatment of PQ and HLG: "tonemap" or "refuse". `fps` is the rate of a folder of frames, which has none.
    Raises VideoError with one reason if the video cannot be read, or if its name is not UTF-8: no manifest or page could hold
    it.
    """
    path = Path(path)
    if (name := as_text(path)) != str(path):
        raise VideoError(f"{name}: its name is not UTF-8", "rename it")
    check_choice("`hdr`", hdr, HDR_CHOICES)
    info = _probe_folder(path, fps) if path.is_dir() else _probe_file(path)
    check_showable(info, hdr)
    return info


def _probe_folder(folder: Path, fps: Fraction) -> VideoInfo:
    """Return the facts about a folder of numbered pictures, from the first; changes are found when the rest are read."""
    images = frames_in(folder)
    if not images:
        raise VideoError(
            f"{folder} is not a regular file",
            "a folder of frames holds numbered .png or .jpg files, all alike but for the number",
        )
    with joined(images[:1], images[0]) as file:
        first = table_of(folder, file, "0:V:0", _FIRST_FRAME, demuxer=demuxer_of(images))
    base = 1 / fps
    return _info(folder, first, FrameTimes(tuple(range(len(images))), base), keeps_time=False, images=images)


def _probe_file(path: Path) -> VideoInfo:
    first = frame_table(path, "0:V:0", _FIRST_FRAME, ["-copyts"])
    tracks = tracks_of(first.log)
    pictures = [track for track in tracks if track.is_picture]
    picture = next((track for track in pictures if track.is_default), pictures[0] if pictures else None)
    if picture is not None and picture is not pictures[0]:
        first = frame_table(path, f"0:{picture.index}", _FIRST_FRAME, ["-copyts"])
    if picture is None:
        raise VideoError(f"{path}: no frame could be decoded")
    text = "\n".join(first.log)
    keeps_time = (search(r"Input #0, (\S+),", text) or "").startswith(_SEEKABLE_CONTAINERS)
    return _info(path, first, frame_times_of(path, picture, keeps_time, text), keeps_time=keeps_time, picture=picture)


def _info(
    path: Path,
    first: "FrameTable",
    frames: "FrameTimes",
    *,
    keeps_time: bool,
    picture: Track | None = None,
    images: tuple[Path, ...] = (),
) -> VideoInfo:
    """Combine the facts: `first` is the table of the first frame, `frames` the times of all."""
    tracks = () if images else tracks_of(first.log)
    picture = picture or next(track for track in tracks_of(first.log) if track.kind == "video")
    if not first.packets:
        raise VideoError(f"{path}: no frame could be decoded")
    width, height = (int(n) for n in first.header["dimensions"].split("x"))
    text = "\n".join(first.log)
    pixels = Pixels.of(picture.description)
    stored = pixels.size or (height, width)
    has_alpha_mode = bool(re.search(rf"Stream #0:{picture.index}\b(?:(?!Stream #).)*alpha_mode +: 1\b", text, re.DOTALL))
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        # In pictures, it is the density for printing.
        sample_aspect_ratio=Fraction(1) if images else _aspect_of(first.header.get("sar", "")),
        fps=1 / frames.base if images else rate_of(frames.ticks, frames.base, stated_rate(picture.description)),
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
        dolby_vision_profile=int(search(r"DOVI configuration record:.*?profile: (\d+)", text) or 0),
        sizes=tuple(size for size in frames.sizes if size != stored),
        decoder={"vp9": "libvpx-vp9", "vp8": "libvpx"}.get(picture.codec, "") if has_alpha_mode else "",
        images=images,
    )


def check_showable(info: VideoInfo, hdr: str) -> None:
    """Raise VideoError for colours that cannot be shown in SDR: by this ffmpeg, by any, or because `hdr` is "refuse"."""
    if info.dolby_vision_profile == 5:
        raise VideoError(
            f"{info.path}: Dolby Vision profile 5, whose colours only a Dolby Vision decoder can show",
            "convert it to HDR10, HLG or SDR first",
        )
    if info.colour.is_hdr and hdr == "refuse":
        raise VideoError(f"{info.path}: {info.colour.name}, and `hdr` refuse", "`hdr` tonemap shows it in SDR")
    if not info.colour.is_known or (info.colour.has_odd_matrix and info.has_alpha):
        raise VideoError(f"{info.path}: its colour matrix, {info.colour.matrix}, cannot be converted")
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


def _aspect_of(text: str) -> Fraction:
    numerator, _, denominator = text.partition("/")
    if numerator.isdigit() and denominator.isdigit() and int(numerator) and int(denominator):
        return Fraction(int(numerator), int(denominator))
    return Fraction(1)


def _start_of(first: FrameTable, frames: FrameTimes, text: str) -> Fraction:
    """Return the start of the file's earliest track in seconds, on the clock of `frames`.

    `first` has the time of the first frame on the file's own clock, which ffmpeg's stated start uses too.
    """
    picture = frames.ticks[0] * frames.base
    stated = search(r"Duration: [^,]+, start: (-?[\d.]+)", text)
    first_tick = first.packets[0].time
    if stated is None or first_tick is None or not re.search(rf"Input #0, ({'|'.join(_TIMED_CONTAINERS)})", text):
        return picture
    delay = first_tick * Fraction(first.header["tb"]) - Fraction(stated)
    # ffmpeg prints the start to a microsecond: no difference if the picture is the earliest.
    return picture - delay if delay > Fraction(1, 1_000_000) else picture
