"""The test card of a decoder for a page: its tables, every flat colour side by side, and its worst patterns enlarged."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from turbovaed_cli.evaluation.scores import own_side
from turbovaed_cli.evaluation.testcard.scores import (
    FIGURES,
    CardResult,
    PatternScores,
    Pictures,
    figure_text,
    summarise_card,
    summary_rows,
    worst_patterns,
)
from turbovaed_cli.report.clips import ERROR_PERCENTILE, MAX_SIDE, enlarged, error_levels, heat, largest_window
from turbovaed_cli.units import counted

DETAIL = 40  # pixels a side of the part that is enlarged
_SWATCH = 40  # pixels a side of each of the three colours next to each other
_ENLARGED_TO = 320  # pixels a side of an enlarged part


@dataclass(frozen=True)
class Shot:
    """One picture of the page: a PNG as a data URI, its name, and what it shows."""

    data_uri: str
    name: str
    about: str


@dataclass(frozen=True)
class Row:
    """One row of the table of all patterns."""

    label: str
    shape: str  # frames and pixels
    cells: Sequence[str]


@dataclass(frozen=True)
class Swatch:
    """A flat colour: source, teacher and student next to each other without a gap."""

    shot: Shot
    label: str
    text: str


@dataclass(frozen=True)
class LargePattern:
    """A pattern shown large: rows of pictures (the frame, a part of it enlarged, the error of that part)."""

    label: str
    roles: str
    figures: Sequence[tuple[str, str, str, str]]  # label, unit, teacher, student
    rows: Sequence[tuple[str, Sequence[Shot]]]  # caption, pictures


@dataclass(frozen=True)
class CardView:
    """The test card of one decoder as a page shows it."""

    name: str
    own: str  # "Student" or "Decoder"
    lead: str
    kept: float  # the student's mean PSNR over the teacher's
    summary: Sequence[tuple[str, str]]
    headings: Sequence[tuple[str, str, bool]]  # label, unit, whether teacher and student have it
    rows: Sequence[Row]
    meanings: Sequence[tuple[str, str]]
    swatches: Sequence[Swatch]
    large: Sequence[LargePattern]


def card_view(card: CardResult, name: str) -> CardView:
    """Return what a page shows of a card. A card that was read from a document has no pictures."""
    own = own_side(card.family).capitalize()
    height, width = card.size
    flat = [one for one in card.patterns if one.colour is not None and one.pictures is not None]
    return CardView(
        name=name,
        own=own,
        lead=f"{counted(len(card.patterns), 'drawn clip')} of at most {counted(card.frames, 'frame')} at {width}x{height}",
        kept=summarise_card(card).kept,
        summary=summary_rows(card),
        headings=[(figure.label, figure.unit, figure.name != "psnr_to_teacher") for figure in FIGURES.values()],
        rows=[_row(one) for one in card.patterns],
        meanings=[(figure.label, figure.meaning) for figure in FIGURES.values()],
        swatches=[_swatch(one, own) for one in sorted(flat, key=lambda one: one.student["psnr"])],
        large=[_large(roles, one, one.pictures, own) for roles, one in worst_patterns(card) if one.pictures is not None],
    )


def _row(one: PatternScores) -> Row:
    height, width = one.size
    cells = []
    for name in FIGURES:
        sides = (one.student,) if name == "psnr_to_teacher" else (one.teacher, one.student)
        cells += [figure_text(name, scores.get(name)) for scores in sides]
    return Row(one.label, f"{one.frames}, {width}×{height}", cells)


def _swatch(one: PatternScores, own: str) -> Swatch:
    assert one.pictures is not None
    shown = one.pictures
    parts = [_middle(picture, _SWATCH) for picture in (shown.source, shown.teacher, shown.student)]
    label = one.label.removeprefix("flat ")
    text = f"{one.student['psnr']:.1f}\u00a0dB, ΔE\u00a0{one.student['colour_mean']:.1f}"
    about = f"{label}: source, teacher and {own.lower()} next to each other; {text}"
    return Swatch(Shot(png(enlarged(np.concatenate(parts, axis=1)[None], 2)[0]), label, about), label, text)


def _large(roles: str, one: PatternScores, shown: Pictures, own: str) -> LargePattern:
    names = ("Source", "Teacher", own)
    pictures = (shown.source, shown.teacher, shown.student)
    errors = [error_levels(picture[None], shown.source[None])[0] for picture in pictures[1:]]
    scale = max(4, int(np.ceil(np.percentile(errors[1], ERROR_PERCENTILE))))
    top, left, side = _detail(one, errors[1], at_border="border" in roles)
    area = (slice(top, top + side), slice(left, left + side))
    factor = max(_ENLARGED_TO // side, 1)
    whole = [_within(picture, errors[1]) for picture in pictures]
    close = [enlarged(picture[area][None], factor)[0] for picture in pictures]
    maps = [enlarged(heat(error[area], scale)[None], factor)[0] for error in errors]
    where = f"{side}×{side} pixels at {left}, {top}"
    frame = f": frame {shown.index + 1} of {one.frames}, that with the largest error" if one.frames > 1 else ""
    rows = [
        (f"The picture{frame}", _shots(whole, names, one.label, "the picture")),
        (f"Enlarged {factor} times: {where}", _shots(close, names, one.label, f"enlarged {factor} times")),
        (
            f"Its error: black is 0, the lightest is {scale} levels of 255 or more",
            _shots(maps, ("Teacher's error", f"{own}'s error"), one.label, f"up to {scale} levels of 255"),
        ),
    ]
    figures = [
        (figure.label, figure.unit, figure_text(name, one.teacher.get(name)), figure_text(name, one.student.get(name)))
        for name, figure in FIGURES.items()
        if name in one.student
    ]
    return LargePattern(one.label, roles, figures, rows)


def _shots(pictures: Sequence[np.ndarray], names: Sequence[str], label: str, about: str) -> list[Shot]:
    return [Shot(png(picture), name, f"{label}, {name}: {about}") for picture, name in zip(pictures, names, strict=True)]


def _detail(one: PatternScores, error: np.ndarray, *, at_border: bool) -> tuple[int, int, int]:
    """Return top, left and side of the part that is enlarged: where the error is largest, but the middle of a flat colour.

    With `at_border` that of a flat colour is where the error is largest too.
    """
    side = min(DETAIL, *error.shape)
    if one.colour is not None and not at_border:
        return (error.shape[0] - side) // 2, (error.shape[1] - side) // 2, side
    return (*largest_window(error, side, side), side)


def _within(picture: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return the picture, or of one with a side above MAX_SIDE the part with the largest error."""
    height, width = (min(side, MAX_SIDE) for side in error.shape)
    top, left = largest_window(error, height, width) if (height, width) != error.shape else (0, 0)
    return picture[top : top + height, left : left + width]


def _middle(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    top, left = max((height - side) // 2, 0), max((width - side) // 2, 0)
    return picture[top : top + side, left : left + side]


def png(picture: np.ndarray) -> str:
    """Return a picture (H, W, 3) uint8 as the data URI of a PNG, without loss."""
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
