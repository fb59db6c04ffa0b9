"""`report.html`: the results of a run or an evaluation, as one file that opens anywhere and loads nothing from the network.

It has figures, clips with a divider between source, teacher and student, curves and settings. The page is a template
(page.html, page.css, page.js) with every value escaped. Its content security policy allows only its own script, style and
videos.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from turbovaed_cli.evaluation.evaluate import clip_frames
from turbovaed_cli.evaluation.scores import ClipScores, EvalResult, eval_document, worst_clips
from turbovaed_cli.evaluation.testcard.scores import CardResult, read_card, whole_document
from turbovaed_cli.files.documents import names_only
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import whole_files, write_json, write_whole
from turbovaed_cli.machine.devices import environment
from turbovaed_cli.metrics import METRICS
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import num_params_of
from turbovaed_cli.models.pair import Pair, short_names
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher, decoder_params
from turbovaed_cli.report import tables
from turbovaed_cli.report.assets import asset, source_expression, template
from turbovaed_cli.report.clips import ShownClip, data_of_clip, encode, error_scale, heat_stops
from turbovaed_cli.report.curves import Curves, draw
from turbovaed_cli.report.grids import drawn_tiles
from turbovaed_cli.report.testcard import CardView, card_view
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import EvalSettings
from turbovaed_cli.units import counted, format_size
from turbovaed_cli.version import __version__
from turbovaed_cli.video import probe

__all__ = ["Report", "ShownClip", "model_facts", "noteworthy_clips", "report_of_eval", "report_of_run", "write_report"]

NUM_WORST = 2  # worst clips shown in addition to the median one; more would make the file too large
SHOWN = {
    "source": "Source",
    "teacher": "Teacher",
    "student": "Student",
    "teacher_error": "Teacher's error",
    "student_error": "Student's error",
}
FramesOf = Callable[[ClipScores], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Report:
    """The contents of a page. The page explains how to get a part that is empty."""

    title: str
    facts: Mapping[str, str]  # of model and teacher, in words
    lead: str = ""  # the introduction: what was measured, and on which data
    evaluation: Mapping[str, Any] | None = None  # the document of `eval --json`
    clips: Sequence[ShownClip] = ()
    clips_note: str = ""  # how these clips were chosen
    cards: Sequence[CardView] = ()  # test cards; several of a comparison without other data
    metrics: Sequence[Mapping[str, Any]] = ()  # rows of metrics.jsonl
    no_metrics: str = "The model was not given as a run folder, so its training curves are not available."  # shown without rows
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    next_command: str = "turbovaed eval --data DIR"  # the command that fills the empty parts
    lattice: int = 0  # pixels of one latent, a side: the period that grids are drawn with; 0 is the largest


# --- its contents -------------------------------------------------------------------------------------------------


def model_facts(student: Decoder, teacher: Teacher) -> dict[str, str]:
    """Return the facts about a decoder, usually a student, and its teacher as rows of text."""
    of_teacher, of_student = decoder_params(teacher), num_params_of(student)
    row, share = teacher.spec, f"{of_student:,} parameters, {100 * of_student / of_teacher:.1f} % of the teacher's decoder"
    shared = {
        "Teacher": f"{row.class_name} ({row.origin})",
        "Its decoder": f"{of_teacher:,} parameters",
        "Latents": f"{row.latent_channels} channels, {row.time_ratio}x in time, {row.space_ratio}x in height and width",
    }
    licence = f"{row.licence}, the teacher's{': ' + row.licence_note if row.licence_note else ''}"
    if not isinstance(student, StudentDecoder):
        return shared | {f"Decoder ({student.family})": share, "Licence": student.licence, "Teacher's licence": licence}
    return shared | {
        "Student": share,
        "Student's channels": ", ".join(map(str, student.config.decoder_block_out_channels)),
        "Licence": licence,
    }


def report_of_run(
    run: RunDir, facts: Mapping[str, str], *, clips: Sequence[ShownClip] = (), clips_note: str = "", lattice: int = 0
) -> Report:
    """Return the report of a run folder of `distill`: curves, settings, its newest evaluation, and `clips` if there are any."""
    newest = max(whole_files(run.eval, "*.json"), key=lambda path: path.stat().st_mtime, default=None)
    return Report(
        title=run.root.resolve().name,
        facts=facts,
        lead=f"Measured before the last steps, in {newest.name}; turbovaed eval measures the current student" if newest else "",
        evaluation=names_only(tables.read_evaluation(newest)) if newest else None,
        clips=clips,
        clips_note=clips_note,
        cards=_kept_cards(run),
        metrics=run.read_metrics(),
        no_metrics="No step has been logged yet.",
        settings=names_only({name: value for name, value in _config(run).items() if name != "schema_version"}),
        environment=_read(run.env),
        next_command=f"turbovaed eval --model {names_only(str(run.root))} --data DIR",
        lattice=lattice,
    )


def report_of_eval(
    result: EvalResult, pair: Pair, frames_of: FramesOf, settings: EvalSettings, data: Path, card: CardResult | None = None
) -> Report:
    """Return the report of an evaluation of `pair` on `data`; for a run folder it includes the curves.

    `frames_of` returns source, teacher and student of an evaluated clip, each (T, H, W, 3) uint8. `card` is the test card that
    was measured with it; without one a run folder's report has the newest that it keeps.
    """
    assert pair.teacher is not None
    document = eval_document(result)
    height, width = result.size
    noteworthy = noteworthy_clips(result)
    return Report(
        title=pair.run.root.resolve().name if pair.run else Path(pair.name).name,
        facts={"Model": names_only(pair.name), **model_facts(pair.student, pair.teacher)},
        lead=f"{counted(len(result.clips), 'clip')} of {counted(result.frames, 'frame')} at {width}x{height} from {data.resolve().name}; "
        f"{document['protocol_label']}",
        evaluation=names_only(document),
        clips=[_shown(role, clip, frames_of, settings) for role, clip in noteworthy],
        clips_note=f"By the student's {METRICS[_by(result)].label}: {', '.join(role for role, _ in noteworthy)}."
        if noteworthy
        else "",
        cards=[_view(card)] if card else _kept_cards(pair.run) if pair.run else (),
        metrics=pair.run.read_metrics() if pair.run else (),
        settings=names_only(
            {"eval": asdict(settings), "teacher": pair.teacher.identity()} | (_config(pair.run) if pair.run else {})
        ),
        environment=environment(pair.device),
        lattice=pair.teacher.spec.space_ratio,
    )


def report_of_cards(cards: Sequence[CardResult], pairs: Sequence[Pair], settings: EvalSettings) -> Report:
    """Return the report of test cards that were measured without other data; that of one run includes its curves."""
    first = pairs[0]
    assert first.teacher is not None
    names = short_names([card.model for card in cards])
    facts = {"Model": names_only(first.name), **model_facts(first.student, first.teacher)}
    if len(pairs) == 1 and first.run is not None:
        return replace(report_of_run(first.run, facts), cards=[_view(cards[0])])
    if len(pairs) > 1:
        facts = {
            f"{name}: {fact.lower() if fact != 'Model' else 'model'}": text
            for name, pair in zip(names, pairs, strict=True)
            if pair.teacher is not None
            for fact, text in model_facts(pair.student, pair.teacher).items()
        }
    return Report(
        title=names[0] if len(names) == 1 else f"Test card of {len(names)} decoders",
        facts=facts,
        lead="Measured on the test card alone: drawn clips, no videos",
        cards=[card_view(card, name) for card, name in zip(cards, names, strict=True)],
        settings=names_only({"eval": asdict(settings)}),
        environment=environment(first.device),
    )


def _view(card: CardResult) -> CardView:
    return card_view(card, short_names([card.model])[0])


def _kept_cards(run: RunDir) -> list[CardView]:
    """Return the newest test card that a run keeps; its pictures are not kept."""
    newest = max(whole_files(run.testcards, "*.json"), key=lambda path: path.stat().st_mtime, default=None)
    return [_view(read_card(newest))] if newest else []


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _config(run: RunDir) -> dict[str, Any]:
    """Return the config of a run without its command line, which may have private paths."""
    return {name: value for name, value in _read(run.config).items() if name != "command_line"}


def _by(result: EvalResult) -> str:
    """Return the metric that clips are sorted by: PSNR, or the first one if it was not measured."""
    names = list(result.clips[0].student)
    return "psnr" if "psnr" in names else names[0]


def noteworthy_clips(result: EvalResult) -> list[tuple[str, ClipScores]]:
    """Return (role, clip) of the student's worst clips, worst first, the median one, and the one with the most grid; each once.

    A grid that is not visible is left out. The list is empty if only the set as a whole was measured (rFVD).
    """
    if not result.clips[0].student:
        return []
    order = worst_clips(result.clips, _by(result), len(result.clips))
    roles = ["worst", *(f"{_ORDINALS[i]} worst" for i in range(1, NUM_WORST))]
    median = order[len(order) // 2]
    chosen = [(role, clip) for role, clip in zip(roles, order, strict=False) if clip is not median or len(order) < 3]
    chosen = chosen if len(order) < 3 else [*chosen, ("median", median)]
    if "grid" in result.clips[0].student:
        (textured,) = worst_clips(result.clips, "grid", 1)
        if textured.student["grid"] > METRICS["grid"].negligible and all(clip is not textured for _, clip in chosen):
            chosen = [*chosen, ("most grid", textured)]
    return chosen


_ORDINALS = ("first", "second", "third", "fourth")


def _shown(role: str, clip: ClipScores, frames_of: FramesOf, settings: EvalSettings) -> ShownClip:
    path = Path(clip.path)
    name = f"{path.name}, from frame {clip.start}" if clip.start else path.name
    scores = {"teacher": clip.teacher, "student": clip.student}
    return ShownClip(name, role, *frames_of(clip), float(probe(path).fps) / settings.stride, scores)


# --- keeping an evaluation ----------------------------------------------------------------------------------------


def keep_evaluation(
    result: EvalResult,
    pair: Pair,
    settings: EvalSettings,
    data: Path,
    page: Path | None = None,
    report: Reporter = quiet,
    *,
    card: CardResult | None = None,
) -> None:
    """Write the document and report.html into the run folder, if the model is one, and the page also to `page`.

    `card` is the test card that was measured with it, if there is one.
    """
    if card is not None:
        _keep_document(card, pair, report)
    if pair.run is not None:
        name = f"{_short(data.name) or 'data'}-{settings.frames}x{format_size(settings.size)}-{settings.protocol}.json"
        write_json(pair.run.eval / name, eval_document(result))
        report.note(f"kept in {pair.run.eval / name}")
    pages = [path for path in (page, pair.run.report if pair.run else None) if path is not None]
    if pages:
        shown = report_of_eval(result, pair, functools.partial(clip_frames, pair, settings=settings), settings, data, card)
        write_report(pages, shown)
        report.note(f"to look at: {', '.join(map(str, pages))}")


def keep_cards(
    cards: Sequence[CardResult],
    pairs: Sequence[Pair],
    settings: EvalSettings,
    page: Path | None = None,
    report: Reporter = quiet,
) -> None:
    """Write test cards that were measured without videos: each into the run folder that its model is, and all to `page`."""
    pages = [] if page is None else [(page, cards, pairs)]
    for card, pair in zip(cards, pairs, strict=True):
        if pair.run is not None:
            _keep_document(card, pair, report)
            pages.append((pair.run.report, [card], [pair]))
    for place, shown, of in pages:
        write_report(place, report_of_cards(shown, of, settings))
    if pages:
        report.note(f"to look at: {', '.join(str(place) for place, _, _ in pages)}")


def _keep_document(card: CardResult, pair: Pair, report: Reporter) -> None:
    """Write the figures of a test card into the run folder, if the model is one."""
    if pair.run is None:
        return
    path = pair.run.testcards / f"{card.frames}x{format_size(card.size)}.json"
    write_json(path, whole_document(card))
    report.note(f"kept in {path}")


_MOST_NAME_BYTES = 160  # of the data's name in the file name of an evaluation


def _short(name: str) -> str:
    """Shorten a file's name, to leave room for the rest of a name of at most 255 bytes."""
    while len(os.fsencode(name)) > _MOST_NAME_BYTES:
        name = name[:-1]
    return name


