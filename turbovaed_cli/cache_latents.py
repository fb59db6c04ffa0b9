"""`cache-latents`: encode clips once, so that every later distillation step pays for no encoder.

Threads read videos ahead, this one encodes, another one writes: the encoder waits for neither.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from turbovaed_cli.background import Background
from turbovaed_cli.devices import resolve_device, resolve_dtype
from turbovaed_cli.errors import SettingsError, VideoError
from turbovaed_cli.latents import CacheWriter, ClipSource
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry import ModelSpec
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.rundir import sha256_of
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.training.data import Skipped, read_ahead, usable_videos
from turbovaed_cli.video import VideoInfo, read_clip_uint8, to_model
from turbovaed_cli.weights import Consent, no_consent


@dataclass(frozen=True)
class CacheResult:
    """What a caching run came to."""

    out: Path
    encoded: int  # clips encoded by this run
    found: int  # clips that were there already
    skipped: list[Skipped]  # videos and clips that could not be read
    encoder_busy: float | None = None  # share of the time behind the first batch; None where fewer than two were encoded


def cache_latents(
    spec: ModelSpec,
    data: Path,
    out: Path,
    settings: CacheSettings = CacheSettings(),  # noqa: B008 - frozen
    *,
    dry_run: bool = False,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> CacheResult:
    """Encode clips of every video under `data` with `spec`'s teacher into the cache folder `out`.

    Running it again encodes only what is missing. An unreadable video is listed with its reason and the rest goes on.
    `dry_run` plans and counts (`encoded` is what would be) and writes nothing. Raises ShapeError or FrameCountError
    for clips the teacher would silently change, SettingsError where `out` was made otherwise.
    """
    _check_settings(settings)
    spec.teacher.check_frames(settings.frames)
    spec.teacher.check_size(*settings.size)
    device, dtype = resolve_device(settings.device), resolve_dtype(settings.dtype)
    teacher = load_teacher(spec, device=device, dtype=dtype, consent=consent)
    videos, skipped = usable_videos(data, _span(settings), report)
    clips = _unique([clip for info in report.track(videos, "planning clips") for clip in plan_clips(info, settings)])
    if dry_run:
        return CacheResult(out, len(clips), 0, skipped)

    made_by = {
        "teacher": teacher.identity(),
        "clip": {"frames": settings.frames, "size": list(settings.size), "stride": settings.stride},
        "dtype": settings.dtype,
    }
    with CacheWriter(out, made_by, settings.shard_mb) as writer:
        missing = [clip for clip in clips if clip.key not in writer.committed]
        found = len(clips) - len(missing)
        if found:
            report.note(f"{found} of {len(clips)} clips are cached already")
        encoded, busy = 0, BusyClock()
        read = read_ahead(partial(_read_or_reason, {str(info.path): info for info in videos}), missing, settings.workers)
        with Background(partial(_write, writer, busy)) as write:
            for batch in _in_batches(report.track(read, "encoding clips", total=len(missing)), settings.batch_size, skipped):
                with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # events are recorded there
                    write(_encode(teacher, batch))
                encoded += len(batch)
    return CacheResult(out, encoded, found, skipped, busy.share)


def plan_clips(info: VideoInfo, settings: CacheSettings) -> list[ClipSource]:
    """The clips of one video: as many as fit without overlap, or `clips_per_video` spread evenly."""
    span = _span(settings)
    last = info.num_frames - span
    starts = list(range(0, last + 1, span))
    if 0 < settings.clips_per_video < len(starts):
        starts = sorted({round(i * last / max(settings.clips_per_video - 1, 1)) for i in range(settings.clips_per_video)})
    digest = sha256_of(info.path)
    return [ClipSource(str(info.path), digest, start, settings.frames, settings.stride, settings.size) for start in starts]


def _span(settings: CacheSettings) -> int:
    return (settings.frames - 1) * settings.stride + 1


def _unique(clips: Sequence[ClipSource]) -> list[ClipSource]:
    """The same bytes under two names are one clip."""
    return list({clip.key: clip for clip in clips}.values())


def _read_or_reason(infos: Mapping[str, VideoInfo], clip: ClipSource) -> np.ndarray | str:
    try:
        return read_clip_uint8(infos[clip.path], clip.frames, clip.size, start=clip.start, stride=clip.stride)
    except VideoError as error:
        return error.what


def _in_batches(
    clips: Iterator[tuple[ClipSource, np.ndarray | str]], batch_size: int, skipped: list[Skipped]
) -> Iterator[list[tuple[ClipSource, np.ndarray]]]:
    """Group the clips that could be read; the others go to `skipped`."""
    batch: list[tuple[ClipSource, np.ndarray]] = []
    for clip, frames in clips:
        if isinstance(frames, str):
            skipped.append(
                Skipped(f"{clip.path} (frames {clip.start} to {clip.start + (clip.frames - 1) * clip.stride})", frames)
            )
            continue
        batch.append((clip, frames))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class _Encoded:
    """A batch behind the encoder: its clips, their posteriors on the CPU, and when the encoder began and ended.

    On CUDA all of that is so only once `ended` has happened, which is for the writer to wait for.
    """

    clips: list[tuple[ClipSource, np.ndarray]]
    mean: Tensor  # (B, C, t, h, w) fp32
    std: Tensor
    began: float | torch.cuda.Event  # seconds, or where in the stream
    ended: float | torch.cuda.Event


def _encode(teacher: Teacher, clips: list[tuple[ClipSource, np.ndarray]]) -> _Encoded:
    frames = torch.stack([torch.from_numpy(frames) for _, frames in clips])  # (B, T, H, W, 3) uint8: the least to bring over
    if on_cuda := teacher.device.type == "cuda":
        frames = frames.pin_memory().to(teacher.device, non_blocking=True)
    began = _now(on_cuda=on_cuda)
    posterior = teacher.encode(torch.stack([to_model(clip) for clip in frames]))
    mean, std = (_to_cpu(value.float()) for value in (posterior.mean, posterior.std))
    return _Encoded(clips, mean, std, began, _now(on_cuda=on_cuda))


def _now(*, on_cuda: bool) -> float | torch.cuda.Event:
    if not on_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _to_cpu(value: Tensor) -> Tensor:
    """On CUDA into pinned memory, and not waited for."""
    if value.device.type != "cuda":
        return value.cpu()
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


def _write(writer: CacheWriter, busy: "BusyClock", batch: _Encoded) -> None:
    if isinstance(batch.began, torch.cuda.Event) and isinstance(batch.ended, torch.cuda.Event):
        batch.ended.synchronize()
        busy.add(batch.began.elapsed_time(batch.ended) / 1000, time.perf_counter())
    elif isinstance(batch.began, float) and isinstance(batch.ended, float):
        busy.add(batch.ended - batch.began, batch.ended)
    for (clip, frames), mean, std in zip(batch.clips, batch.mean, batch.std, strict=True):
        shared = bool((std == std[:1]).all())  # LTX has one variance for all channels, Video DC-AE none
        writer.add(clip, mean, std[:1] if shared else std, torch.from_numpy(frames))


class BusyClock:
    """What share of the time something was at work once warm: from the end of its first piece of work to that of its last."""

    def __init__(self) -> None:
        self._first = self._last = self._busy = 0.0
        self._pieces = 0

    def add(self, seconds: float, ended: float) -> None:
        """A piece of work took `seconds` and ended at `ended`, a time in seconds."""
        if self._pieces == 0:
            self._first = ended
        else:
            self._busy += seconds
        self._last = ended
        self._pieces += 1

    @property
    def share(self) -> float | None:
        """0 to 1; None where there were fewer than two pieces."""
        return min(self._busy / (self._last - self._first), 1.0) if self._last > self._first else None


def _check_settings(settings: CacheSettings) -> None:
    for name in ("frames", "stride", "batch_size", "shard_mb"):
        if getattr(settings, name) < 1:
            raise SettingsError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")
    if settings.clips_per_video < 0:
        raise SettingsError(f"--clips-per-video is {settings.clips_per_video}; 0 takes all")
