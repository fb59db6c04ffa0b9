"""How any number of processes on any number of machines write one latent cache without a coordinator.

Videos are divided into parts by a hash of their names. A process locks a part while it works on it. Files per cache:

    cache/parts/part-007.lock    held by the process that works on it; the operating system releases it when that process ends
    cache/parts/part-007.json    per video: stamp, sha256 and frames, or why it cannot be read; clips that could not be read
    cache/parts/listing.json     the number of videos when a worker last listed them

A part is processed in the order of names and cut into batches and shards the same way every time. So the bytes do not depend
on kills or on the number of workers.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import check_fields
from turbovaed_cli.files.locks import hold_lock, lock_holder
from turbovaed_cli.files.sealed import read_sealed, sealed
from turbovaed_cli.files.whole import whole_files, write_whole

RERUN = "remove that file and run cache-latents again"
MOST_PARTS = 256
_VIDEOS_PER_PART = 4  # at least, so that a few videos do not become one shard each


@dataclass(frozen=True)
class Shard:
    """A fixed share of the work: number `index` of `count`, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Parse a text such as "3/8". Raises SettingsError for anything else."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise SettingsError(f"`shard` {text} is no share", "INDEX/COUNT, counted from 0: `shard` 0/8 to `shard` 7/8")
    return Shard(int(index), int(count))


def shard_from_environment(environment: Mapping[str, str]) -> tuple[Shard | None, str]:
    """Return the shard that a cluster's variables name, and a text on its origin or on what is missing; (None, "") without any.

    The share of a Slurm array or a Kubernetes indexed job is divided further by the processes of torchrun or srun. Kubernetes
    does not set the number of completions: it has to be in JOB_COMPLETIONS.
    """

    def number(name: str, default: int | None = None) -> int | None:
        text = environment.get(name, "")
        return int(text) if text.lstrip("-").isdecimal() else default

    index, count, names = 0, 1, []
    job = number("SLURM_ARRAY_TASK_ID")
    if job is not None and (tasks := number("SLURM_ARRAY_TASK_COUNT")):
        first, step = number("SLURM_ARRAY_TASK_MIN", 0) or 0, number("SLURM_ARRAY_TASK_STEP", 1) or 1
        index, count, names = (job - first) // step, tasks, ["SLURM_ARRAY_TASK_ID"]
        if not index < count:
            return None, f"SLURM_ARRAY_TASK_ID is {job}, in an array of {tasks} that does not count evenly: give `shard`"
    elif (pod := number("JOB_COMPLETION_INDEX")) is not None:
        if not (completions := number("JOB_COMPLETIONS")):
            return None, "JOB_COMPLETION_INDEX is set, the number of completions is not: set JOB_COMPLETIONS, or give `shard`"
        index, count, names = pod, completions, ["JOB_COMPLETION_INDEX"]
    # Only torchrun and srun set these for each process. A batch script is one process, but has SLURM_NTASKS.
    launched = (
        {"RANK": "WORLD_SIZE"}
        if {"LOCAL_RANK", "MASTER_ADDR"} <= environment.keys()
        else {"SLURM_PROCID": "SLURM_STEP_NUM_TASKS"}
    )
    for rank_name, count_name in launched.items():
        rank, world = number(rank_name), number(count_name)
        if rank is not None and world and world > 1:
            index, count, names = index * world + rank, count * world, [*names, rank_name]
            break
    if count == 1 or not 0 <= index < count:
        return None, ""
    return Shard(index, count), f"shard {index}/{count}, from {' and '.join(names)}"


