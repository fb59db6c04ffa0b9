"""ffmpeg's description of its input: tracks, pixels, stated rate."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

COMMON_RATES = [Fraction(n) for n in (1, 5, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)] + [
    Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120, 240)
]
_NO_PICTURES = {"attached pic", "still image", "timed thumbnails"}
_FIELD_ORDERS = ("progressive", "top first", "bottom first", "top coded first (swapped)", "bottom coded first (swapped)")


@dataclass(frozen=True)
class Track:
    """One stream of a file, as ffmpeg describes it."""

    index: int
    kind: str  # video, audio, subtitle, data or attachment
    codec: str  # ffmpeg's name; "none" if it has none
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


_STREAM = re.compile(r"^(?:\[info\] )? {2,}Stream #0:(\d+)(?:\[\w+\])?(?:\((\w+)\))?: (\w+): (.*)$")


def tracks_of(log: Sequence[str]) -> tuple[Track, ...]:
    """Return the streams in ffmpeg's description of its input."""
    found: dict[int, Track] = {}
    for line in log:
        if "Output #0" in line:
            break
        if match := _STREAM.match(line):
            index, language, kind, rest = match.groups()
            words = re.findall(r"\(([a-z][a-z ]*)\)", rest)
            codec = rest.split(" ")[0].rstrip(",")
            # If a track is listed twice, as in a program of a transport stream, the first line counts.
            language = "" if language in (None, "und") else language
            found.setdefault(int(index), Track(int(index), kind.lower(), codec, language, frozenset(words), rest))
    return tuple(found[index] for index in sorted(found))


@dataclass(frozen=True)
class Pixels:
    """The facts about a picture's pixels in ffmpeg's line; "" for each that is not there."""

    format: str = ""
    range: str = ""  # tv or pc
    matrix: str = ""
    primaries: str = ""
    transfer: str = ""
    field_order: str = ""
    size: tuple[int, int] | None = None  # (height, width) before any rotation

    @classmethod
    def of(cls, description: str) -> "Pixels":
        """Parse "vp9 (Profile 2), yuv420p10le(tv, bt2020nc/unknown/unknown, progressive), 426x240, ..."."""
        found = re.search(r", ([a-z]\w+)(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\))?, (?:\d+x|none)", description)
        if found is None:
            return cls()
        facts: dict[str, str] = {}
        for part in (found[2] or "").split(", "):
            if part in ("tv", "pc"):
                facts["range"] = part
            elif part in _FIELD_ORDERS:
                facts["field_order"] = part
            elif part.count("/") == 2:
                names = ("" if name in ("unknown", "reserved") else name for name in part.split("/"))
                facts |= dict(zip(("matrix", "primaries", "transfer"), names, strict=True))
            elif re.fullmatch(r"[a-z]+\d+\w*|ycgco|fcc|gbr", part) and not part.endswith("bpc"):  # one name for all three
                facts |= dict.fromkeys(("matrix", "primaries", "transfer"), part)
        size = re.search(r", (\d+)x(\d+)", description)
        return cls(found[1], size=(int(size[2]), int(size[1])) if size else None, **facts)


def has_alpha(pixel_format: str) -> bool:
    """Whether a pixel format has transparency."""
    return bool(re.match(r"(yuva|gbrap|rgba|bgra|argb|abgr|ya\d|ayuv|vuya|pal8)", pixel_format))


def search(pattern: str, text: str) -> str | None:
    """Return the first group of the first match; None without a match."""
    found = re.search(pattern, text)
    return found[1] if found else None


def stated_rate(description: str) -> Fraction | None:
    """Return the rate in ffmpeg's line; as it has two decimals, a standard rate that rounds to it is taken. None without one."""
    found = re.search(r", ([\d.]+)(k?) fps", description)
    if found is None or not float(found[1]):
        return None
    rate = Fraction(found[1]) * (1000 if found[2] else 1)
    near = min(COMMON_RATES, key=lambda common: abs(common - rate))
    return near if abs(near - rate) <= Fraction(1, 200) else rate
