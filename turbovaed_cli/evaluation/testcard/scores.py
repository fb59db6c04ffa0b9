"""The scores of a test card: per pattern, in summary, the worst patterns, and the JSON document."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from turbovaed_cli.errors import CorruptFileError
from turbovaed_cli.evaluation.scores import SIDES, Scores, own_side
from turbovaed_cli.files.documents import check_fields
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.metrics import MAX_PSNR_DB

LOW_PSNR_DB = 30.0  # patterns below it are counted
CARD_VERSION = 1


@dataclass(frozen=True)
class Figure:
    """One figure of a pattern: the names of a column, its unit, its digits in tables, and what it is."""

    name: str  # the key in JSON
    label: str
    unit: str
    digits: int
    meaning: str


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("psnr", "PSNR", "dB", 1, "against the source"),
        Figure("psnr_to_teacher", "PSNR to teacher", "dB", 1, "the student's decode against the teacher's"),
        Figure("colour_mean", "mean colour error", "ΔE", 1, "CIEDE2000, mean over pixels; 1 is just visible side by side"),
        Figure("colour_worst", "worst colour error", "ΔE", 1, "CIEDE2000 of the worst pixel"),
        Figure("grid", "grid", "/255", 2, "root mean square of the error that repeats at the lattice of upsampling"),
        Figure("banding", "banding", "/255", 2, "mean height of steps where the source is a smooth gradient"),
        Figure("border", "border", "/255", 1, "root mean square error of the outermost cells, less that of the inside"),
        Figure("flicker", "flicker", "/255", 2, "root mean square change of the error where the source stands still"),
    )
}


@dataclass(frozen=True)
class Pictures:
    """One frame of a pattern, that with the student's largest error: each (H, W, 3) uint8."""

    index: int  # of the frame
    source: np.ndarray
    teacher: np.ndarray
    student: np.ndarray


@dataclass(frozen=True)
class PatternScores:
    """One pattern with the figures of teacher and student; a figure that the pattern does not have is left out.

    Only the student has `psnr_to_teacher`.
    """

    name: str
    label: str
    frames: int
    size: tuple[int, int]  # (height, width)
    teacher: Scores
    student: Scores
    colour: tuple[int, int, int] | None = None  # of a flat pattern
    pictures: Pictures | None = field(default=None, compare=False, repr=False)  # None if it was read from a document

    @property
    def shortfall_db(self) -> float:
        """The decibels by which the student's PSNR is below the teacher's; negative if it is above."""
        return self.teacher["psnr"] - self.student["psnr"]

    def added(self, name: str) -> float:
        """Return by how much a figure of the student is above the teacher's; -infinity if the pattern does not have it."""
        return self.student[name] - self.teacher[name] if name in self.student and name in self.teacher else -math.inf


@dataclass(frozen=True)
class CardResult:
    """The test card of one decoder next to its teacher."""

    model: str
    frames: int  # of the longest pattern
    size: tuple[int, int]  # (height, width) of the largest pattern
    patterns: list[PatternScores]
    family: str = ""  # of the decoder


@dataclass(frozen=True)
class CardSummary:
    """A card in few figures. Flat colours have no content of their own: every error on them is the decoder's."""

    num_patterns: int
    mean_psnr: Scores  # of "teacher" and "student": dB, the mean over patterns
    kept: float  # the student's mean PSNR over the teacher's
    num_low: dict[str, int]  # of "teacher" and "student": patterns below LOW_PSNR_DB
    worst_flat: PatternScores | None  # the flat colour with the student's lowest PSNR; None if none was measured
    worst_colour: PatternScores | None  # the one with its largest mean colour error
    worst_grid: PatternScores | None  # the one with its strongest grid


def summarise_card(card: CardResult) -> CardSummary:
    """Return the summary of a card."""
    mean = {side: sum(getattr(one, side)["psnr"] for one in card.patterns) / len(card.patterns) for side in SIDES}
    flat = [one for one in card.patterns if one.colour is not None]
    return CardSummary(
        num_patterns=len(card.patterns),
        mean_psnr=mean,
        kept=mean["student"] / mean["teacher"] if mean["teacher"] else math.nan,
        num_low={side: sum(getattr(one, side)["psnr"] < LOW_PSNR_DB for one in card.patterns) for side in SIDES},
        worst_flat=min(flat, key=lambda one: one.student["psnr"], default=None),
        worst_colour=max(flat, key=lambda one: one.student["colour_mean"], default=None),
        worst_grid=max((one for one in flat if "grid" in one.student), key=lambda one: one.student["grid"], default=None),
    )


_Key = Callable[[PatternScores], float]
_ROLES: tuple[tuple[str, float, _Key], ...] = (  # why a pattern is shown, the least for it, and what it has the most of
    ("furthest behind the teacher", 0.5, lambda one: one.shortfall_db),
    ("worst flat colour", 0, lambda one: MAX_PSNR_DB - one.student["psnr"] if one.colour else -math.inf),
    ("largest flat ΔE", 0.5, lambda one: one.student["colour_mean"] if one.colour else -math.inf),
    ("strongest flat grid", 0.5, lambda one: one.student.get("grid", -math.inf) if one.colour else -math.inf),
    ("worse colour bars", 0, lambda one: MAX_PSNR_DB - one.student["psnr"] if one.name.startswith("bars_") else -math.inf),
    ("most banding added", 0.5, lambda one: one.added("banding")),
    ("most border error added", 0.5, lambda one: one.added("border")),
    ("most flicker added", 0.5, lambda one: one.added("flicker")),
    ("lowest PSNR", 0, lambda one: MAX_PSNR_DB - one.student["psnr"]),
)


