"""Sample strips: what a person looks at while a student learns."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from turbovaed_cli.files.whole import write_whole
from turbovaed_cli.video import to_uint8

LABEL_HEIGHT = 18  # pixels above each column


def write_strip(path: Path, columns: Mapping[str, Tensor], num_rows: int = 3) -> None:
    """Write a PNG with one labelled column per video (3, T, H, W) in [-1, 1], and rows of frames spread over its time."""
    videos = {label: to_uint8(video) for label, video in columns.items()}  # (T, H, W, 3)
    frames, height, width, _ = next(iter(videos.values())).shape
    rows = np.linspace(0, frames - 1, min(num_rows, frames)).round().astype(int)
    image = Image.new("RGB", (width * len(videos), LABEL_HEIGHT + height * len(rows)), "white")
    draw = ImageDraw.Draw(image)
    for column, (label, video) in enumerate(videos.items()):
        draw.text((column * width + 4, 3), label, fill="black")
        for row, index in enumerate(rows):
            image.paste(Image.fromarray(video[index]), (column * width, LABEL_HEIGHT + row * height))
    write_whole(path, lambda temporary: image.save(temporary, format="PNG"))
