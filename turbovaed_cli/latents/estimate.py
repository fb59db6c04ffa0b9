"""`cache-latents --dry-run`: the time, disk and memory that a caching job would take, from a sample of the videos."""

import time
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turbovaed_cli.files.remote import free_disk_bytes, is_url
from turbovaed_cli.files.sealed import read_sealed
from turbovaed_cli.latents.cache import ClipSource, check_manifest, committed_shards
from turbovaed_cli.latents.caching import encode_clips
from turbovaed_cli.latents.parts import KnownVideo, Shard, known_videos, num_parts, part_of
from turbovaed_cli.latents.pixels import drawn_clip, num_drawn, pixels_of
from turbovaed_cli.latents.planning import (
    PlannedVideo,
    check_cache_settings,
    made_by,
    plan_known,
    plan_video,
    settle_tiles,
    span_of,
    still_known,
)
from turbovaed_cli.machine.devices import forget_peak, num_readers, peak_mb, resolve_device, resolve_dtype, warn_of_cudnn
from turbovaed_cli.machine.threads import read_ahead
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.download import missing_bytes
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.video import VideoInfo
from turbovaed_cli.video.sources import Videos, open_videos
from turbovaed_cli.video.usable import Skipped, too_short

SAMPLE_VIDEOS = 24  # that a dry run probes
SAMPLE_BATCHES = 4  # that it encodes after the first, which is slow


@dataclass(frozen=True)
class CacheEstimate:
    """The estimated cost of a caching run, from a sample of the videos."""

    out: str
    videos: int  # of this share
    looked_into: int  # how many of them were probed
    clips: int  # to encode; exact if every video was probed
    skipped: list[Skipped]  # of the probed videos
    disk_bytes: int  # that the cache will grow by
    free_bytes: int | None  # on the disk of the cache; None for a URL
    download_bytes: int  # of weights that are not on this machine
    seconds: float | None = None  # None if weights are missing, as nothing could be timed
    peak_mb: float | None = None  # of memory: on a GPU the tensors, else the whole process
    device: str = ""


