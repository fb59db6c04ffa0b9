"""Folders of numbered pictures, joined to one file for ffmpeg, which may not open files by itself."""

import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from turbovaed_cli.errors import VideoError
from turbovaed_cli.video import ffmpeg

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # of JPEG; the excluded codes are part of the data between markers
_ORIENTATION = 0x0112  # tag of EXIF


def demuxer_of(images: Sequence[Path]) -> str:
    """Return ffmpeg's demuxer for a file of these pictures, by the content of the first one; "" if there are none."""
    if not images:
        return ""
    with ffmpeg.open_regular(images[0]) as file:
        return "png_pipe" if file.read(len(_PNG)) == _PNG else "jpeg_pipe"


@contextmanager
def joined(images: Sequence[Path], first: Path) -> Iterator[IO[bytes]]:
    """Yield a file without a name that holds these pictures one after another.

    Raises VideoError if one is not a whole picture, or differs in kind or EXIF orientation from `first`, the folder's first.
    """
    cut = _png_in if demuxer_of([first]) == "png_pipe" else _jpeg_in
    turn = _orientation_of(first)
    with tempfile.TemporaryFile(prefix="turbovaed-") as file:
        for image in images:
            with ffmpeg.open_regular(image) as part:
                file.write(cut(part.read(), image))
            if _orientation_of(image) != turn:
                raise VideoError(f"{image}: its EXIF turns it differently from {first.name}", "turn the pixels themselves")
        file.flush()
        file.seek(0)
        yield file


def _jpeg_in(data: bytes, image: Path) -> bytes:
    """Return the first picture in a JPEG file, to which cameras append previews and depth maps; raises VideoError."""
    if not data.startswith(_JPEG):
        raise VideoError(f"{image} is no JPEG picture, unlike the first of its folder")
    place = len(_JPEG)
    while found := _MARKER.search(data, place):
        if found[1] == b"\xd9":
            return data[: found.end()]
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    raise VideoError(f"{image}: damaged: the picture is cut off")


def _png_in(data: bytes, image: Path) -> bytes:
    """Return the picture in a PNG file, without data that may follow it; raises VideoError."""
    if not data.startswith(_PNG):
        raise VideoError(f"{image} is no PNG picture, unlike the first of its folder")
    place = len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == b"IEND":
            return data[:end]
        place = end
    raise VideoError(f"{image}: damaged: the picture is cut off")


def _orientation_of(image: Path) -> int:
    """Return the orientation in a picture's EXIF, 1 (upright) to 8; 1 if there is none."""
    from PIL import Image  # noqa: PLC0415 - only for folders of pictures

    try:
        with Image.open(image, formats=("JPEG", "PNG")) as picture:
            return int(picture.getexif().get(_ORIENTATION, 1))
    except (OSError, ValueError, TypeError, SyntaxError, struct.error, Image.DecompressionBombError):
        return 1  # ffmpeg will report what is wrong with it
