"""The figures and tables of a report: an evaluation's document, a run's settings and stages, as text and cells."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import CorruptFileError
from turbovaed_cli.evaluation.scores import interval_note
from turbovaed_cli.files.documents import check_fields, shown
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.metrics import METRICS

Evaluation = Mapping[str, Any]  # the document of `eval --json`
Rows = Sequence[Mapping[str, Any]]  # of metrics.jsonl
SIDES = ("teacher", "student")
_NARROW_SPACE = "\u202f"


@dataclass(frozen=True)
class Cell:
    """A figure and its interval as text, with their places on a small axis, 0 to 1, if they can be drawn."""

    text: str
    interval: str = ""  # "± 0.3", or "1.2 to 3.4" if the mean is not in the middle
    places: tuple[float, float, float] | None = None  # low, mean, high


@dataclass(frozen=True)
class MetricRow:
    """One metric: the scores of teacher and student, and their ratio."""

    label: str
    is_higher_better: bool
    unit: str
    teacher: Cell
    student: Cell
    ratio: Cell


@dataclass(frozen=True)
class ClipRow:
    """One evaluated clip: its video, its first frame, and per metric the teacher's score and the student's."""

    path: str
    start: int
    scores: list[str]


# --- of an evaluation ---------------------------------------------------------------------------------------------


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read a document of `eval --json`. Raises CorruptFileError with the field's name if it cannot be shown."""
    document = read_json(path)
    scores = dict[str, float | None]
    check_fields(document, {"means": dict.fromkeys(SIDES, scores) | {"ratio": scores}}, path)
    check_fields(document, {"clips": list[dict[str, Any]], "not_measured": dict[str, Any]}, path)
    check_fields(document, {"intervals": dict[str, Any] | None, "decoder_params": dict[str, float] | None}, path)
    check_fields(document, {"decode_times": dict[str, Any] | None, "published": dict[str, Any] | None}, path)
    for side in (*SIDES, "ratio") if document.get("intervals") else ():
        spans = dict[str, tuple[float, float] | None]
        check_fields(document["intervals"], {side: spans | None}, path, "intervals.")
    if document.get("decoder_params"):
        check_fields(document["decoder_params"], dict.fromkeys(SIDES, float), path, "decoder_params.")
    if document.get("decode_times"):
        check_fields(document["decode_times"], {"ratio": float, "student_s": list[float], "device": str}, path, "decode_times.")
    if document.get("published"):
        published = {"label": str, "source": str, "means": dict[str, tuple[float, float]]}
        check_fields(document["published"], published, path, "published.")
    for number, clip in enumerate(document["clips"]):
        check_fields(clip, {"path": str, "start": int} | dict.fromkeys(SIDES, scores), path, f"clips.{number}.")
    means, clips = document["means"], document["clips"]
    names = [means["student"], document["not_measured"], (document.get("published") or {}).get("means") or {}]
    unknown = {name for some in (*names, *(clip["student"] for clip in clips)) for name in some} - METRICS.keys()
    uneven = any(side["student"].keys() - side["teacher"].keys() for side in (means, *clips))
    uneven = uneven or bool(means["ratio"].keys() - means["student"].keys())
    if unknown or uneven or not clips or (document.get("decoder_params") or {}).get("teacher", 1) <= 0:
        what = f"a metric {shown(min(unknown))} that is unknown" if unknown else "no clips with scores of teacher and student"
        raise CorruptFileError(f"{path} has {what}", "remove it, and evaluate again: turbovaed eval")
    return document


def score_text(name: str, value: float | None) -> str:
    """Format a score with its metric's number of digits; "none" if it is not a finite number."""
    return "none" if value is None or not math.isfinite(value) else f"{value:.{METRICS[name].digits}f}"


def metric_rows(evaluation: Evaluation) -> list[MetricRow]:
    """Return a row for every metric that was measured, with 95 % intervals if the evaluation has them."""
    means, rows = evaluation["means"], []
    intervals = {} if interval_missing(evaluation) else evaluation.get("intervals") or {}
    for name in means["student"]:
        metric = METRICS[name]
        spans = {side: (intervals.get(side) or {}).get(name) for side in (*SIDES, "ratio")}
        known = [value for side in SIDES for value in (means[side][name], *(spans[side] or ())) if value is not None]
        axis = (min(known), max(known)) if known else (0.0, 1.0)
        teacher, student = (cell_of(name, means[side][name], spans[side], axis) for side in SIDES)
        ratio = _percent(means["ratio"].get(name), spans["ratio"])
        rows.append(MetricRow(metric.label, metric.better == "up", metric.unit, teacher, student, ratio))
    return rows


def interval_missing(evaluation: Evaluation) -> str:
    """Return why there are no intervals, or "". Documents of earlier versions had intervals over as few as two videos."""
    num_videos = evaluation.get("num_videos")
    return interval_note(num_videos) if isinstance(num_videos, int) else ""