def worst_patterns(card: CardResult) -> list[tuple[str, PatternScores]]:
    """Return (roles, pattern) of the patterns on which the student is worst in one way or another, each once."""
    found: dict[str, tuple[list[str], PatternScores]] = {}
    for role, least, key in _ROLES:
        worst = max(card.patterns, key=key)
        if key(worst) >= least:
            found.setdefault(worst.name, ([], worst))[0].append(role)
    return [(", ".join(roles), one) for roles, one in found.values()]


def in_order(patterns: Sequence[PatternScores]) -> list[PatternScores]:
    """Return patterns by how far the student's PSNR is below the teacher's, the largest gap first."""
    return sorted(patterns, key=lambda one: -one.shortfall_db)


# --- in words -----------------------------------------------------------------------------------------------------


def figure_text(name: str, value: float | None) -> str:
    """Format a figure with its digits; "-" if the pattern does not have it."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{FIGURES[name].digits}f}"


def summary_rows(card: CardResult) -> list[tuple[str, str]]:
    """Return the summary of a card as (name, sentence)."""
    summary, own = summarise_card(card), own_side(card.family)
    mean, low = summary.mean_psnr, summary.num_low
    worst = (
        ("worst flat colour", summary.worst_flat, "psnr"),
        ("worst flat ΔE", summary.worst_colour, "colour_mean"),
        ("worst flat grid", summary.worst_grid, "grid"),
    )
    return [
        ("mean PSNR", f"teacher {mean['teacher']:.2f} dB, {own} {mean['student']:.2f} dB: {100 * summary.kept:.1f} % kept"),
        (f"below {LOW_PSNR_DB:.0f} dB", f"teacher {low['teacher']}, {own} {low['student']} of {summary.num_patterns} patterns"),
        *(
            (
                name,
                f"{one.label.removeprefix('flat ')}: "
                f"teacher {_with_unit(figure, one.teacher)}, {own} {_with_unit(figure, one.student)}",
            )
            for name, one, figure in worst
            if one is not None
        ),
    ]


def _with_unit(name: str, scores: Scores) -> str:
    text, unit = figure_text(name, scores.get(name)), FIGURES[name].unit
    return f"{unit} {text}" if unit == "ΔE" else f"{text}{' of ' + unit[1:] if unit.startswith('/') else f' {unit}'}".rstrip()


# --- the document -------------------------------------------------------------------------------------------------


def card_document(card: CardResult) -> dict[str, Any]:
    """Return the object `testcard` of `eval --json`. A figure that a pattern does not have is left out."""
    summary = summarise_card(card)
    return {
        "frames": card.frames,
        "size": list(card.size),
        "num_patterns": summary.num_patterns,
        "mean_psnr": summary.mean_psnr,
        "kept": summary.kept if math.isfinite(summary.kept) else None,
        "low_psnr": {"bound_db": LOW_PSNR_DB, **summary.num_low},
        "worst_flat": _scores_of(summary.worst_flat) if summary.worst_flat else None,
        "worst_colour": _scores_of(summary.worst_colour) if summary.worst_colour else None,
        "worst_grid": _scores_of(summary.worst_grid) if summary.worst_grid else None,
        "patterns": [
            {
                **_scores_of(one),
                "label": one.label,
                "frames": one.frames,
                "size": list(one.size),
                "colour": None if one.colour is None else list(one.colour),
            }
            for one in card.patterns
        ],
    }


def whole_document(card: CardResult) -> dict[str, Any]:
    """Return the document of `eval --testcard --json` without other data, and of eval/testcard/*.json in a run folder."""
    return {"schema_version": CARD_VERSION, "model": card.model, "family": card.family or None, "testcard": card_document(card)}


def _scores_of(one: PatternScores) -> dict[str, Any]:
    return {"name": one.name, "teacher": dict(one.teacher), "student": dict(one.student)}


def read_card(path: Path) -> CardResult:
    """Read what `whole_document` made. Raises CorruptFileError with the field's name if it is not that."""
    document = read_json(path)
    check_fields(document, {"model": str, "testcard": dict[str, Any]}, path)
    check_fields(document, {"family": str | None}, path)
    card = document["testcard"]
    check_fields(card, {"frames": int, "size": tuple[int, int], "patterns": list[dict[str, Any]]}, path, "testcard.")
    patterns = [_pattern_of(one, path, f"testcard.patterns.{number}.") for number, one in enumerate(card["patterns"])]
    if not patterns:
        raise CorruptFileError(f"{path} has no patterns", "remove it, and evaluate again: turbovaed eval --testcard")
    return CardResult(document["model"], card["frames"], tuple(card["size"]), patterns, document.get("family") or "")


def _pattern_of(one: Mapping[str, Any], path: Path, where: str) -> PatternScores:
    fields = {"name": str, "label": str, "frames": int, "size": tuple[int, int], "colour": tuple[int, int, int] | None}
    check_fields(one, {**fields, **dict.fromkeys(SIDES, dict[str, float])}, path, where)
    for side in SIDES:
        check_fields(one[side], dict.fromkeys(("psnr", "colour_mean"), float), path, f"{where}{side}.")
        if unknown := one[side].keys() - FIGURES.keys():
            raise CorruptFileError(
                f"{path} has a figure {min(unknown)} that is unknown", "evaluate again: turbovaed eval --testcard"
            )
    colour = tuple(one["colour"]) if one.get("colour") else None
    return PatternScores(one["name"], one["label"], one["frames"], tuple(one["size"]), one["teacher"], one["student"], colour)
