"""The tracks that a written video takes from its source besides the picture: sound, subtitles, chapters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from turbovaed_cli.video import ffmpeg
from turbovaed_cli.video.codecs import coders
from turbovaed_cli.video.input_streams import Track
from turbovaed_cli.video.probing import VideoInfo

_MP4_SOUND = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
_MOV_SOUND = ("aac", "mp3", "ac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_f32le")
_MKV_SOUND = (*_MP4_SOUND, *_MOV_SOUND, "vorbis", "mp2", "dts", "truehd")
# The codecs that each container accepts as they are. Other sound becomes AAC, other text subtitles the first of the list.
_SOUND = {".mp4": _MP4_SOUND, ".m4v": ("aac", "ac3", "alac"), ".mov": _MOV_SOUND, ".mkv": _MKV_SOUND}
_MP4_SUBTITLES = ("mov_text",)
_MKV_SUBTITLES = ("subrip", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle")
_SUBTITLES = {".mp4": _MP4_SUBTITLES, ".m4v": _MP4_SUBTITLES, ".mov": _MP4_SUBTITLES, ".mkv": _MKV_SUBTITLES}
_TEXT_SUBTITLES = ("mov_text", "subrip", "ass", "ssa", "webvtt", "text")
_STYLED_SUBTITLES = ("ass", "ssa")
NEW_SOUND = ("aac", "-b:a", "192k")
_SHORT_NAMES = {"hdmv_pgs_subtitle": "pgs", "dvd_subtitle": "vobsub", "dvb_subtitle": "dvb", "dvb_teletext": "teletext"}
# QuickTime has numbers for some languages, and ffmpeg finds each by only one of its two codes.
_MOV_LANGUAGES = {
    "bod": "tib", "cym": "wel", "cze": "ces", "deu": "ger", "ell": "gre", "eus": "baq", "fas": "per", "fre": "fra", "hye": "arm",
    "isl": "ice", "kat": "geo", "mkd": "mac", "msa": "may", "mya": "bur", "nld": "dut", "rum": "ron", "slo": "slk", "sqi": "alb",
    "swe": "sve", "zho": "chi",
}  # fmt: skip


@dataclass(frozen=True)
class KeptTrack:
    """A track of the source in the output: copied, or re-encoded."""

    track: Track
    how: tuple[str, ...] = ("copy",)  # ffmpeg's encoder and its options

    @property
    def is_lossy(self) -> bool:
        """Whether it loses something: sound that is re-encoded, subtitles without their style."""
        return self.how != ("copy",) and (self.track.kind == "audio" or self.track.codec in _STYLED_SUBTITLES)


@dataclass(frozen=True)
class TrackPlan:
    """The tracks of a source that are kept, with how, and those that are left out."""

    kept: tuple[KeptTrack, ...] = ()
    left_out: tuple[Track, ...] = ()
    start: Fraction = Fraction(0)  # seconds: the start of the source's earliest track, on the source's own clock

    def describe(self) -> str:
        """Return the losses in one line; "" if there are none."""
        anew = [f"{name_of(kept.track)} becomes {kept.how[0]}" for kept in self.kept if kept.is_lossy]
        left = [name_of(track) for track in self.left_out]
        return "; ".join([*(["left out: " + "; ".join(left)] if left else []), *anew])


def plan_tracks(info: VideoInfo, suffix: str, *, sound: bool = True) -> TrackPlan:
    """Decide how a container takes every track of `info` but the picture. Without `sound`, sound does not count as lost."""
    if info.images:
        return TrackPlan()
    description = _description_of(info)
    has_chapters = any("Chapter #" in line for line in description)
    start = re.search(r"Duration: [^,]+, start: (-?[\d.]+)", "\n".join(description))
    kept: list[KeptTrack] = []
    left: list[Track] = []
    for track in info.tracks:
        if track.index == info.track_index or (track.kind == "audio" and not sound):
            continue
        if how := _how(track, suffix):
            kept.append(KeptTrack(track, how))
        elif not (has_chapters and track.kind == "data" and track.description.startswith("bin_data (text")):
            left.append(track)  # but for the titles of chapters, which are kept as chapters
    return TrackPlan(tuple(kept), tuple(left), Fraction(start[1]) if start else Fraction(0))


def _description_of(info: VideoInfo) -> list[str]:
    """Return the lines that ffmpeg prints about a file."""
    with (
        ffmpeg.open_regular(info.path) as file,
        ffmpeg.Child(["-loglevel", "info", *ffmpeg.input_options(file.fileno())], descriptors=[file.fileno()]) as child,
    ):
        child.finish()  # it ends with an error, as there is no output
        return child.messages


def _how(track: Track, suffix: str) -> tuple[str, ...]:
    """Return how a container takes a track: ("copy",), or an encoder with its options, or () for not at all."""
    if track.kind == "audio":
        if track.codec in _SOUND[suffix]:
            return ("copy",)
        return NEW_SOUND if track.codec in coders("decoders") else ()
    if track.kind == "subtitle":
        if track.codec in _SUBTITLES[suffix]:
            return ("copy",)
        return (_SUBTITLES[suffix][0],) if track.codec in _TEXT_SUBTITLES else ()
    if track.kind == "attachment" and suffix == ".mkv":
        return ("copy",)
    return ()


def mapped(kept: Sequence[KeptTrack], suffix: str) -> list[str]:
    """Return the options that take tracks and chapters from ffmpeg's second input, after the picture."""
    arguments = ["-map_chapters", "1"]
    for number, one in enumerate(kept, start=1):
        encoder, *options = one.how
        arguments += ["-map", f"1:{one.track.index}", f"-c:{number}", encoder, *options]
        if suffix == ".mov" and one.track.language in _MOV_LANGUAGES:
            arguments += [f"-metadata:s:{number}", f"language={_MOV_LANGUAGES[one.track.language]}"]
    return arguments


def name_of(track: Track) -> str:
    """Return the name of a track in a message, such as "subtitle 3 (pgs, deu)"."""
    codec = track.codec
    if codec in ("none", "bin_data"):  # take the file's own name for it, if there is one
        tag = re.match(r"\w+ \((\w+) /", track.description)
        codec = tag[1] if tag else ""
    facts = [fact for fact in (_SHORT_NAMES.get(codec, codec), track.language) if fact]
    kind = "cover picture" if track.kind == "video" and not track.is_picture else {"audio": "sound"}.get(track.kind, track.kind)
    return f"{kind} {track.index}" + (f" ({', '.join(facts)})" if facts else "")
