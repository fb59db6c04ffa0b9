"""The page of `bench --report`: speed, quality and memory, as one file that loads nothing from the network."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from turbovaed_cli.benchmarking.results import VIDEO_FPS, BenchRow, MemoryRow, number, row_of
from turbovaed_cli.benchmarking.target import TEACHER
from turbovaed_cli.files.documents import names_only
from turbovaed_cli.files.whole import write_whole
from turbovaed_cli.report.assets import asset, source_expression, template
from turbovaed_cli.report.curves import Tick, even_ticks
from turbovaed_cli.version import __version__

WIDTH = 720  # of a drawing, in drawing units
_BAR, _LABELS, _END = 26, 250, 580  # height of a bar's row; left and right ends of bars
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 560, 16, 320  # of the two plots
_LINE, _LETTER = 15, 6.6  # distance between the names of points; the most width of a letter
_NO_DIFFERENCE_DB = 0.05  # between all rows: a plot would show nothing but rounding
_ENOUGH_DB = 100.0  # the end of the axis: no difference is visible from here on


@dataclass(frozen=True)
class Bar:
    """One row: frames per second, and the range of the middle 80 % of the calls."""

    label: str
    target: str
    y: int
    end: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Dot:
    """One row in the plot of speed against quality."""

    label: str
    target: str
    square: bool  # a teacher
    x: float
    y: float
    text_y: float  # of its name, moved so that names do not overlap


@dataclass(frozen=True)
class Plot:
    """Two axes, dots with names, and lines."""

    dots: list[Dot]
    lines: list[tuple[str, str]]  # class, SVG path data
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_title: str
    y_title: str
    summary: str


def write_page(path: Path, documents: Sequence[Mapping[str, Any]]) -> None:
    """Write a page for documents of `bench --json`. The first one is the run shown; the rest are points for comparison."""
    text = render(documents)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def render(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of these documents as HTML."""
    documents = [names_only(document) for document in documents]
    first = documents[0]
    shape = _shape(first)
    left_out = [str(document["model"]) for document in documents if _shape(document) != shape]
    alike = [document for document in documents if _shape(document) == shape]
    rows = [(str(document["model"]), _rows(document)) for document in alike]
    measured = [row for row in rows[0][1] if row.measured]
    style = asset("page.css") + asset("bench.css")
    return template("bench.html").render(
        document=first,
        models=[f"{document['model']} ({document['params'] / 1e6:.1f} M)" for document in alike if document.get("params")],
        left_out=left_out,
        rows=rows[0][1],
        bars=bars(measured),
        bar_height=_BAR * len(measured) + 44,
        bar_ticks=_bar_ticks(measured),
        real_time=_scale(measured)(VIDEO_FPS),
        tradeoff=tradeoff(rows),
        memory=memory([MemoryRow(**item) for item in first.get("memory", [])]),
        video_fps=VIDEO_FPS,
        number=number,
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup(style),  # noqa: S704 - a file of ours
        style_hash=source_expression(style),
    )


def _rows(document: Mapping[str, Any]) -> list[BenchRow]:
    return [row if isinstance(row, BenchRow) else row_of(row) for row in document["rows"]]


def _shape(document: Mapping[str, Any]) -> tuple[object, ...]:
    row = _rows(document)[0]
    return row.frames, row.size


def name_of(row: BenchRow) -> str:
    """Return a short name for a row."""
    network = "" if row.network == "student" else row.network.removeprefix("student, ")
    layout = row.layout if row.layout not in ("", "4d-cat") else ""
    unit = "" if row.unit.startswith("CPU") and "and" not in row.unit else row.unit
    return " ".join(filter(None, (row.target, row.precision, network, layout, unit)))


# --- frames per second --------------------------------------------------------------------------------------------


