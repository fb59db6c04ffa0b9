"""A small drawing of points for a terminal."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A point with the letter that stands for it; of several at one place the last one is shown."""

    x: float
    y: float
    mark: str


_MOST_CELLS, _LEAST_CELLS = 60, 20  # across
_BESIDE = 8  # columns for the figures of the vertical axis


def scatter(points: Sequence[Point], x_name: str, y_name: str, *, width: int = 0, height: int = 12) -> str:
    """Return points with x and y above 0 as text: both axes are logarithmic, with their least and greatest values.

    It is `width` x `height` letters inside; a width of 0 takes what fits in the terminal, at most 60.
    """
    width = width or max(min(shutil.get_terminal_size().columns - _BESIDE, _MOST_CELLS), _LEAST_CELLS)
    columns, rows = _places([one.x for one in points], width), _places([one.y for one in points], height)
    canvas = [[" "] * width for _ in range(height)]
    for one, column, row in zip(points, columns, rows, strict=True):
        canvas[height - 1 - row][column] = one.mark
    top, bottom = (_short(value) for value in (max(one.y for one in points), min(one.y for one in points)))
    left, right = (_short(value) for value in (min(one.x for one in points), max(one.x for one in points)))
    margin = max(len(top), len(bottom))
    labels = [top, *[""] * (height - 2), bottom]
    lines = [f"{label:>{margin}} |{''.join(cells)}".rstrip() for label, cells in zip(labels, canvas, strict=True)]
    axis = f"{'':{margin}} +{'-' * width}"
    below = f"{'':{margin}}  {left}{x_name:^{width - len(left) - len(right)}}{right}"
    return "\n".join([f"{'':{margin}} {y_name}", *lines, axis, below])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _places(values: Sequence[float], cells: int) -> list[int]:
    """Return the cell of each value on a logarithmic axis."""
    logs = [math.log(value) for value in values]
    least, span = min(logs), max(logs) - min(logs)
    return [round((value - least) / span * (cells - 1)) if span else cells // 2 for value in logs]
