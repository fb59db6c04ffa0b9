"""`turbovaed cache-latents`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.estimates import download_in_words, free_in_words, time_in_words, warn_of_room
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import (
    PRECISE_HELP,
    Device,
    Frames,
    Hdr,
    Json,
    Quiet,
    Size,
    Teacher,
    Verbose,
    Yes,
    check_folder,
    consent_of,
    reporter_of,
    warn_of_old_ffmpeg,
)
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.system import check_system
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import DEFAULT_MODEL
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import CacheSettings, check_device, check_dtype
from turbovaed_cli.units import format_size, human_bytes, human_span, parse_size

if TYPE_CHECKING:
    from turbovaed_cli.latents.parts import Shard


@command
def cache_latents(
    out: Annotated[str, typer.Option("--out", help="The cache folder, or an fsspec URL; running again adds what is missing.")],
    data: Annotated[
        str | None, typer.Option("--data", help="A folder of videos, one video, or an fsspec URL such as s3://bucket/videos.")
    ] = None,
    teacher: Teacher = DEFAULT_MODEL,
    frames: Frames = CacheSettings.frames,
    size: Size = format_size(CacheSettings.size),
    stride: Annotated[int, typer.Option("--stride", help="Take every n-th frame.")] = CacheSettings.stride,
    hdr: Hdr = CacheSettings.hdr,
    clips_per_video: Annotated[
        int, typer.Option("--clips-per-video", help="At most this many, evenly spread; 0 takes all that fit.")
    ] = CacheSettings.clips_per_video,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Clips encoded at once.")] = CacheSettings.batch_size,
    shard_mb: Annotated[int, typer.Option("--shard-mb", help="Size at which a shard is closed.")] = CacheSettings.shard_mb,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="fp32, bf16 or fp16; bf16 moves latents by 5 % on the embedded teacher, others not measured."
        ),
    ] = CacheSettings.dtype,
    precise: Annotated[bool, typer.Option("--precise", help=PRECISE_HELP)] = CacheSettings.precise,
    device: Device = CacheSettings.device,
    workers: Annotated[
        int,
        typer.Option("--workers", help="Videos read ahead of the encoder; 0 takes two, on CUDA one per core, up to eight."),
    ] = CacheSettings.workers,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", help="Take the share INDEX/COUNT, from 0/COUNT on. Default: as Slurm, torchrun or Kubernetes say."
        ),
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option("--max-failures", help="End with 4 when more videos and clips than this cannot be read.")
    ] = CacheSettings.max_failures,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Look again at what could not be read before.")
    ] = CacheSettings.retry_failed,
    status: Annotated[
        bool, typer.Option("--status", help="Show how far the cache is, from any machine, and do nothing.")
    ] = False,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", help="Copy this cache into --out, and do nothing else; repeat.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look into some videos, time some clips, say what it would take, write nothing.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode clips once: posterior mean and std, and the pixels they were made from. Any number of machines at once."""
    check_dtype(dtype)
    check_device(device)
    if not status:
        check_system("cache-latents")
        check_folder(out, "--out")
    from turbovaed_cli.latents.caching import cache_latents as run
    from turbovaed_cli.latents.parts import parse_shard, shard_from_environment
    from turbovaed_cli.machine.devices import device_of_rank

    if sum(map(bool, (status, merge, dry_run))) > 1 or (merge and data is not None):
        raise SettingsError("--status, --merge and --dry-run each do one thing", "give one of them; --merge without --data")
    if status or merge:
        _show_cache(out, merge or [], json=json, report=reporter_of(quiet, verbose))
        return
    if data is None:
        raise SettingsError("--data is missing", "give a folder of videos, or --status to look at the cache")
    warn_of_old_ffmpeg()
    share, why = (parse_shard(shard), "") if shard is not None else shard_from_environment(os.environ)
    if why and share is None:
        raise SettingsError(why)
    if why:
        console.note(why)
        device = device_of_rank(device, os.environ)
    if share is None and "://" in out:
        console.warn("nothing keeps other workers away behind a URL: start one, or give each its --shard")
    settings = CacheSettings(
        frames,
        parse_size(size),
        stride,
        clips_per_video,
        batch_size,
        shard_mb,
        dtype,
        device,
        workers,
        max_failures,
        retry_failed,
        hdr=hdr,
        precise=precise,
    )
    report = reporter_of(quiet, verbose)
    if dry_run:
        _show_estimate(find_model(teacher), data, out, settings, share, json=json, report=report)
        return
    result = run(find_model(teacher), data, out, settings, shard=share, consent=consent_of(yes), report=report)
    if json:
        console.print_json(result)
    else:
        busy = None if result.encoder_busy is None else f"{100 * result.encoder_busy:.0f} %"
        console.print_table(
            "Latent cache",
            ["encoded", "already there", "skipped", "encoder busy", "folder", *(["shard"] if share else [])],
            [(result.encoded, result.found, len(result.skipped), busy, out, *([share] if share else []))],
        )
        for other in result.left_to_others:
            console.note(f"{other} is at work on the rest; turbovaed cache-latents --status --out {out} shows how far")
        if not result.left_to_others and share is None:
            console.note(f"next: turbovaed distill --teacher {teacher} --latents {out}")
    finish(result.skipped)


