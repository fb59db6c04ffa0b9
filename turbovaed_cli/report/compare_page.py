"""The page of `eval --compare --report`: quality, speed, memory and licence of each decoder, and the same clips side by side."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from markupsafe import Markup

from turbovaed_cli.benchmarking.results import number
from turbovaed_cli.evaluation.decoding import clip_frames
from turbovaed_cli.evaluation.from_latents import latents_frames
from turbovaed_cli.evaluation.scores import REFERENCES, ClipScores, EvalResult, eval_document, interval_note
from turbovaed_cli.evaluation.testcard.scores import CardResult
from turbovaed_cli.files.documents import names_only
from turbovaed_cli.files.whole import write_whole
from turbovaed_cli.metrics import METRICS, Metric
from turbovaed_cli.models.pair import Pair, short_names
from turbovaed_cli.report.assets import asset, source_expression, template
from turbovaed_cli.report.bench_page import Dot, Plot, apart, line_of_best, plot_of
from turbovaed_cli.report.clips import data_of_clip, heat_stops
from turbovaed_cli.report.grids import drawn_tiles
from turbovaed_cli.report.run_page import noteworthy_clips
from turbovaed_cli.report.side_by_side import SharedClip, encode_shared, shared_scale
from turbovaed_cli.report.tables import Cell, cell_of, not_measured, score_text
from turbovaed_cli.report.testcard import CardView, card_view
from turbovaed_cli.settings import EvalSettings
from turbovaed_cli.units import counted
from turbovaed_cli.version import __version__
from turbovaed_cli.video import probe

_FIRST = ("psnr", "ssim", "lpips")  # metrics for the drawing, the first one that was measured


@dataclass(frozen=True)
class Row:
    """One decoder of the table: a teacher or a compared decoder."""

    key: str  # of its pictures
    name: str
    is_teacher: bool
    family: str
    cells: Mapping[str, Cell]  # by metric
    values: Mapping[str, float]
    milliseconds: float | None  # of one decode of the first clip, the median
    frames_per_second: float | None
    peak_mb: float | None
    params: int
    licence: str


@dataclass(frozen=True)
class Comparison:
    """The contents of the page."""

    title: str
    lead: str
    rows: Sequence[Row]
    metrics: Sequence[Metric]  # the columns: every metric that a decoder was measured by
    reference: str  # a key of REFERENCES
    no_interval: str  # why there is none, or ""
    missing: Sequence[tuple[str, str]]  # metrics that were not measured, and why
    device: str  # of the times
    clips: Sequence[SharedClip]
    lattice: int = 0  # pixels of one latent, a side: the period that grids are drawn with; 0 is the largest
    cards: Sequence[CardView] = ()  # test cards, in the order of the compared decoders


def write_comparison(
    path: Path,
    results: Sequence[EvalResult],
    pairs: Sequence[Pair],
    settings: EvalSettings,
    data: Path | None,
    *,
    latents_are: str = "raw",
    latents_shape: Sequence[int] = (),
    cards: Sequence[CardResult] = (),
) -> None:
    """Write the page of a comparison to `path`. Clips are decoded again from their videos, or from their latents files.

    `cards` are the test cards of the decoders, if they were measured.
    """

    def frames_of(clip: ClipScores) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
        if data is None:
            reference, decoded = latents_frames(pairs, Path(clip.path), latents_are, latents_shape)
            return reference, dict(zip(model_keys(results), decoded, strict=True)), 24.0
        pictures: dict[str, np.ndarray] = {}
        teachers = teacher_keys(pairs)
        for key, teacher_key, pair in zip(model_keys(results), teachers, pairs, strict=True):
            source, teacher, student = clip_frames(pair, clip, settings)
            pictures.setdefault(teacher_key, teacher)
            pictures[key] = student
        order = [*dict.fromkeys(teachers), *model_keys(results)]
        return source, {key: pictures[key] for key in order}, float(probe(Path(clip.path)).fps) / settings.stride

    rows = decoder_rows(results, pairs)
    clips = [_shared(role, clip, results, rows, frames_of) for role, clip in noteworthy_clips(results[0])]
    lattice = max(pair.teacher.spec.space_ratio for pair in pairs if pair.teacher is not None)
    names = short_names([card.model for card in cards])
    views = [card_view(card, name) for card, name in zip(cards, names, strict=True)]
    page = comparison_of(results, rows, clips, _named(data, results[0]))
    text = render(replace(page, lattice=lattice, cards=views))
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _named(data: Path | None, result: EvalResult) -> str:
    """Return the name of what was decoded, for the title."""
    if data is not None:
        return data.resolve().name
    return Path(result.clips[0].path).name if len(result.clips) == 1 else f"{len(result.clips)} latents files"


def _shared(role: str, clip: ClipScores, results: Sequence[EvalResult], rows: Sequence[Row], frames_of: Any) -> SharedClip:
    reference, pictures, fps = frames_of(clip)
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        of = next(result for result, key in _with_keys(results, rows) if key == row.key)
        same = next(one for one in of.clips if (one.path, one.start) == (clip.path, clip.start))
        scores[row.key] = same.teacher if row.is_teacher else same.student
    name = f"{Path(clip.path).name}, from frame {clip.start}" if clip.start else Path(clip.path).name
    return SharedClip(name, role, {"source": reference, **pictures}, fps, scores)


def _with_keys(results: Sequence[EvalResult], rows: Sequence[Row]) -> list[tuple[EvalResult, str]]:
    """Return the result that each row is from: a decoder's own, and of a teacher the first that it has scores in."""
    found = [(result, key) for result, key in zip(results, model_keys(results), strict=True)]
    teachers = [row.key for row in rows if row.is_teacher]
    return found + [(results[int(key.removeprefix("teacher-"))], key) for key in teachers]


