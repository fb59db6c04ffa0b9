"""Folders of numbered pictures, as one file that ffmpeg may read: it opens nothing by itself."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from turbovaed_cli.video import ffmpeg


def demuxer_of(images: Sequence[Path]) -> str:
    """Ffmpeg's name for a file of such pictures; "" of none."""
    return "" if not images else "png_pipe" if images[0].suffix.lower() == ".png" else "jpeg_pipe"


@contextmanager
def joined(images: Sequence[Path]) -> Iterator[IO[bytes]]:
    """A file without a name that holds these pictures one after another. VideoError if one is not a regular file."""
    with tempfile.TemporaryFile(prefix="turbovaed-") as file:
        for image in images:
            with ffmpeg.open_regular(image) as part:
                shutil.copyfileobj(part, file)
        file.flush()
        file.seek(0)
        yield file