def cell_of(name: str, mean: float | None, span: Sequence[float] | None, axis: tuple[float, float]) -> Cell:
    """Return the cell of a mean with its interval `span`, placed on an axis from the first to the last value of `axis`."""
    if mean is None or span is None:
        return Cell(score_text(name, mean))
    width = (axis[1] - axis[0]) or 1.0
    low, middle, high = ((value - axis[0]) / width for value in (span[0], mean, span[1]))
    return Cell(score_text(name, mean), _interval(mean, span, METRICS[name].digits), (low, middle, high))


def _percent(ratio: float | None, span: Sequence[float] | None) -> Cell:
    if ratio is None or not math.isfinite(ratio):
        return Cell("none: the teacher scores 0")
    return Cell(f"{100 * ratio:.1f} %", "" if span is None else _interval(100 * ratio, [100 * end for end in span], 1))


def _interval(mean: float, span: Sequence[float], digits: int) -> str:
    half = (span[1] - span[0]) / 2
    is_even = abs((span[0] + span[1]) / 2 - mean) < 0.1 * 10**-digits
    return f"± {half:.{digits}f}" if is_even else f"{span[0]:.{digits}f} to {span[1]:.{digits}f}"


def not_measured(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return (metric, the reason and what to run) for every metric that was not measured."""
    return [(METRICS[name].label, str(reason)) for name, reason in evaluation["not_measured"].items()]


def clip_metrics(evaluation: Evaluation) -> list[str]:
    """Return the headings of the metrics that every clip has."""
    return [METRICS[name].label for name in evaluation["clips"][0]["student"]]


def clip_rows(evaluation: Evaluation) -> list[ClipRow]:
    """Return a row for every clip that was evaluated."""
    return [
        ClipRow(clip["path"], clip["start"], [score_text(name, clip[side][name]) for name in clip["student"] for side in SIDES])
        for clip in evaluation["clips"]
    ]


def score_rows(scores: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, str, str]]:
    """Return (metric, unit, teacher, student) for each score of one clip."""
    teacher, student = scores.get("teacher", {}), scores.get("student", {})
    return [
        (METRICS[name].label, METRICS[name].unit, score_text(name, teacher[name]), score_text(name, student[name]))
        for name in student
    ]


def published_rows(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return (metric, teacher, student) as published, if the evaluation has figures of the same model on the same data."""
    found = (evaluation.get("published") or {}).get("means") or {}
    return [(METRICS[name].label, score_text(name, pair[0]), score_text(name, pair[1])) for name, pair in found.items()]


def key_figures(evaluation: Evaluation | None, metrics: Rows, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the key figures, each as (value, description)."""
    found = []
    if evaluation is not None:
        means, params, times = evaluation["means"], evaluation.get("decoder_params"), evaluation.get("decode_times")
        for name in ("psnr", "ssim"):
            if means["ratio"].get(name) is not None:
                student = f"{score_text(name, means['student'][name])} {METRICS[name].unit}".strip()
                found.append((f"{100 * means['ratio'][name]:.1f} %", f"of the teacher's {METRICS[name].label}: {student}"))
        if params:
            student, teacher = params["student"] / 1e6, params["teacher"] / 1e6
            found.append((f"{100 * student / teacher:.1f} %", f"of its decoder's parameters: {student:.2f} of {teacher:.2f} M"))
        if times:
            turns = f"{len(times['student_s'])} turns on {times['device']}"
            found.append((f"{times['ratio']:.1f}×", f"as fast as its decoder, median of {turns}"))
    if metrics:
        total = sum(stage["steps"] for stage in _stages(settings))
        found.append((_grouped(metrics[-1]["step"]), f"of {_grouped(total)} steps" if total else "steps"))
    return found


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", _NARROW_SPACE)


# --- of a run -----------------------------------------------------------------------------------------------------


def flatten(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return a nested mapping as rows of (dotted name, text), in its order."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{before}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            rows += flatten({str(i): item for i, item in enumerate(value, start=1)}, f"{before}{name}.")
        else:
            rows.append((f"{before}{name}", _size_in_words(value) if name in ("size", "crop") else _in_words(value)))
    return rows


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_in_words(item) for item in value) or "none"
    return "none" if value is None else str(value)


def _size_in_words(size: object) -> str:
    """Format (height, width) as WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}" if isinstance(size, list | tuple) and len(size) == 2 else _in_words(size)


def _stages(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [stage for stage in settings.get("stages") or [] if isinstance(stage, Mapping)]


def stage_table(settings: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Return (columns, rows) of a run's stages, with a column for every setting of a stage; None if the run has no stages."""
    stages = _stages(settings)
    if not stages:
        return None
    columns = ["name", *dict.fromkeys(name for stage in stages for name in stage if name != "name")]
    rows = [[dict(flatten({name: stage.get(name)})).get(name, "") for name in columns] for stage in stages]
    return [name.replace("_", " ") for name in columns], rows


def with_data_size(metrics: Rows) -> Rows:
    """Return the rows with the megapixels of each step's data, if logged; a change of the data's shape shows as a jump."""
    rows = []
    for row in metrics:
        data = row.get("data")
        rest = {name: value for name, value in row.items() if name != "data"}
        rows.append({**rest, "megapixels": math.prod(data.values()) / 1e6} if isinstance(data, Mapping) else rest)
    return rows
