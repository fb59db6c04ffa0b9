"""What ffmpeg's messages are about: the file that is read, what we made it write, or frames before the one asked for.

Only the first kind is a verdict on the file. A line names who wrote it in brackets: `[h264 @ 0x55d0]`, `[in#0/matroska]`,
`[out#0/rawvideo]`; then, with `-loglevel level+...`, its level. Other lines belong to no part.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_PREFIX = re.compile(r"^((?:\[[^\]]*\] ?)*)(.*)$")
_LEVELS = ("panic", "fatal", "error", "warning", "info", "verbose", "debug", "trace")
# Parts of ffmpeg that handle what we asked it to write: muxers, encoders, filters, scalers.
_OUTPUT = re.compile(
    r"(out#|vost#|aost#|sost#|ost#|enc:|vf#|af#|fc#|graph|Parsed_|swscaler|auto_scale|AVFilter|"
    r"(rawvideo|framecrc|framehash|null|wrapped_avframe|image2pipe)\b)"
)
# Decoders and parsers of sound and subtitles. What they write is no verdict on the picture.
_OTHER_TRACKS = re.compile(
    r"(aac|ac-?3|eac3|alac|amr|ape|atrac|adpcm|als|cook|dca|dts|flac|gsm|libopus|mlp|mp[123]|opus|pcm|qdm|ra_|sipr|speex|truehd|"
    r"vorbis|wma|wavpack|mpegaudio|ass|dvb_?sub|dvdsub|mov_text|pgssub|srt|subrip|webvtt|xsub)[\w-]*( parser)? @",
    re.IGNORECASE,
)
# Parts that look into packets when these are only counted.
_INSIDE = re.compile(r"(h264|hevc|vp9|av1|libdav1d|filter_units)\b")
# Without the prefix of older releases, by their words.
OUTPUT_WORDS = re.compile(
    r"non.?monoton\w+ (increasing )?dts|Invalid DTS|Timestamps are unset in a packet|Queue input is backward|"
    r"Application provided (duration|invalid)|pts has no value|deprecated pixel format|Past duration|Changing video frame properties",
    re.IGNORECASE,
)
# Written at error level about files that are fine.
_HARMLESS = re.compile(
    r"chapter track not found|timescale not set|Last message repeated|Consider increasing the value for the 'analyzeduration'",
    re.IGNORECASE,
)
# Written at warning level, and yet about a frame that is wrong.
_COMPLAINTS_AT_WARNING = ("corrupt decoded frame",)
# What decoders write of frames whose references or parameter sets came before the point where decoding began, as at the start
# of a recording.
_MISSING_REFERENCES = re.compile(
    r"mmco: unref short failure|co located POCs unavailable|Missing reference picture|reference picture missing during reorder|"
    r"mmco: unref long failure|number of reference frames .* exceeds max|Frame num gap|illegal short term buffer state|no frame!|"
    r"non-existing [SP]PS \d+ referenced|decode_slice_header error|"  # h264
    r"Could not find ref with POC|Error constructing the frame RPS|Skipping invalid undecodable NALU|PPS id out of range|"  # hevc
    r"[VSP]PS id \d+ (is )?not available|"  # vvc
    r"Requested reference \d+ not available|Not all references are available|"  # vp9
    r"Discarding interframe without a prior keyframe|first frame is no keyframe|Missing reference frame|"  # vp8, mpeg4
    r"corrupt decoded frame",  # any: pixels that the decoder made up
    re.IGNORECASE,
)


class About(Enum):
    """What a line is about."""

    INPUT = "input"  # damage in the file, or what ffmpeg cannot do with it
    REFERENCES = "references"  # frames that lack the ones they were predicted from
    OUTPUT = "output"  # what we made ffmpeg write
    OTHER_TRACKS = "other tracks"  # sound and subtitles, which are copied as they are
    NOTHING = "nothing"  # no complaint


@dataclass(frozen=True)
class Message:
    """One line, taken apart."""

    writers: tuple[str, ...]  # "h264 @ 0x55d0", in the line's order
    level: str  # "" if the line does not have it
    text: str


def parse(line: str) -> Message:
    """Take a line apart."""
    prefix, text = _PREFIX.match(line.strip()).groups()  # type: ignore[union-attr]
    parts = re.findall(r"\[([^\]]*)\]", prefix)
    level = next((part for part in parts if part in _LEVELS), "")
    return Message(tuple(part for part in parts if part not in _LEVELS), level, text)


def filtered_size(line: str) -> tuple[int, int] | None:
    """The (height, width) of frames, if this line tells that filters were made for such; written at level verbose."""
    found = re.search(r"input from stream .* w:(\d+) h:(\d+) pixfmt:", line)
    return (int(found[2]), int(found[1])) if found else None


def filtered_format(line: str) -> str:
    """The pixel format in such a line."""
    found = re.search(r" pixfmt:(\w+)", line)
    return found[1] if found else ""


def about(line: str) -> About:
    """Judge one line of ffmpeg's. Lines without a level come from `-loglevel error` and are complaints."""
    message = parse(line)
    is_complaint = message.level in ("", "panic", "fatal", "error") or message.text in _COMPLAINTS_AT_WARNING
    if not message.text or not is_complaint or _HARMLESS.search(message.text):
        return About.NOTHING
    if message.writers and _OTHER_TRACKS.match(message.writers[-1]):
        return About.OTHER_TRACKS
    if any(_OUTPUT.match(writer) for writer in message.writers) or OUTPUT_WORDS.search(message.text):
        return About.OUTPUT
    return About.REFERENCES if _MISSING_REFERENCES.search(message.text) else About.INPUT


def is_complaint(line: str) -> bool:
    """Whether a line complains of anything."""
    return about(line) is not About.NOTHING


def damage(lines: Iterable[str], *, in_container: bool = False) -> str:
    """The first line about damage in the file that is read, without its prefix; "" if there is none.

    `in_container` leaves out what is wrong inside of packets.
    """
    found = (parse(line) for line in lines if about(line) is About.INPUT)
    return next((one.text for one in found if not (in_container and any(_INSIDE.match(writer) for writer in one.writers))), "")


def first_error(lines: Iterable[str]) -> str:
    """The first complaint about anything, without its prefix; "" if there is none."""
    return next((parse(line).text for line in lines if is_complaint(line)), "")