def model_keys(results: Sequence[object]) -> list[str]:
    """Return the key of each compared decoder."""
    return [f"model-{i}" for i in range(len(results))]


def teacher_keys(pairs: Sequence[Pair]) -> list[str]:
    """Return the key of each pair's teacher: the number of the first pair that has the same one."""
    identities = [json.dumps(pair.teacher.identity(), sort_keys=True, default=str) if pair.teacher else "" for pair in pairs]
    return [f"teacher-{identities.index(identity)}" for identity in identities]


def decoder_rows(results: Sequence[EvalResult], pairs: Sequence[Pair]) -> list[Row]:
    """Return a row for each different teacher, then one for each compared decoder."""
    keys, names = teacher_keys(pairs), short_names([result.model for result in results])
    axes = {name: _axis(name, results) for name in METRICS}
    distinct = list(dict.fromkeys(keys))
    rows = []
    for key in distinct:
        first = keys.index(key)
        teacher, result = pairs[first].teacher, results[first]
        assert teacher is not None
        name = "Teacher" if len(distinct) == 1 else f"Teacher of {names[first]}"
        rows.append(_row(key, name, teacher.spec.class_name, result, "teacher", axes, teacher.spec.licence))
    for key, name, result in zip(model_keys(results), names, results, strict=True):
        rows.append(_row(key, name, result.family, result, "student", axes, result.licence))
    return rows


def _row(
    key: str, name: str, family: str, result: EvalResult, side: str, axes: Mapping[str, tuple[float, float]], licence: str
) -> Row:
    means, spans = result.means[side], {} if interval_note(result.num_videos) else result.intervals[side]
    seconds = getattr(result.decode_times, f"{side}_s") if result.decode_times else []
    middle = median(seconds) if seconds else None
    return Row(
        key=key,
        name=name,
        is_teacher=side == "teacher",
        family=family,
        cells={metric: cell_of(metric, value, spans.get(metric), axes[metric]) for metric, value in means.items()},
        values={metric: value for metric, value in means.items() if math.isfinite(value)},
        milliseconds=None if middle is None else 1e3 * middle,
        frames_per_second=None if middle is None else result.frames / middle,
        peak_mb=result.peak_mb.get(side),
        params=result.decoder_params[side],
        licence=licence,
    )


def _axis(metric: str, results: Sequence[EvalResult]) -> tuple[float, float]:
    """Return the least and the largest value of a metric, with the ends of intervals."""
    known = [
        value
        for result in results
        for side in ("teacher", "student")
        for value in (result.means[side].get(metric), *(result.intervals[side].get(metric) or ()))
        if value is not None and math.isfinite(value)
    ]
    return (min(known), max(known)) if known else (0.0, 1.0)


