"""Decode latents that are in memory within a limit: what the self-contained modeling file has instead of `reconstruct`."""

import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from torch import Tensor

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.memory import decoding_bytes, decoding_ways, free_memory_bytes, pixels_per_piece, with_margin
from turbovaed_cli.models.streaming import decode_as_memory_allows
from turbovaed_cli.models.student import StudentDecoder


def decode_within(student: StudentDecoder, latents: Tensor, memory: int = 0, *, spill: Path | None = None) -> Iterator[Tensor]:
    """Yield the frames (B, 3, m, H, W) of raw latents (B, C, t, h, w) in [-1, 1], not clamped, on the student's device.

    Decoding takes `memory` bytes at most besides what the process holds already; 0 allows 70 % of what is free. With little
    memory, cached frames are kept on disk in the folder `spill` (default: that of temporary files). Frames do not depend on
    the memory. Raises ShapeError for latents of another shape, and SettingsError if the smallest pieces do not fit.
    """
    student.check_latents(latents)
    batch, _, length, height, width = latents.shape
    allowed = (memory or free_memory_bytes(student.device) * 7 // 10) // batch
    frames, rows, on_disk = pieces_within(student, (height, width), allowed, length)
    folder = (spill or Path(tempfile.gettempdir())) if on_disk else None
    yield from decode_as_memory_allows(student, [latents], frames, rows=rows, spill=folder)


def pieces_within(student: StudentDecoder, size: tuple[int, int], memory: int, length: int) -> tuple[int, int, bool]:
    """Return the latent frames and rows (0: all) to decode at once, and whether cached frames are kept on disk.

    `size` is (h, w) of `length` latent frames. Raises SettingsError if the smallest pieces need more than `memory` bytes.
    """
    ratio = int(student.spatial_compression_ratio)
    pixels = (size[0] * ratio, size[1] * ratio)
    ways = list(decoding_ways(student, pixels, pixels_per_piece(student.device.type), length))

    @cache
    def needed(way: tuple[int, int, bool]) -> int:
        frames, rows, spill = way
        return with_margin(decoding_bytes(student, size, frames, rows, spill=spill))

    if needed(ways[0]) <= memory:
        return ways[0]
    if (least := needed(ways[-1])) > memory:
        raise SettingsError(
            f"{memory / 1e9:.2f} GB is too little for {pixels[1]}x{pixels[0]}: the smallest pieces need {least / 1e9:.2f} GB",
            f"at least `memory` {least / 1e9 + 0.005:.2f}GB",
        )
    return ways[bisect_left(ways, 1, 1, len(ways) - 1, key=lambda way: needed(way) <= memory)]
