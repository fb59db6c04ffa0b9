"""`cache-latents --merge`: make one cache of several."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from turbovaed_cli.errors import CorruptFileError, SettingsError
from turbovaed_cli.files.locks import hold_lock
from turbovaed_cli.files.remote import is_url
from turbovaed_cli.files.sealed import read_sealed
from turbovaed_cli.files.whole import sha256_of, whole_files, write_whole
from turbovaed_cli.latents.cache import committed_shards, manifest_differences, read_shard
from turbovaed_cli.latents.parts import KnownVideo, read_listing, read_part, write_listing, write_part
from turbovaed_cli.reporting import Reporter, quiet


@dataclass(frozen=True)
class MergeResult:
    """The result of a merge."""

    out: str
    clips: int  # in the merged cache
    copied_shards: int
    found_shards: int  # that were there already


def merge_caches(sources: Sequence[Path], out: Path, report: Reporter = quiet) -> MergeResult:
    """Copy the shards of several caches, made with the same settings, into `out`; every shard is checked against its sha256.

    Raises SettingsError if a cache was made with other settings, CorruptFileError if a shard changed. Running it again
    copies what is missing.
    """
    if any(map(is_url, sources)):
        raise SettingsError("`merge` takes folders, not URLs", "download the cache at the URL first")
    manifests = {source: read_sealed(_manifest_of(source)) for source in sources}
    if (out / "manifest.json").is_file():
        manifests = {out: read_sealed(out / "manifest.json"), **manifests}
    (first, wanted), *others = manifests.items()
    for source, manifest in others:
        if unlike := manifest_differences(wanted, manifest):
            raise SettingsError(
                f"{source} was made with other settings than {first}: {'; '.join(unlike)}",
                "merge what was made by one command with several `shard`",
            )
    if out.exists() and not (out / "manifest.json").is_file() and any(out.iterdir()):
        raise SettingsError(f"{out} holds other things and no latent cache", "give a new or empty folder as `out`")
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
    """Whether the shard of a .json is there and unchanged."""
    shard = read_shard(record)
    path = record.with_name(shard["file"])
    return path.is_file() and sha256_of(path) == shard["sha256"]


def _manifest_of(source: Path) -> Path:
    path = source / "manifest.json"
    if not path.is_file():
        raise SettingsError(f"{source} is no latent cache (no manifest.json)", "give folders that cache-latents --out names")
    return path


def _merge_records(sources: Sequence[Path], out: Path) -> None:
    """Merge the records of the videos, so that a run on the merged cache finds nothing to do."""
    names = sorted({path.name for source in sources for path in whole_files(source / "parts", "part-*.json")})
    for name in names:
        known: dict[str, KnownVideo] = {}
        for folder in (*sources, out):
            for video, facts in read_part(folder / "parts" / name).items():
                if video not in known or not facts.reason:  # the record of a process that could read it wins
                    known[video] = facts
        with hold_lock(out / "parts" / Path(name).with_suffix(".lock")) as other:
            if other:
                raise SettingsError(f"{out} is being worked on by {other}", "merge when it is done")
            write_part(out / "parts" / name, known)
    if listings := [count for source in sources if (count := read_listing(source)) is not None]:
        write_listing(out, max(listings))
