"""The curves of a run as geometry: one small panel per quantity in metrics.jsonl; page.html draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import fmean
from typing import Any, cast

from turbovaed_cli.files.documents import fits

WIDTH, HEIGHT = 360, 200  # of a panel's drawing; about one CSS pixel per unit on a phone and in three columns
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 24, 176  # of the plot inside it
MAX_POINTS = 240  # of a curve; if there are more steps, equal stretches are averaged
_SMALLEST, _LARGEST = 1e-100, 1e100  # values for which an axis can be drawn
_LETTER = 5.6  # average width of a letter in the names of stages
_LOG_FROM = 8.0  # the ratio of largest to smallest value from which the axis is logarithmic
_NOT_CURVES = ("step", "stage")
_LABELS = {
    "loss": "Loss, all parts",
    "l1": "L1 to the source",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "seconds": "Seconds per step",
    "megapixels": "Megapixels of data per step",
    "data_seconds": "Seconds waited for data, per step",
    "peak_mb": "Peak memory of a step, MB",
}
_LAST = ("lr", "grad_norm", "megapixels", "seconds", "data_seconds", "peak_mb")  # after every loss, in this order
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in drawing units."""

    at: float
    text: str


@dataclass(frozen=True)
class Band:
    """One stage along the steps: its place in the drawing, and its name ("" in runs that do not name them)."""

    left: float
    width: float
    name: str
    short: str  # the name if there is room for it, else the stage's number


@dataclass(frozen=True)
class Point:
    """The mean over one stretch of steps: its place in the drawing, and its value as text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One quantity over the steps."""

    name: str  # its key in metrics.jsonl
    label: str
    is_log: bool
    ticks: list[Tick]  # of the vertical axis
    lines: list[str]  # SVG path data of the means, one per unbroken piece
    ranges: list[str]  # SVG path data of smallest to largest, likewise
    points: list[Point | None]  # one per stretch; None if nothing was logged
    last: str  # the last value
    summary: str  # a description for screen readers


@dataclass(frozen=True)
class Curves:
    """All drawings of a run's metrics.jsonl."""

    panels: list[Panel]
    bands: list[Band]
    ticks: list[Tick]  # of the horizontal axis
    stretches: list[str]  # "step 12" or "steps 11 to 20", one per point
    num_steps: int  # the last step logged
    has_ranges: bool  # whether a point stands for more than one step


@dataclass(frozen=True)
class _Stretch:
    first: int
    last: int
    stage: int
    rows: Sequence[Row]

    @property
    def middle(self) -> float:
        return (self.first + self.last) / 2


