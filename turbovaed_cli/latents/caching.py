"""`cache-latents`: encode clips once, so that no later distillation step runs the encoder.

Worker threads probe videos and read them ahead, the main thread encodes, and another one writes, so that the encoder never
waits. Memory holds only the videos in work, however many there are; the records of finished ones are in the cache (parts.py).
"""

import time
from collections.abc import Generator, Iterator, Sequence, Set
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from turbovaed_cli.errors import CheckFailedError, SettingsError
from turbovaed_cli.latents.cache import ClipSource, open_cache
from turbovaed_cli.latents.parts import KnownVideo, Part, Shard, claim, num_parts, part_of, write_listing
from turbovaed_cli.latents.pixels import drawn_clip, is_drawn, num_drawn, pixels_of
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
from turbovaed_cli.latents.writer import CacheWriter
from turbovaed_cli.machine.devices import num_readers, resolve_device, resolve_dtype, warn_of_cudnn
from turbovaed_cli.machine.threads import Background, read_ahead
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.video import VideoInfo, as_text, notes_on, to_model
from turbovaed_cli.video.sources import Videos, open_videos
from turbovaed_cli.video.usable import Skipped, no_usable_video, too_short


@dataclass(frozen=True)
class CacheResult:
    """The result of a caching run."""

    out: str
    encoded: int  # clips encoded by this run
    found: int  # clips that were there already
    skipped: list[Skipped]  # videos and clips that could not be read, by this run or one before
    encoder_busy: float | None = None  # share of the time after the first batch; None if fewer than two were encoded
    shard: str | None = None  # this run's share of the videos, "3/8"
    left_to_others: list[str] = field(default_factory=list)  # the workers that held the parts this run skipped
    drawn: int = 0  # of `encoded`, the clips that were drawn