# --- the page -----------------------------------------------------------------------------------------------------


def write_report(places: Path | Sequence[Path], report: Report) -> None:
    """Write `report` as one HTML file, to one or several places, whole or not at all; existing files are replaced."""
    text = render(report)
    for path in [places] if isinstance(places, Path) else places:
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def render(report: Report) -> str:
    """Return `report` as HTML. Its videos are embedded, and it loads nothing from elsewhere."""
    scale = error_scale(report.clips)
    clips = [encode(clip, scale) for clip in report.clips]
    settings = report.settings.get("settings", {})
    curves = draw(tables.with_data_size(report.metrics))
    pictures = [{"source": clip.source, "teacher": clip.teacher, "student": clip.student} for clip in report.clips]
    grid_tiles, grid_scale = drawn_tiles(pictures, [clip.scores for clip in report.clips], report.lattice)
    style, script = asset("page.css") + asset("testcard.css"), asset("page.js")
    return template("page.html").render(
        report=report,
        tables=tables,
        figures=[*tables.key_figures(report.evaluation, report.metrics, settings), *_card_figures(report.cards)],
        stages=tables.stage_table(settings),
        clips=clips,
        clip_data=[data_of_clip(clip) for clip in clips],
        shown=SHOWN,
        scale=scale,
        grid_tiles=grid_tiles,
        grid_scale=grid_scale,
        heat_stops=heat_stops(),
        curves=curves,
        curve_data=_curve_data(curves),
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup(style),  # noqa: S704 - a file of ours
        script=Markup(script),  # noqa: S704 - a file of ours
        style_hash=source_expression(style),
        script_hash=source_expression(script),
    )


def _card_figures(cards: Sequence[CardView]) -> list[tuple[str, str]]:
    """Return the key figure of a test card, as (value, description)."""
    return [(f"{100 * cards[0].kept:.1f} %", "of the teacher's mean PSNR on the test card")] if len(cards) == 1 else []


def _curve_data(curves: Curves | None) -> dict[str, Any]:
    """Return the data that page.js needs to show values of curves: per panel, [x, y, text] or null for each stretch of steps."""
    if curves is None:
        return {"stretches": [], "panels": []}
    points = [[None if p is None else [p.x, p.y, p.text] for p in panel.points] for panel in curves.panels]
    return {"stretches": curves.stretches, "panels": points}
