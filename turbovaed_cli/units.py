"""Sizes, counts, bytes and durations as people write them. Sizes are WIDTHxHEIGHT for people, (height, width) inside."""

import re

from turbovaed_cli.errors import SettingsError

_NAMED_SIZES = {"480p": (480, 832), "720p": (704, 1280), "1080p": (1056, 1920)}


def parse_size(text: str) -> tuple[int, int]:
    """'1280x704', '720p' or '256' to (height, width); SettingsError for anything else."""
    if text in _NAMED_SIZES:
        return _NAMED_SIZES[text]
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(part.isdecimal() and len(part) <= 6 and int(part) > 0 for part in parts):
        width, height = int(parts[0]), int(parts[-1])
        return height, width
    raise SettingsError(f"{text} is not a size", f"WIDTHxHEIGHT such as 512x512, one number, or one of {', '.join(_NAMED_SIZES)}")


def parse_count(text: str) -> int:
    """'8M', '0.8M', '800k' or '8000000' to a number; SettingsError for anything else."""
    digits, factor = (text[:-1], {"k": 1e3, "m": 1e6}[text[-1].lower()]) if text[-1:].lower() in ("k", "m") else (text, 1)
    if not digits.replace(".", "", 1).isdecimal() or len(digits) > 15 or round(float(digits) * factor) < 1:
        raise SettingsError(f"{text} is not a number of parameters", "such as 8M, 0.8M, 800k or 8000000")
    return round(float(digits) * factor)


def parse_bytes(text: str) -> int:
    """'4GB', '800MB' or '1.5 GiB' to bytes; SettingsError for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt])(i?)b", text.strip().lower())
    if found is None or not float(found[1]):
        raise SettingsError(f"{text} is not an amount of memory", "such as 4GB or 800MB")
    return round(float(found[1]) * (1024 if found[3] else 1000) ** ("kmgt".index(found[2]) + 1))


def parse_numbers(text: str) -> tuple[int, ...]:
    """'17,33' to (17, 33); SettingsError for anything else."""
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise SettingsError(f"{text} is no list of numbers", "such as 17,33,65") from None


def parse_shape(text: str) -> tuple[int, ...]:
    """'16,15,22' or '16x15x22', latent frames, rows and columns, to (16, 15, 22); SettingsError for anything else."""
    parts = text.lower().replace("x", ",").split(",") if text else []
    if text and not (len(parts) == 3 and all(part.strip().isdecimal() and len(part) <= 9 and int(part) for part in parts)):
        raise SettingsError(f"{text} is not three numbers", "latent frames, rows and columns, such as 16,15,22")
    return tuple(map(int, parts))


def counted(number: int, noun: str) -> str:
    """(1, "clip") as "1 clip", (1200, "clip") as "1,200 clips"."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def format_size(size: tuple[int, int]) -> str:
    """(height, width) as people write it: WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"


def human_bytes(num_bytes: int) -> str:
    """1_680_000_000 as "1.68 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def human_age(seconds: float) -> str:
    """7_300 as "2 h": the largest whole unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def human_span(seconds: float) -> str:
    """66_720 as "18 h 32 min", 744 as "12 min 24 s": its two largest units."""
    whole = max(round(seconds), 1)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def human_duration(seconds: float) -> str:
    """90 as "1:30", 7_300 as "2 h 01 min"; what is less than a second as "0:01"."""
    minutes, seconds = divmod(max(int(seconds), 1), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{seconds:02}"