def comparison_of(results: Sequence[EvalResult], rows: Sequence[Row], clips: Sequence[SharedClip], data: str) -> Comparison:
    """Return the contents of a page for these results and rows; `data` names what was decoded."""
    first = results[0]
    height, width = first.size
    return Comparison(
        title=f"{len(results)} decoders on {data}" if len(results) > 1 else f"{Path(first.model).name} on {data}",
        lead=f"{counted(len(first.clips), 'clip')} of {counted(first.frames, 'frame')} at {width}x{height}; compared with {REFERENCES[first.reference]}",
        rows=rows,
        metrics=[metric for name, metric in METRICS.items() if any(name in row.cells for row in rows)],
        reference=first.reference,
        no_interval=interval_note(first.num_videos),
        missing=not_measured(names_only(eval_document(first))),
        device=first.decode_times.device if first.decode_times else "",
        clips=clips,
    )


# --- quality against speed ----------------------------------------------------------------------------------------


def quality_and_speed(comparison: Comparison) -> Plot | None:
    """Plot the decoders by frames per second and quality; None without times or without a metric of _FIRST.

    The dashed line joins the decoders that no other beats in both.
    """
    name = next((name for name in _FIRST if any(name in row.values for row in comparison.rows)), None)
    timed = [row for row in comparison.rows if row.frames_per_second and name in row.values]
    if name is None or not timed:
        return None
    metric = METRICS[name]
    sign = 1 if metric.better == "up" else -1
    points = [(row.frames_per_second or 1.0, row.values[name]) for row in timed]
    place, x_ticks, y_ticks = plot_of(points)
    dots = []
    for row, point in zip(timed, points, strict=True):
        x, y = place(*point)
        dots.append(Dot(row.name, "teacher" if row.is_teacher else "model", row.is_teacher, x, y, y))
    direction = "higher is better" if sign > 0 else "lower is better"
    return Plot(
        apart(dots),
        line_of_best(points, place, sign),
        x_ticks,
        y_ticks,
        "frames per second",
        f"{metric.label}{f', {metric.unit}' if metric.unit else ''} ({direction})",
        "; ".join(f"{row.name}: {score_text(name, row.values[name])} at {number(row.frames_per_second)}" for row in timed),
    )


# --- the page -----------------------------------------------------------------------------------------------------


def render(comparison: Comparison) -> str:
    """Return the page as HTML. Its videos are embedded, and it loads nothing from elsewhere."""
    scale = shared_scale(comparison.clips)
    videos = [encode_shared(clip, scale) for clip in comparison.clips]
    grid_tiles, grid_scale = drawn_tiles(
        [clip.pictures for clip in comparison.clips], [clip.scores for clip in comparison.clips], comparison.lattice
    )
    style = asset("page.css") + asset("bench.css") + asset("compare.css") + asset("testcard.css")
    script = asset("page.js")
    words = {"source": "Source" if comparison.reference == "source" else "Teacher's decode"}
    words |= {row.key: row.name for row in comparison.rows}
    return template("compare.html").render(
        page=comparison,
        plot_data=quality_and_speed(comparison),
        number=number,
        score_text=score_text,
        videos=[(video, *_in_words(video.clip, words)) for video in videos],
        words=words,
        clip_data=[data_of_clip(video) for video in videos],
        scale=scale,
        grid_tiles=grid_tiles,
        grid_scale=grid_scale,
        heat_stops=heat_stops(),
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup(style),  # noqa: S704 - a file of ours
        script=Markup(script),  # noqa: S704 - a file of ours
        style_hash=source_expression(style),
        script_hash=source_expression(script),
    )


def _in_words(clip: SharedClip, words: Mapping[str, str]) -> tuple[str, dict[str, str], dict[str, str], list[str]]:
    """Return a clip's description, its pictures and error maps by name, the maps alone, and the names of the last two pictures."""
    pictures = {key: words[key] for key in clip.pictures}
    compared = list(pictures.items())[1:]
    maps = {f"{key}_error": name for key, name in compared}
    choices = pictures | {f"{key}_error": f"{name}: error" for key, name in compared}
    return f"{clip.name}: {', '.join(pictures.values())}, and their errors", choices, maps, list(pictures)[-2:]
