"""Measure teacher and student on every pattern of the test card, decoded as `reconstruct` writes them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import ShapeError
from turbovaed_cli.evaluation.decoding import decode_clip
from turbovaed_cli.evaluation.evaluate import fit_teacher, measuring_device, with_shared_teachers
from turbovaed_cli.evaluation.scores import Scores
from turbovaed_cli.evaluation.testcard.patterns import PATTERNS, PatternClip, patterns_for
from turbovaed_cli.evaluation.testcard.scores import CardResult, PatternScores, Pictures
from turbovaed_cli.metrics.banding import banding
from turbovaed_cli.metrics.colour import colour_errors
from turbovaed_cli.metrics.grid import grid
from turbovaed_cli.metrics.pixels import HALF_RANGE, psnr
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import EvalSettings
from turbovaed_cli.video import to_model

COLOUR_FRAMES = 5  # of a clip, evenly spread, that the colour error is measured on: it costs more than all the rest


def measure_testcard(
    pair: Pair, settings: EvalSettings = EvalSettings(), *, only: Sequence[str] = (), report: Reporter = quiet
) -> CardResult:
    """Measure teacher and student of `pair` on the test card; see measure_testcards."""
    return measure_testcards([pair], settings, only=only, report=report)[0]


def measure_testcards(
    pairs: Sequence[Pair], settings: EvalSettings = EvalSettings(), *, only: Sequence[str] = (), report: Reporter = quiet
) -> list[CardResult]:
    """Measure several decoders, each with its own teacher, on the test card, which needs no data.

    Of `settings`, `frames` and `size` bound the clips, and `memory` the encoder's memory. Both decode the posterior mean as
    `reconstruct` does, rounded to 8 bits. A teacher that several pairs share decodes once. `only` names patterns to measure;
    without names it is all of them. Raises SettingsError for a name that is no pattern, FrameCountError or ShapeError for frames or a
    size that one of the teachers would silently change.
    """
    for name in only:
        check_choice("`only`", name, (pattern.name for pattern in PATTERNS))
    pairs = with_shared_teachers(pairs)
    work = [
        (teacher, clip)
        for teacher in _teachers(pairs)
        for clip in patterns_for(teacher.spec, settings.frames, settings.size)
        if clip.pattern.name in only or not only
    ]
    for teacher in _teachers(pairs):
        fit_teacher(teacher, settings, report)
    found: list[list[PatternScores]] = [[] for _ in pairs]
    for teacher, clip in report.track(work, "test card"):
        members = [number for number, pair in enumerate(pairs) if pair.teacher is teacher]
        for number, scores in zip(members, _measure(clip, [pairs[number] for number in members]), strict=True):
            found[number].append(scores)
    return [
        CardResult(pair.name, max(one.frames for one in scores), settings.size, scores, pair.student.family)
        for pair, scores in zip(pairs, found, strict=True)
    ]


def pattern_frames(pair: Pair, scores: PatternScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the frames of a measured pattern again: source, teacher and student, each (T, H, W, 3) uint8."""
    pattern = next(pattern for pattern in PATTERNS if pattern.name == scores.name)
    source = PatternClip(pattern, scores.frames, scores.size).draw()
    teacher, student = decode_clip(source, pair)
    assert teacher is not None
    return source, teacher, student


def _teachers(pairs: Sequence[Pair]) -> list[Teacher]:
    return list(dict.fromkeys(pair.teacher for pair in pairs if pair.teacher is not None))


def _measure(clip: PatternClip, pairs: Sequence[Pair]) -> list[PatternScores]:
    """Score one pattern by pairs of one teacher."""
    frames = clip.draw()
    device = measuring_device(pairs[0].device, "standard")
    source = to_model(frames, device)
    decoded = [decode_clip(frames, pair, with_teacher=number == 0) for number, pair in enumerate(pairs)]
    assert decoded[0][0] is not None and pairs[0].teacher is not None
    cell = pairs[0].teacher.spec.space_ratio
    made = decoded[0][0]
    teacher = to_model(made, device)
    by_teacher = figures_of(teacher, source, cell)
    results = []
    for _, student in decoded:
        video = to_model(student, device)
        own = {**figures_of(video, source, cell), "psnr_to_teacher": psnr(video, teacher)}
        index = _worst_frame(student, frames)
        pictures = Pictures(index, frames[index].copy(), made[index].copy(), student[index].copy())
        pattern = clip.pattern
        results.append(
            PatternScores(pattern.name, pattern.label, clip.frames, clip.size, by_teacher, own, pattern.colour, pictures)
        )
    return results


def _worst_frame(video: np.ndarray, source: np.ndarray) -> int:
    """Return the index of the frame with the largest squared error; of equal ones the first."""
    errors = [np.square(a.astype(np.float32) - b).mean() for a, b in zip(video, source, strict=True)]
    return int(np.argmax(errors))


def figures_of(video: Tensor, source: Tensor, cell: int) -> Scores:
    """Return the figures of FIGURES that a clip has against its source, both (3, T, H, W) in [-1, 1].

    `cell` is the width of the border, in pixels. The colour error is measured on COLOUR_FRAMES frames at most.
    """
    frames = torch.linspace(0, video.shape[1] - 1, min(video.shape[1], COLOUR_FRAMES)).round().long().tolist()
    colours = colour_errors(video[:, frames], source[:, frames])
    found: dict[str, float | None] = {
        "psnr": psnr(video, source),
        "colour_mean": float(colours.mean()),
        "colour_worst": float(colours.max()),
        "grid": _if_large_enough(grid, video, source),
        "banding": _if_large_enough(banding, video, source),
        "border": border_error(video, source, cell),
        "flicker": still_flicker(video, source),
    }
    return {name: value for name, value in found.items() if value is not None}


def border_error(video: Tensor, source: Tensor, cell: int) -> float | None:
    """Return the root mean square error of the outermost `cell` pixels less that of the inside, in levels of 255.

    Both (3, T, H, W) in [-1, 1]. Above 0 the border is worse than the inside. None if there is less than a cell of inside.
    """
    height, width = video.shape[-2:]
    if min(height, width) < 3 * cell:
        return None
    squares = ((video.double() - source.double()) * HALF_RANGE).square().mean(dim=(0, 1))
    inside = squares[cell:-cell, cell:-cell]
    outside = (squares.sum() - inside.sum()) / (squares.numel() - inside.numel())
    return float(outside.clamp(min=0).sqrt() - inside.mean().sqrt())


def still_flicker(video: Tensor, source: Tensor) -> float | None:
    """Return the root mean square change of the error from frame to frame, where the source does not change.

    Both (3, T, H, W) in [-1, 1]; in levels of 255. A pixel counts between two frames if all its channels are equal in both.
    None if there is no such pixel, as in a single frame.
    """
    is_still = (source.diff(dim=1) == 0).all(dim=0)  # (T - 1, H, W)
    if not is_still.any():
        return None
    changes = video.double().diff(dim=1)[:, is_still] * HALF_RANGE
    return float(changes.square().mean().sqrt())


def _if_large_enough(measure: object, video: Tensor, source: Tensor) -> float | None:
    """Return a metric of a clip; None if its pictures are too small for it."""
    assert callable(measure)
    try:
        return float(measure(video, source))
    except ShapeError:
        return None