def estimate_cache(
    spec: ModelSpec,
    data: str | Path,
    out: str | Path,
    settings: CacheSettings,
    *,
    shard: Shard | None = None,
    report: Reporter = quiet,
) -> CacheEstimate:
    """Probe some videos, encode some clips, and write nothing. Raises what cache_latents would raise for the settings."""
    check_cache_settings(spec, settings)
    device, dtype = resolve_device(settings.device, report), resolve_dtype(settings.dtype)
    warn_of_cudnn(device, dtype, report)
    settings = replace(settings, workers=num_readers(device, settings.workers))
    here = not is_url(out)
    made = here and (Path(out) / "manifest.json").is_file()
    with open_videos(data, report) as videos:
        names = videos.names
        parts = (
            int(read_sealed(Path(out) / "manifest.json").get("parts", 1))
            if made
            else num_parts(len(names), shard.count if shard else 1)
        )
        if shard is not None:
            names = [name for name in names if part_of(name, parts) % shard.count == shard.index]
        sample = names[:: max(-(-len(names) // SAMPLE_VIDEOS), 1)]
        known = dict(known_videos(Path(out))) if made else {}
        committed = {clip["key"] for record in committed_shards(Path(out)) for clip in record["clips"]} if made else set()
        look = partial(_look, videos, settings, known)
        planned = [plan for _, plan in read_ahead(look, report.track(sample, "looking into videos"), settings.workers)]
        clips = _num_missing(planned, names, parts, settings, committed)
        timed: dict[str, Any] = {}
        download = missing_bytes(spec)
        if not download:
            teacher = load_teacher(spec, device=device, dtype=dtype, allows_tf32=not settings.precise)
            teacher.fast = None if settings.fast else False
            settle_tiles(teacher, Path(out), settings, report)
            if made:
                check_manifest(Path(out), made_by(teacher, settings))
            if clips:
                timed = _time_some(teacher, [plan for plan in planned if plan.info], settings, device, report)
    seconds = timed.get("seconds")
    return CacheEstimate(
        str(out), len(names), len(sample), clips,
        [Skipped(videos.shown(plan.name), reason) for plan in planned if (reason := _reason(plan, settings))],
        clips * timed.get("bytes", _bytes_of_clip(spec, settings)),
        free_disk_bytes(Path(out)) if here else None,
        download, None if seconds is None else seconds * clips, timed.get("peak_mb"), device.type,
    )  # fmt: skip


def _num_missing(
    planned: Sequence[PlannedVideo], names: Sequence[str], parts: int, settings: CacheSettings, committed: Set[str]
) -> int:
    """Return how many clips are to be encoded; exact if every video was planned, else as if all had as many clips."""
    missing = {clip.key for plan in planned for clip in plan.clips if str(clip.start) not in plan.known.failed} - committed
    num_filmed = round(len(missing) * len(names) / max(len(planned), 1))
    if not settings.synthetic:
        return num_filmed
    filmed: dict[int, float] = {}
    if len(planned) == len(names):
        keys = {(part_of(plan.name, parts), clip.key) for plan in planned for clip in plan.clips}
        filmed = dict(Counter(part for part, _ in keys))
    else:
        each = sum(len(plan.clips) for plan in planned) / len(planned)
        filmed = {part: count * each for part, count in Counter(part_of(name, parts) for name in names).items()}
    wanted = (
        drawn_clip(part, number, settings).key
        for part, count in filmed.items()
        for number in range(num_drawn(part, round(count), settings.synthetic))
    )
    return num_filmed + sum(key not in committed for key in wanted)


def _look(videos: Videos, settings: CacheSettings, known: dict[str, KnownVideo], name: str) -> PlannedVideo:
    before = still_known(known, name, settings)
    done = plan_known(videos, settings, name, before) if before is not None and before.reason else None
    return done or plan_video(videos, settings, name, before)  # known videos too: clips of theirs are timed


def _reason(plan: PlannedVideo, settings: CacheSettings) -> str:
    if plan.known.reason or plan.clips:
        return plan.known.reason
    return too_short(plan.known.frames, span_of(settings))


def _time_some(
    teacher: Any, planned: Sequence[PlannedVideo], settings: CacheSettings, device: torch.device, report: Reporter
) -> dict[str, Any]:
    """Measure seconds per clip after the first batch, while reading and encoding overlap; bytes per clip; peak memory."""
    report.note("timing some clips")
    forget_peak(device)
    clips = [(clip, plan.info) for plan in planned for clip in plan.clips if plan.info]
    wanted = (SAMPLE_BATCHES + 1) * settings.batch_size
    sample = clips[:: max(len(clips) // wanted, 1)][:wanted]

    def pixels(clip: tuple[ClipSource, VideoInfo]) -> np.ndarray | str:
        return pixels_of(*clip, settings)

    read = (frames for _, frames in read_ahead(pixels, sample, settings.workers) if not isinstance(frames, str))
    began, done, bytes_of_clip = 0.0, 0, 0
    while batch := list(islice(read, settings.batch_size)):
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            mean, std = encode_clips(teacher, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += len(batch) if began else 0
        began = began or time.perf_counter()
        bytes_of_clip = batch[0].nbytes + mean[0].nbytes + std[0].nbytes
    found = {"bytes": bytes_of_clip, "peak_mb": peak_mb(device)} if bytes_of_clip else {}
    return found | ({"seconds": (time.perf_counter() - began) / done} if done else {})


def _bytes_of_clip(spec: ModelSpec, settings: CacheSettings) -> int:
    """Return the most bytes that a clip takes: pixels as uint8, mean and std in fp32."""
    teacher, (height, width) = spec.teacher, settings.size
    latents = teacher.latent_frames(settings.frames) * (height // teacher.space_ratio) * (width // teacher.space_ratio)
    return settings.frames * height * width * 3 + 2 * 4 * teacher.latent_channels * latents