def draw(rows: Sequence[Row]) -> Curves | None:
    """Return the panels of `rows` (see RunDir.read_metrics); None if there is nothing to draw yet."""
    if not rows:
        return None
    stages = [list(group) for _, group in groupby(rows, key=lambda row: row.get("stage"))]
    stretches = _stretches(stages, len(rows))
    first, last = rows[0]["step"], rows[-1]["step"]

    def x_of(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * (0.5 if last == first else (step - first) / (last - first))

    edges = [LEFT, *(x_of((a[-1]["step"] + b[0]["step"]) / 2) for a, b in pairwise(stages)), RIGHT]
    bands = [
        _band(left, right, str(stage[0].get("stage") or ""), number)
        for number, (stage, (left, right)) in enumerate(zip(stages, pairwise(edges), strict=True), start=1)
    ]
    panels = [panel for name in _names(rows) if (panel := _panel(name, stretches, x_of)) is not None]
    return Curves(
        panels=panels,
        bands=bands,
        ticks=[Tick(x_of(step), _figure(step)) for step in even_ticks(first, last, 4) if step == int(step)],
        stretches=[f"step {s.first}" if s.first == s.last else f"steps {s.first} to {s.last}" for s in stretches],
        num_steps=last,
        has_ranges=any(len(stretch.rows) > 1 for stretch in stretches),
    )


def _band(left: float, right: float, name: str, number: int) -> Band:
    has_room = len(name) * _LETTER <= right - left - 6
    return Band(left, right - left, name, name if has_room else str(number))


def _names(rows: Sequence[Row]) -> list[str]:
    """Return every logged quantity: losses in the order of their first appearance, then rate, norm and time."""
    seen = dict.fromkeys(name for row in rows for name in row if name not in _NOT_CURVES)
    return [name for name in seen if name not in _LAST] + [name for name in _LAST if name in seen]


def label_of(name: str) -> str:
    """Return the label of a logged quantity, such as "Feature alignment, up_blocks.0" for "feature_up_blocks.0"."""
    if name in _LABELS:
        return _LABELS[name]
    head, separator, rest = name.partition("_")
    return (
        f"Feature alignment, {rest}" if head == "feature" and rest else (head + separator + rest).replace("_", " ").capitalize()
    )


def _stretches(stages: Sequence[Sequence[Row]], num_rows: int) -> list[_Stretch]:
    """Cut every stage into equal stretches, about MAX_POINTS in all; none crosses a change of stage."""
    found = []
    for number, stage in enumerate(stages):
        count = min(len(stage), max(1, round(MAX_POINTS * len(stage) / num_rows)))
        cuts = [round(i * len(stage) / count) for i in range(count + 1)]
        found += [_Stretch(stage[a]["step"], stage[b - 1]["step"], number, stage[a:b]) for a, b in pairwise(cuts)]
    return found


def _panel(name: str, stretches: Sequence[_Stretch], x_of: Any) -> Panel | None:
    values = [[float(row[name]) for row in s.rows if _is_number(row.get(name))] for s in stretches]
    means = [fmean(group) if group else None for group in values]
    known = [mean for mean in means if mean is not None]
    if not known:
        return None
    # The range is drawn too, but its few largest outliers may be cut off.
    low = min(*known, _quantile([min(group) for group in values if group], 0.05))
    high = max(*known, _quantile([max(group) for group in values if group], 0.95))
    is_log = name != "lr" and min(map(min, filter(None, values))) > 0 and high / low > _LOG_FROM
    low, high, ticks = _axis(low, high, is_log=is_log)
    bend = math.log10 if is_log else float

    def y_of(value: float) -> float:
        share = (bend(min(max(value, low), high)) - bend(low)) / (bend(high) - bend(low))
        return BOTTOM - (BOTTOM - TOP) * share

    points = [
        None if mean is None else Point(round(x_of(s.middle), 1), round(y_of(mean), 1), _figure(mean))
        for s, mean in zip(stretches, means, strict=True)
    ]
    lines, ranges = [], []
    for piece in _unbroken(points, stretches):
        drawn = [point for i in piece if (point := points[i]) is not None]
        lines.append("M" + "L".join(f"{point.x:g} {point.y:g}" for point in drawn))
        top = [f"{points[i].x:g} {y_of(max(values[i])):.1f}" for i in piece]  # type: ignore[union-attr]
        bottom = [f"{points[i].x:g} {y_of(min(values[i])):.1f}" for i in reversed(piece)]  # type: ignore[union-attr]
        ranges.append("M" + "L".join(top + bottom) + "Z")
    summary = f"{label_of(name)}: from {_figure(known[0])} to {_figure(known[-1])}; lowest {_figure(min(known))}, highest {_figure(max(known))}"
    marks = [Tick(round(y_of(value), 1), _figure(value)) for value in ticks]
    return Panel(name, label_of(name), is_log, marks, lines, ranges, points, _figure(known[-1]), summary)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def _unbroken(points: Sequence[Point | None], stretches: Sequence[_Stretch]) -> list[list[int]]:
    """Return the indices of consecutive points: a line breaks at the end of a stage and if nothing was logged."""
    pieces = groupby(range(len(points)), key=lambda i: (stretches[i].stage, points[i] is None))
    return [list(piece) for (_, is_gap), piece in pieces if not is_gap]


def _is_number(value: object) -> bool:
    return fits(value, float) and (value == 0 or _SMALLEST < abs(cast(float, value)) < _LARGEST)


def _axis(low: float, high: float, *, is_log: bool) -> tuple[float, float, list[float]]:
    """Return the ends of an axis, a little beyond its values, and its ticks."""
    if is_log:
        low, high = low / 1.1, high * 1.1
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
            if len(ticks) <= 5:
                break
        return low, high, ticks[:: math.ceil(len(ticks) / 5)]
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    elif 0 < low < (high - low):  # close enough to zero to show it
        low = 0.0
    high += (high - low) * 0.04
    return low, high, even_ticks(low, high, 4)


def even_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    if low == high:
        return [low]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _figure(value: float) -> str:
    """Format a number with three digits: 0.0512, 1230, 1×10⁻⁴."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace(",", "\u202f")
    if -4 < exponent < 5:
        return f"{value:.3g}" if exponent < 3 else f"{value:.0f}"
    mantissa = f"{value / 10**exponent:.3g}"
    return f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPT)}"