def num_parts(num_videos: int, shards: int) -> int:
    """Return the number of parts of a new cache, a multiple of `shards`, so that every share has the same number."""
    wanted = min(max(num_videos // _VIDEOS_PER_PART, 1), MOST_PARTS)
    return max(-(-wanted // shards), 1) * shards


def part_of(name: str, parts: int) -> int:
    """Return the part of a video by its name (relative, with slashes); other videos do not change it."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") % parts


@dataclass(frozen=True)
class KnownVideo:
    """The record of a video, valid as long as its stamp stays the same."""

    stamp: str  # its size and time of change, or what its storage gives instead
    sha256: str = ""
    frames: int = 0
    reason: str = ""  # why it cannot be read; then there is no sha256
    failed: Mapping[str, str] = field(default_factory=dict)  # first frames of clips that could not be read, and why

    def with_failed(self, start: int, reason: str) -> "KnownVideo":
        """Return the record with one more clip that could not be read."""
        return replace(self, failed={**self.failed, str(start): reason})


class Part:
    """One part while a process works on it: the records of its videos, and its lock."""

    def __init__(self, root: Path, number: int, lock: ExitStack) -> None:
        self.number, self._path, self._lock = number, _record_path(root, number), lock
        self._was = self.before = read_part(self._path)  # when the work began
        self.videos: dict[str, KnownVideo] = {}  # finished in this run
        self._is_open = True

    def close(self) -> None:
        """Write the records and release the part; a second call does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            # An interrupted pass keeps the earlier records of the videos it did not reach.
            known = self.before | self.videos
            if known != self._was or not self._path.exists():
                write_part(self._path, known)
        finally:
            self._lock.close()
            self._was = self.before = self.videos = {}  # a run has many parts

    def forget_all_but(self, names: Sequence[str]) -> None:
        """Drop the records of videos that are not in `names`."""
        wanted = set(names)
        self.before = {name: known for name, known in self.before.items() if name in wanted}


def claim(root: Path, number: int) -> Part | str:
    """Lock a part for this process, or return a description of the process that holds it."""
    lock = ExitStack()
    other = lock.enter_context(hold_lock(_record_path(root, number).with_suffix(".lock")))
    if other:
        lock.close()
        return other
    for folder in (root / "shards", root / "parts"):  # what a killed worker of this part left half-written
        for leftover in folder.glob(f".part-{number:03}[-.]*"):
            leftover.unlink(missing_ok=True)
    return Part(root, number, lock)


def write_listing(root: Path, num_videos: int) -> None:
    """Record the number of videos."""
    text = sealed({"videos": num_videos})
    write_whole(root / "parts" / "listing.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_listing(root: Path) -> int | None:
    """Return the number of videos when a worker last listed them; None if none has. Raises CorruptFileError if damaged."""
    path = root / "parts" / "listing.json"
    if not path.is_file():
        return None
    listing = read_sealed(path, RERUN)
    check_fields(listing, {"videos": int}, path)
    return int(listing["videos"])


def holders(root: Path) -> list[str]:
    """Return descriptions of the processes that hold parts of a cache now, without duplicates."""
    return list(dict.fromkeys(filter(None, map(lock_holder, sorted((root / "parts").glob("part-*.lock"))))))


def known_videos(root: Path) -> Iterator[tuple[str, KnownVideo]]:
    """Yield (name, record) of every video of every part."""
    for path in whole_files(root / "parts", "part-*.json"):
        yield from read_part(path).items()


def read_part(path: Path) -> dict[str, KnownVideo]:
    """Return the records of a part's videos; empty if there are none yet. Raises CorruptFileError if the file is damaged."""
    if not path.exists():
        return {}
    record = read_sealed(path, RERUN)
    check_fields(record, {"videos": dict[str, Any]}, path)
    return {name: _known(facts, path, name) for name, facts in record["videos"].items()}


_KINDS = {"stamp": str, "sha256": str, "frames": int, "reason": str, "failed": dict[str, str]}


def _known(facts: Any, path: Path, name: str) -> KnownVideo:
    # The usual record has a fast path, as there may be very many.
    if (
        isinstance(facts, dict)
        and list(map(type, facts.values())) == [str, str, int]
        and [*facts] == ["stamp", "sha256", "frames"]
    ):
        return KnownVideo(**facts)
    check_fields(facts, {field: kind | None for field, kind in _KINDS.items()}, path, f"videos.{name}.")
    return KnownVideo(**{"stamp": "", **{field: facts[field] for field in _KINDS if facts.get(field)}})


def write_part(path: Path, videos: Mapping[str, KnownVideo]) -> None:
    """Write the records of a part's videos."""
    text = sealed({"videos": {name: _short(videos[name]) for name in sorted(videos)}})
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _short(known: KnownVideo) -> dict[str, object]:
    return {name: value for name, value in asdict(known).items() if value}


def _record_path(root: Path, number: int) -> Path:
    return root / "parts" / f"part-{number:03}.json"
