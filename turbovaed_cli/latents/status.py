"""`cache-latents --status`: the progress of a caching job."""

import time
from dataclasses import dataclass
from pathlib import Path

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.sealed import read_sealed
from turbovaed_cli.files.whole import whole_files
from turbovaed_cli.latents.cache import read_shard
from turbovaed_cli.latents.parts import (
    holders,
    known_videos,
    read_listing,
)
from turbovaed_cli.latents.pixels import is_drawn
from turbovaed_cli.video.usable import Skipped

_WINDOW_S = 600.0  # over which --status measures the speed


@dataclass(frozen=True)
class CacheStatus:
    """The progress of a cache, read from its folder."""

    out: str
    videos: int | None  # when a worker last listed them; None if no worker of this version has
    done: int  # videos that are finished, including unreadable ones
    clips: int
    bytes: int
    failed: list[Skipped]
    working: list[str]  # the active workers
    clips_per_s: float | None = None  # over the last ten minutes; None if there is no active worker, or too few shards
    seconds_left: float | None = None
    parts: int = 1  # that the videos are divided into
    drawn_clips: int = 0  # the clips among `clips` that were drawn
    tf32_clips: int = 0  # the clips among `clips` whose latents were computed in TF32


def cache_status(out: Path) -> CacheStatus:
    """Read the progress of the cache in folder `out`; changes nothing. Raises SettingsError if it is no cache."""
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
    clips = num_bytes = of_known = drawn = tf32_clips = 0
    recent: list[tuple[float, int]] = []
    now = time.time()
    for path in whole_files(out / "shards", "*.json"):
        record = read_shard(path)
        count = len(record["clips"])
        clips, num_bytes = clips + count, num_bytes + int(record["bytes"])
        tf32_clips += count if record.get("tf32") else 0
        drawn += sum(is_drawn(str(clip.get("video_sha256"))) for clip in record["clips"])
        of_known += count if path.name[: len("part-000")] in finished else 0
        if now - path.stat().st_mtime < _WINDOW_S:
            recent.append((path.stat().st_mtime, count))
    working = holders(out)
    rate = left = None
    recent.sort()
    if working and len(recent) > 1 and now > recent[0][0]:
        rate = sum(count for _, count in recent[1:]) / (now - recent[0][0])  # clips after the first recent shard
        if videos and known and rate:
            left = max(videos * of_known / len(known) - clips, 0.0) / rate
    parts = int(manifest.get("parts", 1))
    return CacheStatus(str(out), videos, len(known), clips, num_bytes, failed, working, rate, left, parts, drawn, tf32_clips)