def bars(rows: Sequence[BenchRow]) -> list[Bar]:
    """Return a bar for each measured row: frames per second, with the range of the middle 80 % of its calls."""
    scale = _scale(rows)
    found = []
    for number_, row in enumerate(rows):
        rates = row.frames * 1e3 / np.array(row.samples_ms)
        low, high = np.percentile(rates, (10, 90))
        text = f"{number(row.fps)} frames/s" + (f", {row.speedup:.1f}x" if row.speedup and row.network != TEACHER else "")
        found.append(
            Bar(name_of(row), row.target, _BAR * number_ + 8, scale(row.fps or 0), scale(float(low)), scale(float(high)), text)
        )
    return found


def _most(rows: Sequence[BenchRow]) -> float:
    rates = [row.frames * 1e3 / float(np.percentile(row.samples_ms, 10)) for row in rows]
    return max([*rates, VIDEO_FPS]) * 1.02


def _scale(rows: Sequence[BenchRow]) -> Callable[[float], float]:
    most = _most(rows)
    return lambda value: round(_LABELS + (_END - _LABELS) * value / most, 1)


def _bar_ticks(rows: Sequence[BenchRow]) -> list[Tick]:
    scale = _scale(rows)
    return [Tick(scale(value), f"{value:g}") for value in even_ticks(0, _most(rows), 4)]


# --- speed against quality ----------------------------------------------------------------------------------------


def tradeoff(models: Sequence[tuple[str, Sequence[BenchRow]]]) -> Plot | None:
    """Plot every measured row of every model by speed and quality, with the line of those that no row beats in both.

    Quality is PSNR against the source videos if all rows have it, else against each model's fp32 student. None without rows, or if their quality is the same.
    """
    rows = [(model, row) for model, some in models for row in some if row.measured and row.fps]
    of_source = bool(rows) and all(row.source_psnr_db is not None for _, row in rows)
    known = [(model, row, row.source_psnr_db if of_source else row.psnr_db) for model, row in rows]
    found = [(model, row, min(quality, _ENOUGH_DB)) for model, row, quality in known if quality is not None]
    if not found or (
        len(found) > 1 and max(quality for *_, quality in found) - min(quality for *_, quality in found) < _NO_DIFFERENCE_DB
    ):
        return None
    place, x_ticks, y_ticks = plot_of([(row.fps or 1.0, quality) for _, row, quality in found], _ENOUGH_DB)
    several = len(models) > 1
    dots = [
        Dot(
            f"{model}: {name_of(row)}" if several else name_of(row),
            row.target,
            row.network == TEACHER,
            *place(row.fps or 1.0, quality),
            place(row.fps or 1.0, quality)[1],
        )
        for model, row, quality in found
    ]
    # Several models are comparable only against the source: against its own fp32 student each one is exact.
    comparable = of_source or len({model for model, *_ in found}) == 1
    lines = line_of_best([(row.fps or 0.0, quality) for _, row, quality in found], place) if comparable else []
    y_title = (
        "PSNR against the source, dB" if of_source else f"PSNR against the fp32 student, dB ({_ENOUGH_DB:.0f}: no difference)"
    )
    return Plot(
        apart(dots),
        lines,
        x_ticks,
        y_ticks,
        "frames per second",
        y_title,
        f"{len(dots)} rows between {number(min(row.fps or 0 for _, row, _ in found))} and "
        f"{number(max(row.fps or 0 for _, row, _ in found))} frames per second",
    )


Place = Callable[[float, float], tuple[float, float]]


