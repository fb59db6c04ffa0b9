"""`eval --latents`: how close decoders are to the teacher's own decode of latents that have no source video."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.evaluation.decoding import decode_times_of
from turbovaed_cli.evaluation.evaluate import check_eval_settings, measuring_device
from turbovaed_cli.evaluation.measurable import Gauges, nothing_measured, open_gauges
from turbovaed_cli.evaluation.scores import ClipScores, EvalResult, summarise
from turbovaed_cli.latents.latent_files import read_latents
from turbovaed_cli.models.decoding import check_same_space, decode_without_gradients, num_params_of
from turbovaed_cli.models.others.spaces import space_of_vae
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.teacher import Teacher, decoder_params
from turbovaed_cli.reconstruction.windows import check_finite
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import EvalSettings
from turbovaed_cli.video import to_model, to_uint8

_NO_SET = "not measured: on latents, clips are compared one by one (`data` DIR of videos measures it)"


def evaluate_latents(
    pairs: Sequence[Pair],
    files: Sequence[Path],
    settings: EvalSettings = EvalSettings(),
    *,
    latents_are: str = "raw",
    latents_shape: Sequence[int] = (),
    report: Reporter = quiet,
) -> list[EvalResult]:
    """Measure several decoders of the same latents against the teacher's own decode of each latents file.

    The teacher is that of the first pair. Frames are rounded to 8 bits. The results have scores of the decoder ("student") alone:
    no teacher's scores, no ratios. `files` are what `read_latents` reads, one clip each, `latents_are` raw or normalised. Raises
    SettingsError for the published protocol, for decoders of different latents and for a file without latents, MissingError if
    nothing can be measured.
    """
    check_eval_settings(settings)
    if settings.protocol != "standard":
        raise SettingsError("`protocol` paper compares with source videos, and latents have none", "`protocol` standard")
    teacher = pairs[0].teacher
    assert teacher is not None
    for pair in pairs[1:]:
        check_same_space(pair.student, pairs[0].student, pair.name, pairs[0].name)
    clips = {str(path): _raw_latents(path, teacher, pairs[0], latents_are, latents_shape, report) for path in files}
    if not clips:
        raise SettingsError("no latents to measure", "`latents` FILE, or `data` DIR of videos")
    settings = _with_shape(settings, list(clips.values()), teacher)
    gauges = open_gauges(settings, pairs[0].device, len(clips))
    if not gauges.per_clip:
        raise nothing_measured(gauges)
    device = measuring_device(pairs[0].device, settings.protocol)
    scores: list[list[ClipScores]] = [[] for _ in pairs]
    for path, latents in report.track(clips.items(), "evaluating", total=len(clips)):
        target = to_model(_teacher_frames(teacher, latents), device)
        videos = [to_model(student_frames(pair, latents), device) for pair in pairs]
        for found, measured in zip(scores, gauges.scores(videos, target), strict=True):
            found.append(ClipScores(path, 0, {}, measured))
    first = next(iter(clips.values()))
    alike, repeats = [replace(pair, teacher=teacher) for pair in pairs], settings.speed_repeats
    times = decode_times_of(alike, first[None], repeats) if repeats else [None] * len(pairs)
    return [
        replace(_result(pair, teacher, found, gauges, settings), decode_times=one)
        for pair, found, one in zip(pairs, scores, times, strict=True)
    ]


def _raw_latents(path: Path, teacher: Teacher, pair: Pair, latents_are: str, shape: Sequence[int], report: Reporter) -> Tensor:
    """Read the raw latents (C, t, h, w) of a file, in the latent space of the teacher."""
    assert pair.spec is not None
    space = space_of_vae(pair.spec, teacher.vae)
    latents = read_latents(path, space, latents_are=latents_are, shape=shape, report=report).latents
    if latents.shape[0] != space.channels:
        raise SettingsError(
            f"{path.name} holds latents of {latents.shape[0]} channels; the teacher makes {space.channels}",
            "name the model they belong to: `model` NAME",
        )
    return latents


def _with_shape(settings: EvalSettings, clips: Sequence[Tensor], teacher: Teacher) -> EvalSettings:
    """Return the settings with the frames and the size of the videos; of several shapes, the smallest of each."""
    frames = min(teacher.spec.pixel_frames(latents.shape[1]) for latents in clips)
    height, width = (min(latents.shape[side] for latents in clips) * teacher.spec.space_ratio for side in (2, 3))
    return replace(settings, frames=frames, size=(height, width), stride=1)


def _teacher_frames(teacher: Teacher, latents: Tensor) -> np.ndarray:
    return _rounded(teacher.decode(latents[None]))


def student_frames(pair: Pair, latents: Tensor) -> np.ndarray:
    """Decode raw latents (C, t, h, w) with the decoder of a pair, as a whole, to frames (T, H, W, 3) uint8."""
    return _rounded(decode_without_gradients(pair.student, latents[None]))


def latents_frames(
    pairs: Sequence[Pair], path: Path, latents_are: str, latents_shape: Sequence[int] = ()
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Decode a file again: the teacher's frames, and those of each pair's decoder, each (T, H, W, 3) uint8."""
    teacher = pairs[0].teacher
    assert teacher is not None
    latents = _raw_latents(path, teacher, pairs[0], latents_are, latents_shape, quiet)
    return _teacher_frames(teacher, latents), [student_frames(pair, latents) for pair in pairs]


def _rounded(video: Tensor) -> np.ndarray:
    check_finite([video])
    return to_uint8(video[0].float().clamp(-1, 1).cpu())


def _result(pair: Pair, teacher: Teacher, clips: list[ClipScores], gauges: Gauges, settings: EvalSettings) -> EvalResult:
    summary = summarise(clips)
    not_measured = {**gauges.not_measured, **({"rfvd": _NO_SET} if gauges.detector else {})}
    return EvalResult(
        model=pair.name,
        protocol=settings.protocol,
        frames=settings.frames,
        size=settings.size,
        stride=settings.stride,
        clips=clips,
        means=summary.means,
        intervals=summary.intervals,
        kept=summary.kept,
        worst=summary.worst,
        num_videos=summary.num_videos,
        not_measured=not_measured,
        decoder_params={"teacher": decoder_params(teacher), "student": num_params_of(pair.student)},
        weights=gauges.weights,
        reference="teacher",
        family=pair.student.family,
        licence=pair.student.licence,
    )
