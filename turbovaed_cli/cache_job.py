"""What is around a caching job: what it would take (`--dry-run`), how far it is (`--status`), and making one of several (`--merge`)."""

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from turbovaed_cli.cache_latents import (
    PlannedVideo,
    check_settings,
    encode_clips,
    made_by,
    num_readers,
    plan_known,
    plan_video,
    read_clip_of,
    span_of,
    still_known,
)
from turbovaed_cli.cache_parts import (
    KnownVideo,
    Shard,
    holders,
    known_videos,
    num_parts,
    part_of,
    read_listing,
    read_part,
    write_listing,
    write_part,
)
from turbovaed_cli.errors import CorruptFileError, SettingsError
from turbovaed_cli.files.locks import held
from turbovaed_cli.files.remote import free_disk_bytes, is_url
from turbovaed_cli.files.sealed import read_sealed
from turbovaed_cli.files.whole import sha256_of, whole_files, write_whole
from turbovaed_cli.latents import check_manifest, committed_shards, manifest_differences, read_shard
from turbovaed_cli.machine.devices import forget_peak, peak_mb, resolve_device, resolve_dtype, warn_of_cudnn
from turbovaed_cli.machine.threads import read_ahead
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.download import missing_bytes
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.video.sources import Videos, open_videos
from turbovaed_cli.video.usable import Skipped, too_short

SAMPLE_VIDEOS = 24  # that a dry run looks into
SAMPLE_BATCHES = 4  # that it encodes behind the first, which is slow
_WINDOW_S = 600.0  # of the speed that --status tells


@dataclass(frozen=True)
class CacheEstimate:
    """What a caching run would take, from a sample of the videos."""

    out: str
    videos: int  # of this share
    looked_into: int  # so many of them
    clips: int  # to encode; exact where every video was looked into
    skipped: list[Skipped]  # of those looked into
    disk_bytes: int  # the cache will be so much larger
    free_bytes: int | None  # where it will lie; None behind a URL
    download_bytes: int  # weights that are not here
    seconds: float | None = None  # None where the weights are not here, so that nothing could be timed
    peak_mb: float | None = None  # memory: of a GPU its tensors, else the process
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
    """Look into some videos, encode some clips, and write nothing. Raises what cache_latents would for the settings."""
    check_settings(spec, settings)
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
        missing = {clip.key for plan in planned for clip in plan.clips if str(clip.start) not in plan.known.failed} - committed
        clips = round(len(missing) * len(names) / max(len(sample), 1))
        timed: dict[str, Any] = {}
        download = missing_bytes(spec)
        if not download:
            teacher = load_teacher(spec, device=device, dtype=dtype, allows_tf32=not settings.precise)
            if made:
                check_manifest(Path(out), made_by(teacher, settings))
            if missing:
                timed = _time_some(teacher, [plan for plan in planned if plan.info], settings, device, report)
    seconds = timed.get("seconds")
    return CacheEstimate(
        str(out), len(names), len(sample), clips,
        [Skipped(videos.shown(plan.name), reason) for plan in planned if (reason := _reason(plan, settings))],
        clips * timed.get("bytes", _bytes_of_clip(spec, settings)),
        free_disk_bytes(Path(out)) if here else None,
        download, None if seconds is None else seconds * clips, timed.get("peak_mb"), device.type,
    )  # fmt: skip


def _look(videos: Videos, settings: CacheSettings, known: dict[str, KnownVideo], name: str) -> PlannedVideo:
    before = still_known(known, name, settings)
    done = plan_known(videos, settings, name, before) if before is not None and before.reason else None
    return done or plan_video(videos, settings, name, before)  # also what is known: some of it is encoded


def _reason(plan: PlannedVideo, settings: CacheSettings) -> str:
    if plan.known.reason or plan.clips:
        return plan.known.reason
    return too_short(plan.known.frames, span_of(settings))