def plot_of(points: Sequence[tuple[float, float]], highest: float = math.inf) -> tuple[Place, list[Tick], list[Tick]]:
    """Return the place of a (rate, quality) in a drawing, and ticks of both axes; rates are on a logarithmic axis.

    No tick of quality is above `highest`.
    """
    rates, qualities = [math.log10(rate) for rate, _ in points], [quality for _, quality in points]
    low_x, high_x = min(rates) - 0.08, max(rates) + 0.08
    spread = max(qualities) - min(qualities)
    pad = max(0.5, 0.08 * spread) if max(qualities) > 2 else 0.08 * spread or 0.01
    low_y, high_y = min(qualities) - pad, max(qualities) + pad

    def place(rate: float, quality: float) -> tuple[float, float]:
        x = _LEFT + (_RIGHT - _LEFT) * (math.log10(rate) - low_x) / (high_x - low_x)
        return round(x, 1), round(_BOTTOM - (_BOTTOM - _TOP) * (quality - low_y) / (high_y - low_y), 1)

    x_ticks = [Tick(place(value, low_y)[0], f"{value:g}") for value in _decades(10**low_x, 10**high_x)]
    y_ticks = [Tick(place(1.0, value)[1], f"{value:g}") for value in even_ticks(low_y, min(high_y, highest), 4)]
    return place, x_ticks, y_ticks


def line_of_best(points: Sequence[tuple[float, float]], place: Place, sign: int = 1) -> list[tuple[str, str]]:
    """Return the line that joins the points which no other beats in both; none of a single point.

    `sign` is -1 if a lower quality figure is better.
    """
    best = _frontier([(rate, sign * quality) for rate, quality in points])
    path = "M" + "L".join("{:g} {:g}".format(*place(rate, sign * quality)) for rate, quality in best)
    return [("frontier", path)] if len(best) > 1 else []


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both speed and quality, from slow to fast."""
    best = [p for p in set(points) if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)]
    return sorted(best)


def _decades(low: float, high: float) -> list[float]:
    digits = (1, 2, 5) if high / low < 300 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]


def apart(dots: Sequence[Dot]) -> list[Dot]:
    """Return the dots with their names moved up or down until they touch neither each other nor a dot."""
    taken = [(dot.x - 6, dot.x + 6, dot.y) for dot in dots]
    placed = []
    for dot in sorted(dots, key=lambda item: (-item.x, item.y)):
        left, right = dot.x + 9, dot.x + 12 + _LETTER * len(dot.label)
        moves = sorted((step * _LINE for step in range(-20, 21)), key=abs)

        def is_free(y: float, left: float = left, right: float = right) -> bool:
            inside = _TOP - 8 <= y <= _BOTTOM + 4
            return inside and not any(a < right and left < b and abs(at - y) < _LINE - 1 for a, b, at in taken)

        y = next((dot.y + move for move in moves if is_free(dot.y + move)), dot.y)
        taken.append((left, right, y))
        placed.append(replace(dot, text_y=y))
    return placed


# --- memory over length -------------------------------------------------------------------------------------------


def memory(rows: Sequence[MemoryRow]) -> Plot | None:
    """Plot the peak memory of a decode over the clip's length, one line per form; None if no peak is known."""
    known = [(row, row.peak_mb) for row in rows if row.peak_mb is not None]
    if not known:
        return None
    longest, most = max(row.frames for row, _ in known), max(1.0, *(peak for _, peak in known)) * 1.06

    def place(frames: int, peak: float) -> tuple[float, float]:
        return round(_LEFT + (_RIGHT - _LEFT) * frames / longest, 1), round(_BOTTOM - (_BOTTOM - _TOP) * peak / most, 1)

    dots, lines = [], []
    for form in dict.fromkeys(row.form for row, _ in known):
        points = [place(row.frames, peak) for row, peak in known if row.form == form]
        lines.append((form.replace(" ", "-"), "M" + "L".join(f"{x:g} {y:g}" for x, y in points)))
        dots.append(Dot(form, form.replace(" ", "-"), False, *points[-1], points[-1][1]))
    return Plot(
        apart(dots),
        lines,
        [Tick(place(int(value), 0)[0], f"{value:g}") for value in even_ticks(0, longest, 4)],
        [Tick(place(0, value)[1], f"{value:g}") for value in even_ticks(0, most, 4)],
        "frames of the clip",
        "MB",
        "; ".join(f"{row.form}, {row.frames} frames: {peak:.0f} MB" for row, peak in known),
    )
