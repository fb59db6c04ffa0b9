"""The command `turbovaed cache-latents`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from turbovaed_cli.cli import console
from turbovaed_cli.cli.estimates import download_in_words, free_in_words, time_in_words, warn_of_room
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import Downloads, Show, TeacherChoice, check_folder, option, warn_of_old_ffmpeg
from turbovaed_cli.cli.table import print_table
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.system import check_system
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.setting import setting
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.units import human_bytes, human_span

if TYPE_CHECKING:
    from turbovaed_cli.latents.caching import CacheResult
    from turbovaed_cli.latents.parts import Shard


@dataclass(frozen=True)
class CacheTask(TeacherChoice):
    """Where clips come from and go to, and what is done with them."""

    data: str | None = setting(
        None, "A folder of videos, one video, or an fsspec URL such as s3://bucket/videos.", "Input and output", metavar="DIR"
    )
    dry_run: bool = setting(False, "Try some videos and clips and print what all would take; write nothing.", "Input and output")
    status: bool = setting(False, "Print the progress of the cache, from any machine, and do nothing else.", "Input and output")
    merge: tuple[Path, ...] = setting(
        (),
        "Copy this cache into --out, and do nothing else; repeat.",
        "Input and output",
        metavar="DIR",
        many=True,
        by_commas=False,
    )
    shard: str | None = setting(
        None, "Process shard INDEX of COUNT, such as 0/8.", "Several workers", metavar="INDEX/COUNT",
        shown="from Slurm, torchrun or Kubernetes",
    )  # fmt: skip


EXAMPLES = """\
turbovaed cache-latents --teacher ltx --data videos --out latents
turbovaed cache-latents --teacher ltx --data videos --out latents --dry-run
turbovaed cache-latents --status --out latents"""


@command
def cache_latents(
    *,
    out: Annotated[
        str,
        option("--out", "Cache folder or fsspec URL; the same command adds what is missing.", "Input and output", metavar="DIR"),
    ],
    task: CacheTask,
    settings: CacheSettings,
    downloads: Downloads,
    show: Show,
) -> None:
    """Encode clips once: posterior mean and std, and the pixels they were made from. Any number of machines at once."""
    if not task.status:
        check_system("cache-latents")
        check_folder(out, "`out`")
    if sum(map(bool, (task.status, task.merge, task.dry_run))) > 1 or (task.merge and task.data is not None):
        raise SettingsError("`status`, `merge` and `dry_run` each do one thing", "give one of them; `merge` without `data`")
    if task.status or task.merge:
        _show_cache(out, task.merge, json=show.json, report=show.report)
        return
    if task.data is None:
        raise SettingsError("`data` is missing", "give a folder of videos, or `status=True` to look at the cache")
    from turbovaed_cli.latents.caching import cache_latents as run

    warn_of_old_ffmpeg()
    share, settings = _share(task.shard, settings)
    if share is None and "://" in out:
        console.warn("nothing keeps other workers away from a URL: start one, or give each its `shard`")
    spec = find_model(task.teacher, downloads.consent)
    if task.dry_run:
        _show_estimate(spec, task.data, out, settings, share, json=show.json, report=show.report)
        return
    result = run(spec, task.data, out, settings, shard=share, consent=downloads.consent, report=show.report)
    if show.json:
        console.print_json(result)
    else:
        _show_result(result, out, task.teacher, share)
    finish(result.skipped)


def _share(shard: str | None, settings: CacheSettings) -> "tuple[Shard | None, CacheSettings]":
    """The share of this process in the videos, as --shard or its launcher gives it, and the settings with its device."""
    from turbovaed_cli.latents.parts import parse_shard, shard_from_environment
    from turbovaed_cli.machine.devices import device_of_rank

    if shard is not None:
        return parse_shard(shard), settings
    share, why = shard_from_environment(os.environ)
    if why and share is None:
        raise SettingsError(why)
    if why:
        console.note(why)
        settings = replace(settings, device=device_of_rank(settings.device, os.environ))
    return share, settings


def _show_result(result: "CacheResult", out: str, teacher: str, share: "Shard | None") -> None:
    """The table of a cache that was filled, and what comes next."""
    busy = None if result.encoder_busy is None else f"{100 * result.encoder_busy:.0f} %"
    facts = {
        "encoded": result.encoded, **({"of them drawn": result.drawn} if result.drawn else {}), "already there": result.found,
        "skipped": len(result.skipped), "encoder busy": busy, "folder": out, **({"shard": share} if share else {}),
    }  # fmt: skip
    print_table("Latent cache", list(facts), [tuple(facts.values())])
    for other in result.left_to_others:
        console.note(f"{other} is at work on the rest; turbovaed cache-latents --status --out {out} shows how far")
    if not result.left_to_others and share is None:
        console.note(f"next: turbovaed distill --teacher {teacher} --latents {out}")


def _show_cache(out: str, merge: Sequence[Path], *, json: bool, report: console.ConsoleReporter) -> None:
    """Do what `cache-latents --status` and `--merge` ask for."""
    from turbovaed_cli.latents.merge import merge_caches
    from turbovaed_cli.latents.status import cache_status

    if "://" in out:
        raise SettingsError("`status` and `merge` look at local folders", "give a folder, or copy what the URL holds")
    if merge:
        merged = merge_caches(merge, Path(out), report)
        if json:
            console.print_json(merged)
        else:
            columns = ["clips", "shards copied", "already there", "folder"]
            print_table("Merged", columns, [(merged.clips, merged.copied_shards, merged.found_shards, out)])
        return
    found = cache_status(Path(out))
    if json:
        console.print_json(found)
        return
    share = f" of {found.videos}, {100 * found.done / found.videos:.1f} %" if found.videos else ""
    rows = [
        ("videos", f"{found.done}{share}"),
        ("clips", f"{found.clips}, {human_bytes(found.bytes)}"),
        ("at work", "; ".join(found.working) or "none"),
    ]
    if found.drawn_clips:
        rows.append(("drawn", f"{found.drawn_clips} of {found.clips} clips"))
    if found.tf32_clips:
        rows.append(("in TF32", f"{found.tf32_clips} of {found.clips} clips"))
    if found.clips_per_s is not None:
        rows.append(("speed", f"{found.clips_per_s:.3g} clips/s over the last ten minutes"))
    if found.seconds_left is not None:
        rows.append(("left", human_span(found.seconds_left)))
    print_table(f"Latent cache {out}", ["", ""], rows)
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
    """Print what `cache-latents --dry-run` found."""
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
        print_table("It would take", ["", ""], rows)
        warn_of_room(found, out)
    finish(found.skipped)