def _time_some(
    teacher: Any, planned: Sequence[PlannedVideo], settings: CacheSettings, device: torch.device, report: Reporter
) -> dict[str, Any]:
    """Seconds per clip behind the first batch, as reading and encoding go on side by side; bytes per clip; peak memory."""
    report.note("timing some clips")
    forget_peak(device)
    clips = [(clip, plan.info) for plan in planned for clip in plan.clips if plan.info]
    wanted = (SAMPLE_BATCHES + 1) * settings.batch_size
    sample = clips[:: max(len(clips) // wanted, 1)][:wanted]
    read = (frames for _, frames in read_ahead(read_clip_of, sample, settings.workers) if not isinstance(frames, str))
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
    """Pixels as uint8, and mean and std in fp32: at most."""
    teacher, (height, width) = spec.teacher, settings.size
    latents = teacher.latent_frames(settings.frames) * (height // teacher.space_ratio) * (width // teacher.space_ratio)
    return settings.frames * height * width * 3 + 2 * 4 * teacher.latent_channels * latents


@dataclass(frozen=True)
class CacheStatus:
    """How far a cache is, as any machine that sees its folder can tell."""

    out: str
    videos: int | None  # when a worker last looked; None where no worker of this version has
    done: int  # videos that are finished, those that cannot be read among them
    clips: int
    bytes: int
    failed: list[Skipped]
    working: list[str]  # who is at it
    clips_per_s: float | None = None  # over the last ten minutes; None where nobody works, or it is too early to tell
    seconds_left: float | None = None
    parts: int = 1  # that the videos are divided into
    tf32_clips: int = 0  # of `clips`, those whose latents were computed in TF32


def cache_status(out: Path) -> CacheStatus:
    """Read it from the folder; changes nothing. Raises SettingsError where it is no cache."""
    if not (out / "manifest.json").is_file():
        raise SettingsError(f"{out} is no latent cache (no manifest.json)", "give the folder that cache-latents --out names")
    manifest = read_sealed(out / "manifest.json")
    videos = read_listing(out)
    known = dict(known_videos(out))
    failed = [Skipped(name, facts.reason) for name, facts in known.items() if facts.reason]
    failed += [
        Skipped(f"{name} (from frame {start})", why) for name, facts in known.items() for start, why in facts.failed.items()
    ]
    finished = {path.stem for path in whole_files(out / "parts", "part-*.json")}
    clips = num_bytes = of_known = tf32_clips = 0
    recent: list[tuple[float, int]] = []
    now = time.time()
    for path in whole_files(out / "shards", "*.json"):
        record = read_shard(path)
        count = len(record["clips"])
        clips, num_bytes = clips + count, num_bytes + int(record["bytes"])
        tf32_clips += count if record.get("tf32") else 0
        of_known += count if path.name[: len("part-000")] in finished else 0
        if now - path.stat().st_mtime < _WINDOW_S:
            recent.append((path.stat().st_mtime, count))
    working = holders(out)
    rate = left = None
    recent.sort()
    if working and len(recent) > 1 and now > recent[0][0]:
        rate = sum(count for _, count in recent[1:]) / (now - recent[0][0])  # clips that came behind the first of them
        if videos and known and rate:
            left = max(videos * of_known / len(known) - clips, 0.0) / rate
    parts = int(manifest.get("parts", 1))
    return CacheStatus(str(out), videos, len(known), clips, num_bytes, failed, working, rate, left, parts, tf32_clips)


@dataclass(frozen=True)
class MergeResult:
    """What merging came to."""

    out: str
    clips: int  # that the cache has now
    copied_shards: int
    found_shards: int  # that were there already


def merge_caches(sources: Sequence[Path], out: Path, report: Reporter = quiet) -> MergeResult:
    """Copy the shards of several caches, made with the same settings, into `out`; every shard is checked against its sha256.

    Raises SettingsError where one was made otherwise, CorruptFileError for a shard that changed. Running it again copies
    what is missing.
    """
    if any(map(is_url, sources)):
        raise SettingsError("--merge takes folders", "copy what lies behind the URL")
    manifests = {source: read_sealed(_manifest_of(source)) for source in sources}
    if (out / "manifest.json").is_file():
        manifests = {out: read_sealed(out / "manifest.json"), **manifests}
    (first, wanted), *others = manifests.items()
    for source, manifest in others:
        if unlike := manifest_differences(wanted, manifest):
            raise SettingsError(
                f"{source} was made with other settings than {first}: {'; '.join(unlike)}",
                "merge what was made by one command with several --shard",
            )
    if out.exists() and not (out / "manifest.json").is_file() and any(out.iterdir()):
        raise SettingsError(f"{out} holds other things and no latent cache", "give a new or empty folder as --out")
    text = _manifest_of(first).read_text(encoding="utf-8")
    write_whole(out / "manifest.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    copied = found = 0
    for record in report.track(
        [path for source in sources for path in whole_files(source / "shards", "*.json")], "copying shards"
    ):
        shard, target = record.with_name(read_shard(record)["file"]), out / "shards" / record.name
        if target.exists() and _is_whole(target):
            found += 1
            continue
        if not _is_whole(record):
            raise CorruptFileError(
                f"{shard} is missing or not what was written (sha256 differs)", f"remove {record} and run cache-latents again"
            )
        write_whole(target.with_name(shard.name), partial(shutil.copyfile, shard))
        write_whole(target, partial(shutil.copyfile, record))
        copied += 1
    _merge_records(sources, out)
    keys = {clip["key"] for record in committed_shards(out) for clip in record["clips"]}
    return MergeResult(str(out), len(keys), copied, found)


def _is_whole(record: Path) -> bool:
    """Whether the shard of a .json is what was written."""
    shard = read_shard(record)
    path = record.with_name(shard["file"])
    return path.is_file() and sha256_of(path) == shard["sha256"]


def _manifest_of(source: Path) -> Path:
    path = source / "manifest.json"
    if not path.is_file():
        raise SettingsError(f"{source} is no latent cache (no manifest.json)", "give folders that cache-latents --out names")
    return path


def _merge_records(sources: Sequence[Path], out: Path) -> None:
    """What is known of the videos, so that a run on the merged cache finds nothing to do."""
    names = sorted({path.name for source in sources for path in whole_files(source / "parts", "part-*.json")})
    for name in names:
        known: dict[str, KnownVideo] = {}
        for folder in (*sources, out):
            for video, facts in read_part(folder / "parts" / name).items():
                if video not in known or not facts.reason:  # who could read it knows more
                    known[video] = facts
        with held(out / "parts" / Path(name).with_suffix(".lock")) as other:
            if other:
                raise SettingsError(f"{out} is being worked on by {other}", "merge when it is done")
            write_part(out / "parts" / name, known)
    if listings := [count for source in sources if (count := read_listing(source)) is not None]:
        write_listing(out, max(listings))
