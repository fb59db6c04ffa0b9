"""How any number of processes on any number of machines make one latent cache without a coordinator.

Videos fall into parts by a hash of their names. Whoever works on a part holds its lock; what is known of its videos is kept:

    cache/parts/part-007.lock    held by the process that works on it; the system drops it when that ends, however it ends
    cache/parts/part-007.json    per video: stamp, sha256 and frames, or why it cannot be read; clips that could not be read
    cache/parts/listing.json     how many videos there were when a worker last looked

A part is worked on in the order of names and cut into batches and shards the same way every time, so that kills and the
number of workers do not show in the bytes.
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
_VIDEOS_PER_PART = 4  # at least, so that a few videos are not a shard each


@dataclass(frozen=True)
class Shard:
    """One of `count` equal shares of the work, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Read "3/8" as a Shard; SettingsError for anything else."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise SettingsError(f"--shard {text} is no share", "INDEX/COUNT, counted from 0: --shard 0/8 to --shard 7/8")
    return Shard(int(index), int(count))


def shard_from_environment(environment: Mapping[str, str]) -> tuple[Shard | None, str]:
    """The share that a cluster's variables name, and in words where it comes from or what is missing; (None, "") without any.

    A Slurm array or a Kubernetes indexed job (whose number of completions has to be given as JOB_COMPLETIONS) is divided
    further by the processes of torchrun, or of srun.
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
            return None, f"SLURM_ARRAY_TASK_ID is {job}, in an array of {tasks} that does not count evenly: give --shard"
    elif (pod := number("JOB_COMPLETION_INDEX")) is not None:
        if not (completions := number("JOB_COMPLETIONS")):
            return None, "JOB_COMPLETION_INDEX is set, the number of completions is not: set JOB_COMPLETIONS, or give --shard"
        index, count, names = pod, completions, ["JOB_COMPLETION_INDEX"]
    # What torchrun and srun set for each process, and nobody else: a batch script has SLURM_NTASKS without being several.
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
    return Shard(index, count), f"shard {index}/{count}, as {' and '.join(names)} say{'s' if len(names) == 1 else ''}"


def num_parts(num_videos: int, shards: int) -> int:
    """How many parts a new cache gets: for every share the same number of them."""
    wanted = min(max(num_videos // _VIDEOS_PER_PART, 1), MOST_PARTS)
    return max(-(-wanted // shards), 1) * shards


def part_of(name: str, parts: int) -> int:
    """The part that a video of this name (relative, with slashes) belongs to, whatever other videos there are."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") % parts


@dataclass(frozen=True)
class KnownVideo:
    """What was found out about a video, for as long as its stamp stays the same."""

    stamp: str  # its size and time of change, or what its storage tells instead
    sha256: str = ""
    frames: int = 0
    reason: str = ""  # why it cannot be read; then there is no sha256
    failed: Mapping[str, str] = field(default_factory=dict)  # first frames of clips that could not be read, and why

    def with_failed(self, start: int, reason: str) -> "KnownVideo":
        """The same with one more clip that could not be read."""
        return replace(self, failed={**self.failed, str(start): reason})


class Part:
    """One part while it is worked on: what is known of its videos, and its lock."""

    def __init__(self, root: Path, number: int, lock: ExitStack) -> None:
        self.number, self._path, self._lock = number, _record_path(root, number), lock
        self._was = self.before = read_part(self._path)  # when the work began
        self.videos: dict[str, KnownVideo] = {}  # those that are done with
        self._is_open = True

    def close(self) -> None:
        """Write down what is known now, and let others have the part; once."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            # Of an interrupted pass, what the one before knew of the rest.
            known = self.before | self.videos
            if known != self._was or not self._path.exists():
                write_part(self._path, known)
        finally:
            self._lock.close()
            self._was = self.before = self.videos = {}  # a run has many parts

    def forget_all_but(self, names: Sequence[str]) -> None:
        """Drop what is known of videos that are gone."""
        wanted = set(names)
        self.before = {name: known for name, known in self.before.items() if name in wanted}


def claim(root: Path, number: int) -> Part | str:
    """Take a part for this process; the words about who has it where that is another one."""
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
    """Tell how many videos there are."""
    text = sealed({"videos": num_videos})
    write_whole(root / "parts" / "listing.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_listing(root: Path) -> int | None:
    """How many videos there were when a worker last looked; None where none has. Raises CorruptFileError."""
    path = root / "parts" / "listing.json"
    if not path.is_file():
        return None
    listing = read_sealed(path, RERUN)
    check_fields(listing, {"videos": int}, path)
    return int(listing["videos"])


def holders(root: Path) -> list[str]:
    """Who works on parts of a cache at the moment, each once."""
    return list(dict.fromkeys(filter(None, map(lock_holder, sorted((root / "parts").glob("part-*.lock"))))))


def known_videos(root: Path) -> Iterator[tuple[str, KnownVideo]]:
    """(name, what is known) of every video of every part."""
    for path in whole_files(root / "parts", "part-*.json"):
        yield from read_part(path).items()


def read_part(path: Path) -> dict[str, KnownVideo]:
    """The record of a part; empty where there is none yet. Raises CorruptFileError."""
    if not path.exists():
        return {}
    record = read_sealed(path, RERUN)
    check_fields(record, {"videos": dict[str, Any]}, path)
    return {name: _known(facts, path, name) for name, facts in record["videos"].items()}


_KINDS = {"stamp": str, "sha256": str, "frames": int, "reason": str, "failed": dict[str, str]}


def _known(facts: Any, path: Path, name: str) -> KnownVideo:
    # The usual one is told at a glance: there may be very many.
    if (
        isinstance(facts, dict)
        and list(map(type, facts.values())) == [str, str, int]
        and [*facts] == ["stamp", "sha256", "frames"]
    ):
        return KnownVideo(**facts)
    check_fields(facts, {field: kind | None for field, kind in _KINDS.items()}, path, f"videos.{name}.")
    return KnownVideo(**{"stamp": "", **{field: facts[field] for field in _KINDS if facts.get(field)}})


def write_part(path: Path, videos: Mapping[str, KnownVideo]) -> None:
    """Write the record of a part."""
    text = sealed({"videos": {name: _short(videos[name]) for name in sorted(videos)}})
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _short(known: KnownVideo) -> dict[str, object]:
    return {name: value for name, value in asdict(known).items() if value}


def _record_path(root: Path, number: int) -> Path:
    return root / "parts" / f"part-{number:03}.json"
