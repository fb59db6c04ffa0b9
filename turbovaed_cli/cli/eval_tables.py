"""The results of `eval` as tables of text."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from turbovaed_cli.cli.table import Table
from turbovaed_cli.evaluation.paper import IN_PAPER
from turbovaed_cli.evaluation.scores import (
    PROTOCOLS,
    REFERENCES,
    SIDES,
    ClipScores,
    EvalResult,
    Interval,
    furthest_behind,
    interval_note,
    own_side,
    worst_clips,
)
from turbovaed_cli.metrics import METRICS, Metric
from turbovaed_cli.units import counted

_MOST_BESIDE = 4  # metrics that fit 80 columns with their intervals; more of them are tables below one another
_MOST_IN_GROUPS = 3  # next to names of models
_RATIO_DIGITS = 4
_NOT_IN_PAPER = {name for name, metric in METRICS.items() if not metric.on_request} - IN_PAPER


def as_tables(results: Sequence[EvalResult], data: Path, *, every_clip: bool = False) -> list[Table]:
    """The scores of every model, what should be known about them, and the worst clips (or every clip) of each."""
    clips = _every_clip if every_clip else _worst_clips
    return [
        *_scores_tables(results),
        _facts_table(results, every_reason=every_clip),
        *(clips(result, data) for result in results if result.clips[0].student),
    ]


def _scores_tables(results: Sequence[EvalResult]) -> list[Table]:
    """The scores in as many tables as 80 columns need, about equally wide; the first has the title."""
    first = results[0]
    published = {name for result in results if result.published for name in result.published.means}
    metrics = [metric for name, metric in METRICS.items() if name in first.means["student"] or name in published]
    has_groups = len(results) > 1 or bool(published)
    count = max(-(-len(metrics) // (_MOST_IN_GROUPS if has_groups else _MOST_BESIDE)), 1)
    cuts = [-(-part * len(metrics) // count) for part in range(count + 1)]
    size = f"{first.size[1]}x{first.size[0]}"
    model = first.model if len(results) == 1 else f"{len(results)} models"
    clips = counted(len(first.clips), "clip")
    title = f"{model}: {clips} of {counted(first.frames, 'frame')} at {size}, protocol {first.protocol}"
    return [
        _scores_table(title if start == 0 else "", results, metrics[start:end], has_groups=has_groups)
        for start, end in itertools.pairwise(cuts)
    ]


def _scores_table(title: str, results: Sequence[EvalResult], metrics: Sequence[Metric], *, has_groups: bool) -> Table:
    rows: list[tuple[str, ...]] = []
    for result in results:
        if has_groups:
            rows.append((result.model, *("" for _ in metrics)))
        for side in (*SIDES, "ratio") if result.means["teacher"] else ("student",):
            shown = own_side(result.family) if side == "student" else side
            rows.append((f"  {shown}" if has_groups else shown, *(_cell(result, side, metric) for metric in metrics)))
        if result.published:
            rows.append((result.published.label, *("" for _ in metrics)))
            rows += _published_rows(result, metrics)
    return Table(title, ["", *map(_heading, metrics)], rows)


def _heading(metric: Metric) -> str:
    return f"{f'{metric.label} {metric.unit}'.strip()}\n({'higher' if metric.better == 'up' else 'lower'})"


def _cell(result: EvalResult, side: str, metric: Metric) -> str:
    value = result.means[side].get(metric.name)
    if value is None or not math.isfinite(value):
        return "-"
    digits = _RATIO_DIGITS if side == "ratio" else metric.digits
    return f"{value:.{digits}f}" + _half_width(result.intervals[side][metric.name], digits)


def _half_width(interval: Interval, digits: int) -> str:
    return f" ± {(interval[1] - interval[0]) / 2:.{digits}f}" if interval else ""


def _published_rows(result: EvalResult, metrics: Sequence[Metric]) -> list[tuple[str, ...]]:
    assert result.published is not None
    means = result.published.means
    rows = [
        (f"  {side}", *(f"{means[metric.name][i]:.{metric.digits}f}" if metric.name in means else "-" for metric in metrics))
        for i, side in enumerate(SIDES)
    ]
    ratios = (f"{means[m.name][1] / means[m.name][0]:.{_RATIO_DIGITS}f}" if m.name in means else "-" for m in metrics)
    return [*rows, ("  ratio", *ratios)]


def _facts_table(results: Sequence[EvalResult], *, every_reason: bool) -> Table:
    first = results[0]
    rows = [("protocol", f"{first.protocol}: {PROTOCOLS[first.protocol]}")]
    if first.reference != "source":
        rows.append(("reference", REFERENCES[first.reference]))
    else:
        rows.append(("ratio", "student / teacher: better above 1 for (higher), below 1 for (lower)"))
    units = counted(first.num_videos, "video") + (f" ({len(first.clips)} clips)" if first.num_videos != len(first.clips) else "")
    rows.append(("±", interval_note(first.num_videos) or f"95 % confidence, Student's t over {units}; the ratio's is paired"))
    for result in results:
        prefix = f"{result.model} " if len(results) > 1 else ""
        teacher, student = result.decoder_params["teacher"], result.decoder_params["student"]
        share = f"{student / 1e6:.3f} M parameters, {100 * student / teacher:.1f} % of the teacher's {teacher / 1e6:.3f} M"
        rows.append((f"{prefix}decoder", share))
        if result.licence:
            rows.append((f"{prefix}licence", result.licence))
        if result.peak_mb.get("student") is not None:
            rows.append((f"{prefix}memory", _memory_in_words(result)))
        if result.decode_times:
            times = result.decode_times
            low, high = times.range
            turns = f"{times.device}, {len(times.student_s)} turns: {low:.2f} to {high:.2f}"
            rows.append((f"{prefix}speed", f"decodes {times.ratio:.2f} times as fast as the teacher ({turns})"))
        if result.published:
            rows.append((f"{prefix}published", f"{result.published.label}: {result.published.source}"))
        elif result.published_missing:
            rows.append((f"{prefix}published", result.published_missing))
    rows += _missing(first, every_reason=every_reason)
    rows += [
        (f"{METRICS[name].label} with", "; ".join(f"{item['file']}, sha256 {item['sha256'][:16]}..." for item in items))
        for name, items in first.weights.items()
    ]
    return Table("", ["", ""], [(label, text) for label, text in rows])


def _memory_in_words(result: EvalResult) -> str:
    own, teacher = result.peak_mb["student"], result.peak_mb.get("teacher")
    return f"one decode adds {own:.0f} MB" + ("" if teacher is None else f"; by the teacher {teacher:.0f} MB")


def _missing(result: EvalResult, *, every_reason: bool) -> list[tuple[str, str]]:
    """The metrics without a figure: one line, or with `every_reason` a line each."""
    reasons = result.not_measured
    if not every_reason and result.protocol == "paper" and reasons.keys() >= _NOT_IN_PAPER:
        reasons = {name: reason for name, reason in reasons.items() if name not in _NOT_IN_PAPER}  # not asked for by name
    if every_reason or len(reasons) < 2:
        return [(METRICS[name].label, reason) for name, reason in reasons.items()]
    return [("not measured", f"{', '.join(METRICS[name].label for name in reasons)} (-v says why, and what to run)")]


def _worst_clips(result: EvalResult, data: Path) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in result.clips[0].student:
        (worst,) = worst_clips(result.clips, name, 1)
        if METRICS[name].better == "down" and worst.student[name] < METRICS[name].negligible:
            continue  # there is nothing to see in any clip
        (furthest,) = furthest_behind(result.clips, name, 1) or (None,)
        role = f"worst, {_how_far(worst, name)}" if worst == furthest else "worst"
        rows.append((METRICS[name].label, role, *_clip_cells(worst, name, data)))
        if furthest is not None and furthest != worst:
            rows.append(("", _how_far(furthest, name), *_clip_cells(furthest, name, data)))
    return Table(f"{result.model}: clips to look at", ["metric", "student is", "clip", "frame", "teacher", "student"], rows)


def _how_far(clip: ClipScores, name: str) -> str:
    is_ahead = (
        clip.student[name] > clip.teacher[name] if METRICS[name].better == "up" else clip.student[name] < clip.teacher[name]
    )
    return "least ahead of teacher" if is_ahead else "furthest behind teacher"


def _every_clip(result: EvalResult, data: Path) -> Table:
    rows = [
        (METRICS[name].label, *_clip_cells(clip, name, data))
        for name in result.clips[0].student
        for clip in worst_clips(result.clips, name, len(result.clips))
    ]
    return Table(f"{result.model}: every clip, worst first", ["metric", "clip", "frame", "teacher", "student"], rows)


def _clip_cells(clip: ClipScores, name: str, data: Path) -> tuple[str, ...]:
    path = Path(clip.path)
    shown = path.relative_to(data) if data.is_dir() and path.is_relative_to(data) else Path(path.name)
    digits = METRICS[name].digits
    teacher = f"{clip.teacher[name]:.{digits}f}" if name in clip.teacher else "-"
    return str(shown), str(clip.start), teacher, f"{clip.student[name]:.{digits}f}"
