"""`eval`: how close a student comes to its source, beside its teacher on the same clips."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from turbovaed_cli.cache_latents import plan_clips
from turbovaed_cli.devices import resolve_device
from turbovaed_cli.errors import MissingWeightsError, SettingsError, UnavailableError, VideoError
from turbovaed_cli.metrics import METRICS, load_lpips, lpips_video
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.windows import reconstruct_window
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import CacheSettings, EvalSettings
from turbovaed_cli.training.data import Skipped, usable_videos
from turbovaed_cli.video import read_clip_uint8, to_model, to_uint8

Scores = dict[str, float]
Measure = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class ClipScores:
    """One clip: which, and what teacher and student score on it."""

    path: str
    start: int
    teacher: Scores
    student: Scores


@dataclass(frozen=True)
class EvalResult:
    """Scores per clip and their means; `ratio` is student / teacher, as printed."""

    model: str
    protocol: str
    frames: int
    size: tuple[int, int]
    clips: list[ClipScores]
    means: dict[str, Scores]
    not_measured: dict[str, str]
    skipped: list[Skipped] = field(default_factory=list)


def evaluate(
    pair: Pair,
    data: Path,
    settings: EvalSettings = EvalSettings(),  # noqa: B008 - frozen
    *,
    report: Reporter = quiet,
) -> EvalResult:
    """Measure teacher and student against the source on clips of every video under `data`.

    Both decode the same posterior mean; both are rounded to 8 bits, which is what `reconstruct` hands to the video
    encoder. PSNR and SSIM have a fixed range, per clip, then the mean over clips; LPIPS (Alex) joins when its weights
    are there, and is listed in `not_measured` with the reason when not.
    """
    _check_settings(settings)
    if settings.protocol == "paper":
        raise UnavailableError(f"--protocol {settings.protocol} is not built yet", "--protocol standard: fixed range, per clip")
    assert pair.teacher is not None
    spec = pair.teacher.spec
    spec.check_frames(settings.frames)
    spec.check_size(*settings.size)
    measures, not_measured = available_measures(resolve_device(settings.device))
    videos, skipped = usable_videos(data, (settings.frames - 1) * settings.stride + 1, report)
    cut = CacheSettings(settings.frames, settings.size, settings.stride, settings.clips_per_video)
    planned = [
        clip
        for info in videos
        for clip in (plan_clips(info, cut)[:1] if settings.clips_per_video == 1 else plan_clips(info, cut))
    ]
    infos = {str(info.path): info for info in videos}
    clips = []
    for clip in report.track(planned, "evaluating"):
        try:
            frames = read_clip_uint8(infos[clip.path], clip.frames, clip.size, start=clip.start, stride=clip.stride)
        except VideoError as error:
            skipped.append(Skipped(clip.path, error.what))
            continue
        source = to_model(frames)
        decoded = reconstruct_window(frames, pair.teacher, pair.student, with_teacher=True)
        teacher, student = (_score(to_model(to_uint8(video)), source, measures) for video in decoded)
        clips.append(ClipScores(clip.path, clip.start, teacher, student))
        report.note(psnr=student["psnr"])
    if not clips:
        raise SettingsError(f"no clip under {data} could be evaluated", "; ".join(item.reason for item in skipped[:3]))
    return EvalResult(pair.name, settings.protocol, settings.frames, settings.size, clips, _means(clips), not_measured, skipped)


def _check_settings(settings: EvalSettings) -> None:
    if settings.protocol not in ("standard", "paper"):
        raise SettingsError(f"--protocol {settings.protocol} is unknown", "one of: standard, paper")
    if settings.stride < 1 or settings.clips_per_video < 0:
        raise SettingsError("--stride must be at least 1, --clips-per-video at least 0")


def available_measures(device: torch.device) -> tuple[dict[str, Measure], dict[str, str]]:
    """What can be measured on this machine, and why the rest can not."""
    measures: dict[str, Measure] = {name: metric.measure for name, metric in METRICS.items()}
    not_measured = {}
    try:
        network = load_lpips("alex").to(device)
        measures["lpips"] = lambda video, source: lpips_video(network, video.to(device), source.to(device))
    except MissingWeightsError as error:
        not_measured["lpips"] = f"{error.what} ({error.hint})"
    return measures, not_measured


def _score(video: Tensor, source: Tensor, measures: Mapping[str, Measure]) -> Scores:
    return {name: measure(video, source) for name, measure in measures.items()}


def _means(clips: Sequence[ClipScores]) -> dict[str, Scores]:
    names = clips[0].student
    teacher = {name: fmean(clip.teacher[name] for clip in clips) for name in names}
    student = {name: fmean(clip.student[name] for clip in clips) for name in names}
    ratio = {name: student[name] / teacher[name] if teacher[name] else math.nan for name in names}
    return {"teacher": teacher, "student": student, "ratio": ratio}


def as_document(result: EvalResult) -> dict[str, Any]:
    """The JSON document of `eval --json` and of eval/*.json in a run folder."""
    return {
        "schema_version": 1,
        "model": result.model,
        "protocol": result.protocol,
        "frames": result.frames,
        "size": list(result.size),
        "means": result.means,
        "clips": [{"path": c.path, "start": c.start, "teacher": c.teacher, "student": c.student} for c in result.clips],
        "not_measured": result.not_measured,
        "skipped": [{"path": s.path, "reason": s.reason} for s in result.skipped],
    }