def _show_cache(out: str, merge: Sequence[Path], *, json: bool, report: console.ConsoleReporter) -> None:
    """`cache-latents --status` and `--merge`."""
    from turbovaed_cli.latents.merge import merge_caches
    from turbovaed_cli.latents.status import cache_status

    if "://" in out:
        raise SettingsError("--status and --merge look at local folders", "give a folder, or copy what lies behind the URL")
    if merge:
        merged = merge_caches(merge, Path(out), report)
        if json:
            console.print_json(merged)
        else:
            columns = ["clips", "shards copied", "already there", "folder"]
            console.print_table("Merged", columns, [(merged.clips, merged.copied_shards, merged.found_shards, out)])
        return
    found = cache_status(Path(out))
    if json:
        console.print_json(found)
        return
    share = f" of {found.videos}, {100 * found.done / found.videos:.1f} %" if found.videos else ""
    rows = [
        ("videos", f"{found.done}{share}"),
        ("clips", f"{found.clips}, {human_bytes(found.bytes)}"),
        ("at work", "; ".join(found.working) or "nobody"),
    ]
    if found.tf32_clips:
        rows.append(("in TF32", f"{found.tf32_clips} of {found.clips} clips"))
    if found.clips_per_s is not None:
        rows.append(("speed", f"{found.clips_per_s:.3g} clips/s over the last ten minutes"))
    if found.seconds_left is not None:
        rows.append(("left", human_span(found.seconds_left)))
    console.print_table(f"Latent cache {out}", ["", ""], rows)
    for item in found.failed:
        console.warn(f"failed: {item.path}: {item.reason}")
    if found.failed:
        console.note("the same command with --retry-failed looks at them again")


def _show_estimate(
    spec: ModelSpec,
    data: str,
    out: str,
    settings: CacheSettings,
    shard: "Shard | None",
    *,
    json: bool,
    report: console.ConsoleReporter,
) -> None:
    """`cache-latents --dry-run`."""
    from turbovaed_cli.latents.estimate import estimate_cache

    found = estimate_cache(spec, data, out, settings, shard=shard, report=report)
    if json:
        console.print_json(found)
    else:
        about = "" if found.looked_into == found.videos else "about "
        rows = [
            ("videos", f"{found.videos}, {found.looked_into} of them looked into"),
            ("clips to encode", f"{about}{found.clips}"),
            ("disk", f"{about}{human_bytes(found.disk_bytes)}{free_in_words(found)}"),
            ("time", time_in_words(found)),
            ("memory", f"{found.peak_mb:.0f} MB" if found.peak_mb else "not measured"),
            ("download", download_in_words(found)),
        ]
        console.print_table("It would take", ["", ""], rows)
        warn_of_room(found, out)
    finish(found.skipped)