def cache_latents(
    spec: ModelSpec,
    data: str | Path,
    out: str | Path,
    settings: CacheSettings = CacheSettings(),
    *,
    shard: Shard | None = None,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> CacheResult:
    """Encode clips of every video under `data` with `spec`'s teacher into the cache folder `out`; both may be fsspec URLs.

    Running it again encodes only what is missing. Several processes may run at once: each part of the videos is held by one
    live process at a time. `shard` takes a fixed share of the parts. An unreadable video is listed with its reason, and the
    run goes on until there are more than `settings.max_failures`. Raises ShapeError or FrameCountError for clips that the
    teacher would silently change, SettingsError if `out` was made with other settings or no video can be used, and
    CheckFailedError for too many failures.
    """
    check_cache_settings(spec, settings)
    device, dtype = resolve_device(settings.device, report), resolve_dtype(settings.dtype)
    warn_of_cudnn(device, dtype, report)
    settings = replace(settings, workers=num_readers(device, settings.workers))
    with open_videos(data, report) as videos, open_cache(out) as (folder, pushed):
        teacher = load_teacher(spec, device=device, dtype=dtype, allows_tf32=not settings.precise, consent=consent)
        teacher.fast = None if settings.fast else False
        settle_tiles(teacher, folder, settings, report)
        parts = num_parts(len(videos.names), shard.count if shard else 1)
        writer = CacheWriter(folder, made_by(teacher, settings), settings.shard_mb, parts, pushed, tf32=teacher.uses_tf32)
        write_listing(folder, len(videos.names))
        return _CachingRun(videos, writer, settings, shard, report).run(teacher, device, str(out))


@dataclass(frozen=True)
class _Clip:
    """A clip to be read and encoded."""

    part: Part
    name: str
    source: ClipSource
    info: VideoInfo | None = None  # None: it is drawn


@dataclass(frozen=True)
class _Seen:
    """The marker after the last clip of a video."""

    part: Part
    video: PlannedVideo


@dataclass(frozen=True)
class _End:
    """The marker after the last video of a part."""

    part: Part


class _CachingRun:
    """One process's run over its share of the videos."""

    def __init__(
        self, videos: Videos, writer: CacheWriter, settings: CacheSettings, shard: Shard | None, report: Reporter
    ) -> None:
        self.videos, self.writer, self.settings, self.report, self.shard = videos, writer, settings, report, shard
        if shard is not None and shard.count > writer.parts:
            raise SettingsError(
                f"{writer.root} is divided into {writer.parts} parts, which are too few for {shard.count} shares",
                f"`shard` with {writer.parts} shares at most, or a new folder as `out`",
            )
        self.names: dict[int, list[str]] = {
            number: [] for number in range(writer.parts) if shard is None or number % shard.count == shard.index
        }
        for name in videos.names:
            if (number := part_of(name, writer.parts)) in self.names:
                self.names[number].append(name)
        self.total = sum(map(len, self.names.values()))
        self.claimed: list[Part] = []
        self.others: dict[int, str] = {}  # the holders of the parts that this run could not claim
        self.encoded = self.found = self.drawn = 0
        self.skipped: list[Skipped] = []
        self.shown: list[VideoInfo] = []  # videos of which reading changes something

    def run(self, teacher: Teacher, device: torch.device, out: str) -> CacheResult:
        """Cache every part, from the first to the last."""
        busy = BusyClock()
        with ExitStack() as on_the_way_out:
            on_the_way_out.callback(self._give_back)
            write = on_the_way_out.enter_context(Background(partial(self._write, busy)))
            for batch in self._batches():
                if isinstance(batch, _End):
                    write(batch)
                    continue
                with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # events are recorded there
                    write(_encode(teacher, batch))
                self.encoded += len(batch)
                self.drawn += sum(is_drawn(clip.source.video_sha256) for clip in batch)
        if self.found:
            self.report.note(f"{self.found} clips were cached already")
        for note in notes_on(self.shown):
            self.report.note(note)
        if self.total and not self.encoded and not self.found and len(self.skipped) >= self.total:
            raise no_usable_video(self.skipped)
        return CacheResult(
            out, self.encoded, self.found, self.skipped, busy.share, str(self.shard) if self.shard else None,
            list(dict.fromkeys(self.others.values())), self.drawn,
        )  # fmt: skip

    def _parts(self) -> Iterator[Part]:
        """Claim the free parts one by one. Taken parts are tried again at the end, as their holder may have finished or died."""
        for numbers in (sorted(self.names), self.others):
            for number in list(numbers):
                part = claim(self.writer.root, number)
                if isinstance(part, str):
                    self.others[number] = part
                    continue
                self.others.pop(number, None)
                self.claimed.append(part)
                part.forget_all_but(list(map(as_text, self.names[number])))
                yield part

    def _stream(self) -> Iterator[_Clip | _Seen | _End]:
        """Yield all the work in order, with markers; videos are probed ahead."""
        for part in self._parts():
            committed = self.writer.committed(part.number)
            drawn = 0
            queued: set[str] = set()  # the same bytes under two names are one clip
            for _, video in read_ahead(
                self._look, self._named(part, committed), self.settings.workers, is_quick=lambda named: named[2] is not None
            ):
                for clip in video.clips:
                    if clip.key in committed:
                        self.found += clip.key not in queued
                    elif clip.key not in queued and str(clip.start) not in video.known.failed:
                        assert video.info is not None
                        yield _Clip(part, video.name, clip, video.info)
                    queued.add(clip.key)
                while drawn < num_drawn(part.number, len(queued), self.settings.synthetic):
                    clip = drawn_clip(part.number, drawn, self.settings)
                    drawn += 1
                    if clip.key in committed:
                        self.found += 1
                    else:
                        yield _Clip(part, clip.path, clip)
                yield _Seen(part, video)
            yield _End(part)

    def _named(self, part: Part, committed: Set[str]) -> Iterator[tuple[str, KnownVideo | None, PlannedVideo | None]]:
        """Yield (name, known facts, plan) for the videos of a part. The plan is None if some of the video is still missing."""
        for name in self.names[part.number]:
            known = still_known(part.before, name, self.settings)
            plan = plan_known(self.videos, self.settings, name, known)
            if plan and any(clip.key not in committed and str(clip.start) not in plan.known.failed for clip in plan.clips):
                plan = None
            yield name, known, plan

    def _look(self, named: tuple[str, KnownVideo | None, PlannedVideo | None]) -> PlannedVideo:
        name, known, plan = named
        return plan or plan_video(self.videos, self.settings, name, known)

    def _batches(self) -> Iterator["list[_Frames] | _End"]:
        """Yield readable clips in batches within one part, and the markers of parts that end. Other clips go to `skipped`."""
        progress = self.report.track(range(self.total), "caching videos", total=self.total)
        batch: list[_Frames] = []
        failed: dict[str, dict[str, str]] = {}
        try:
            for item, frames in read_ahead(
                self._read, self._stream(), self.settings.workers, is_quick=lambda item: not isinstance(item, _Clip)
            ):
                if isinstance(item, _Clip):
                    if isinstance(frames, str):
                        failed.setdefault(item.name, {})[str(item.source.start)] = frames
                    elif frames is not None:
                        batch.append(_Frames(item.part, item.source, frames))
                    if len(batch) == self.settings.batch_size:
                        yield batch
                        batch = []
                elif isinstance(item, _Seen):
                    self._done_with(item, failed.pop(item.video.name, {}))
                    next(progress, None)
                else:
                    if batch:
                        yield batch
                        batch = []
                    yield item
        finally:
            if isinstance(progress, Generator):
                progress.close()

    def _read(self, item: _Clip | _Seen | _End) -> np.ndarray | str | None:
        """Return the frames of a clip, or the reason why it cannot be read; None for a marker."""
        return pixels_of(item.source, item.info, self.settings) if isinstance(item, _Clip) else None

    def _done_with(self, item: _Seen, failed: dict[str, str]) -> None:
        """Record a video and its unreadable clips. Raises CheckFailedError if there are too many failures."""
        known = item.video.known
        if item.video.info is not None and item.video.info.notes:
            self.shown.append(item.video.info)
        for start, reason in failed.items():
            known = known.with_failed(int(start), reason)
        item.part.videos[as_text(item.video.name)] = known  # as_text: a name that JSON can hold
        self.videos.drop(item.video.name)
        frames = span_of(self.settings)
        if not known.reason and not known.failed and known.frames >= frames:
            return
        shown = self.videos.shown(item.video.name)
        if known.reason:
            self.skipped.append(Skipped(shown, known.reason))
        elif known.frames < frames:
            self.skipped.append(Skipped(shown, too_short(known.frames, frames)))
        for start, reason in known.failed.items():
            self.skipped.append(Skipped(f"{shown} (frames {start} to {int(start) + frames - 1})", reason))
        if self.settings.max_failures is not None and len(self.skipped) > self.settings.max_failures:
            last = self.skipped[-1]
            raise CheckFailedError(
                f"{len(self.skipped)} inputs failed, `max_failures` is {self.settings.max_failures}; the last: {last.path}: {last.reason}",
                "what was encoded is kept; repair or remove them, then run the same command with `retry_failed`",
            )

    def _write(self, busy: "BusyClock", item: "_Encoded | _End") -> None:
        if isinstance(item, _End):
            self.writer.commit()
            item.part.close()
            self.claimed.remove(item.part)
            return
        if isinstance(item.began, torch.cuda.Event) and isinstance(item.ended, torch.cuda.Event):
            item.ended.synchronize()
            busy.add(item.began.elapsed_time(item.ended) / 1000, time.perf_counter())
        elif isinstance(item.began, float) and isinstance(item.ended, float):
            busy.add(item.ended - item.began, item.ended)
        self.writer.add_all(
            [
                # LTX has one variance for all channels, Video DC-AE none
                (clip.source, mean, std[:1] if bool((std == std[:1]).all()) else std, torch.from_numpy(clip.frames))
                for clip, mean, std in zip(item.clips, item.mean, item.std, strict=True)
            ],
            item.clips[0].part.number,
        )

    def _give_back(self) -> None:
        """Commit what is encoded and free the parts, also after an error."""
        with ExitStack() as each:
            for part in self.claimed:
                each.callback(part.close)
            self.writer.commit()


@dataclass(frozen=True)
class _Frames:
    """A clip that was read: (T, H, W, 3) uint8."""

    part: Part
    source: ClipSource
    frames: np.ndarray


@dataclass(frozen=True)
class _Encoded:
    """An encoded batch: its clips, their posteriors on the CPU, and when the encoder began and ended.

    On CUDA these values are valid only after `ended` has happened; the writer waits for it.
    """

    clips: list[_Frames]
    mean: Tensor  # (B, C, t, h, w) fp32
    std: Tensor
    began: float | torch.cuda.Event  # seconds, or an event in the stream
    ended: float | torch.cuda.Event


def _encode(teacher: Teacher, clips: list[_Frames]) -> _Encoded:
    on_cuda = teacher.device.type == "cuda"
    began = _now(on_cuda=on_cuda)
    mean, std = encode_clips(teacher, [clip.frames for clip in clips])
    return _Encoded(clips, mean, std, began, _now(on_cuda=on_cuda))


def encode_clips(teacher: Teacher, clips: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return mean and std (B, C, t, h, w), fp32 on the CPU, of clips (T, H, W, 3) uint8.

    On CUDA the copies are asynchronous, so that the next batch is encoded meanwhile: synchronise before reading them.
    """
    posterior = teacher.encode(torch.stack([to_model(clip, teacher.device) for clip in clips]))
    return _to_cpu(posterior.mean.float()), _to_cpu(posterior.std.float())


def _now(*, on_cuda: bool) -> float | torch.cuda.Event:
    if not on_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _to_cpu(value: Tensor) -> Tensor:
    """Copy to the CPU; from CUDA into pinned memory, without waiting."""
    if value.device.type != "cuda":
        return value.cpu()
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


class BusyClock:
    """Measures the busy share of the time, from the end of the first piece of work (the warm-up) to the end of the last."""

    def __init__(self) -> None:
        self._first = self._last = self._busy = 0.0
        self._pieces = 0

    def add(self, seconds: float, ended: float) -> None:
        """Add a piece of work that took `seconds` and ended at `ended`, a time in seconds."""
        if self._pieces == 0:
            self._first = ended
        else:
            self._busy += seconds
        self._last = ended
        self._pieces += 1

    @property
    def share(self) -> float | None:
        """The busy share, 0 to 1; None if there were fewer than two pieces."""
        return min(self._busy / (self._last - self._first), 1.0) if self._last > self._first else None
