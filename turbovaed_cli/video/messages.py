"""The subjects of ffmpeg's messages: the input file, the output that we requested, or frames before the first wanted one.

Only the first kind is a verdict on the file. A line names its writer in brackets: `[h264 @ 0x55d0]`, `[in#0/matroska]`,
`[out#0/rawvideo]`; then, with `-loglevel level+...`, its level. Other lines have no writer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_PREFIX = re.compile(r"^((?:\[[^\]]*\] ?)*)(.*)$")
_LEVELS = ("panic", "fatal", "error", "warning", "info", "verbose", "debug", "trace")
# Parts of ffmpeg that handle its output: muxers, encoders, filters, scalers.
_OUTPUT = re.compile(
    r"(out#|vost#|aost#|sost#|ost#|enc:|vf#|af#|fc#|graph|Parsed_|swscaler|auto_scale|AVFilter|"
    r"(rawvideo|framecrc|framehash|null|wrapped_avframe|image2pipe)\b)"
)
# Decoders and parsers of sound and subtitles. Their messages are no verdict on the picture.
_OTHER_TRACKS = re.compile(
    r"(aac|ac-?3|eac3|alac|amr|ape|atrac|adpcm|als|cook|dca|dts|flac|gsm|libopus|mlp|mp[123]|opus|pcm|qdm|ra_|sipr|speex|truehd|"
    r"vorbis|wma|wavpack|mpegaudio|ass|dvb_?sub|dvdsub|mov_text|pgssub|srt|subrip|webvtt|xsub)[\w-]*( parser)? @",
    re.IGNORECASE,
)
# Parts that look into packets while these are only counted.
_INSIDE = re.compile(r"(h264|hevc|vp9|av1|libdav1d|filter_units)\b")
# Messages about the output, recognised by their words, as older releases write no prefix.
OUTPUT_WORDS = re.compile(
    r"non.?monoton\w+ (increasing )?dts|Invalid DTS|Timestamps are unset in a packet|Queue input is backward|"
    r"Application provided (duration|invalid)|pts has no value|deprecated pixel format|Past duration|Changing video frame properties",
    re.IGNORECASE,
)
# Messages at error level about files that are fine.
_HARMLESS = re.compile(
    r"chapter track not found|timescale not set|Last message repeated|Consider increasing the value for the 'analyzeduration'",
    re.IGNORECASE,
)
# Messages at warning level about a frame that is wrong.
_COMPLAINTS_AT_WARNING = ("corrupt decoded frame",)
# Messages of decoders about frames whose references or parameter sets came before the point at which decoding began, as at
# the start of a recording.
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
    """The subject of a line."""

    INPUT = "input"  # damage in the file, or a feature that ffmpeg does not support
    REFERENCES = "references"  # frames that lack the ones they were predicted from
    OUTPUT = "output"  # the output that we requested
    OTHER_TRACKS = "other tracks"  # sound and subtitles, which are copied as they are
    NOTHING = "nothing"  # no complaint


@dataclass(frozen=True)
class Message:
    """The parts of one line."""

    writers: tuple[str, ...]  # "h264 @ 0x55d0", in the line's order
    level: str  # "" if the line does not have it
    text: str


def parse(line: str) -> Message:
    """Split a line into its parts."""
    prefix, text = _PREFIX.match(line.strip()).groups()  # type: ignore[union-attr]
    parts = re.findall(r"\[([^\]]*)\]", prefix)
    level = next((part for part in parts if part in _LEVELS), "")
    return Message(tuple(part for part in parts if part not in _LEVELS), level, text)


def filtered_size(line: str) -> tuple[int, int] | None:
    """Return the (height, width) of frames, if this line (of level verbose) reports filters for that size; else None."""
    found = re.search(r"input from stream .* w:(\d+) h:(\d+) pixfmt:", line)
    return (int(found[2]), int(found[1])) if found else None


def filtered_format(line: str) -> str:
    """Return the pixel format in a line that reports filters; "" in others."""
    found = re.search(r" pixfmt:(\w+)", line)
    return found[1] if found else ""


def about(line: str) -> About:
    """Return the subject of one line of ffmpeg. Lines without a level come from `-loglevel error` and are complaints."""
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
    """Whether a line is a complaint about anything."""
    return about(line) is not About.NOTHING


def damage(lines: Iterable[str], *, in_container: bool = False) -> str:
    """Return the first line about damage in the input file, without its prefix; "" if there is none.

    `in_container` leaves out damage inside of packets.
    """
    found = (parse(line) for line in lines if about(line) is About.INPUT)
    return next((one.text for one in found if not (in_container and any(_INSIDE.match(writer) for writer in one.writers))), "")


def first_error(lines: Iterable[str]) -> str:
    """Return the first complaint about anything, without its prefix; "" if there is none."""
    return next((parse(line).text for line in lines if is_complaint(line)), "")
