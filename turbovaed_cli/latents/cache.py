"""The latent cache: posterior mean and std of clips, with the very pixels they were made from.

    cache/manifest.json                          how it was made: teacher identity and clip settings; number of parts
    cache/shards/part-007-3f2a....safetensors    {key}.mean {key}.std (C, t, h, w) fp32, {key}.video (T, H, W, 3) uint8
    cache/shards/part-007-3f2a....json           its sha256, "tf32": true if it was encoded in TF32, and, per clip: key, source, first frame
    cache/parts/                                 locks of the workers, and what is known about the videos: see parts.py

A shard counts only with its .json, which is written after it. So the half-written shard of a killed process is never read.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from turbovaed_cli.errors import CorruptFileError, SettingsError
from turbovaed_cli.files.changes import arrow, differences, option_of
from turbovaed_cli.files.documents import check_fields, plain_name, shown
from turbovaed_cli.files.remote import Mirror, RemoteFolder, cache_home, is_url
from turbovaed_cli.files.sealed import read_sealed
from turbovaed_cli.files.whole import sha256_of, whole_files
from turbovaed_cli.latents.batch import ALL_CLIPS, Batch, Crop, Place, item_at
from turbovaed_cli.latents.parts import RERUN
from turbovaed_cli.video import to_model


@dataclass(frozen=True)
class ClipSource:
    """The source of a clip: the video, its frames, and their size."""

    path: str  # of the video, for messages
    video_sha256: str
    start: int
    frames: int
    stride: int
    size: tuple[int, int]

    @cached_property
    def key(self) -> str:
        """A hash of the video's content and the frames taken. File names play no part, so equal clips have equal keys."""
        text = f"{self.video_sha256}/{self.start}/{self.frames}/{self.stride}/{self.size[0]}x{self.size[1]}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_manifest(root: Path, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a cache. Raises SettingsError if it was made with settings other than `made_by`."""
    path = root / "manifest.json"
    before, manifest = read_sealed(path), json.loads(json.dumps(made_by))
    check_fields(before, {"parts": int | None}, path)
    # The first command decides the number of parts.
    if found := manifest_differences({**before, "parts": None}, {**manifest, "parts": None}):
        raise SettingsError(f"{root} was made with other settings: {'; '.join(found)}", "give another folder as `out`")
    return before


_NO_SHARES = {"augment": 0.0, "synthetic": 0.0, "seed": 0}  # what a manifest without these fields means


def manifest_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the differences of two manifests as options of `cache-latents`; fields of the document alone are left out."""
    a, b = (
        {name: value for name, value in one.items() if name not in ("schema_version", "seal", "teacher_name")} for one in (a, b)
    )
    a, b = ({**one, "clip": {**_NO_SHARES, **one["clip"]}} if isinstance(one.get("clip"), dict) else one for one in (a, b))
    changes = [change for change in differences(a, b) if change.field != "licence"]  # its wording changes nothing
    weights = next((change for change in changes if change.name == "teacher.weights_sha256"), None)
    if weights is not None:
        items = [arrow("weights of `teacher`", str(weights.before)[:12], str(weights.now)[:12])]
    else:
        items = ["the config of `teacher` differs"] * any(change.name.startswith("teacher") for change in changes)
    follows = [change for change in changes if change.name == "drawing" and None in (change.before, change.now)]  # from shares
    others = [change for change in changes if not change.name.startswith("teacher") and change not in follows]
    for change in others:
        is_option = change.name.startswith("clip.") or change.name == "dtype"
        items.append(arrow(option_of(change.field) if is_option else change.field, change.before, change.now, change.field))
    return items


def committed_shards(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the .json of every committed shard, by name. Raises CorruptFileError if one is not as CacheWriter wrote it."""
    yield from map(read_shard, whole_files(root / "shards", "*.json"))


def read_shard(path: Path) -> dict[str, Any]:
    """Return the .json of a committed shard. Raises CorruptFileError if it is not as CacheWriter wrote it."""
    shard = read_sealed(path, RERUN)
    check_fields(shard, {"file": str, "sha256": str, "bytes": int, "tf32": bool | None, "clips": list[dict[str, Any]]}, path)
    if not plain_name(shard["file"]):
        raise CorruptFileError(f"{path} names {shard['file']!r}, which is no file of its folder", f"remove {path}")
    for number, clip in enumerate(shard["clips"]):
        check_fields(clip, {"key": str}, path, f"clips.{number}.")
    return shard


class LatentCache:
    """A finished (or growing) cache with random access. Every shard is checked against its sha256 when first used."""

    is_encoded = True  # its batches have latents

    def __init__(self, root: str | Path) -> None:
        """Open the cache at `root`, a folder or fsspec URL; shards of a URL are copied to this machine when read, and kept.

        Raises SettingsError if it is no cache or has no clips, CorruptFileError if its records are damaged.
        """
        self._remote: RemoteFolder | None = None
        self.where = shown = str(root)
        if is_url(root):
            self._remote = RemoteFolder(str(root))
            root = cache_home() / hashlib.sha256(self._remote.url.encode()).hexdigest()[:16]
            self._copy_records(root)
        root = Path(root)
        if not (root / "manifest.json").is_file():
            raise SettingsError(
                f"{shown} is no latent cache (no manifest.json)", "turbovaed cache-latents --data DIR --out DIR makes one"
            )
        self.root = root
        self.manifest = read_sealed(root / "manifest.json")
        check_fields(
            self.manifest,
            {"clip": {"frames": int, "size": tuple[int, int]}, "teacher": dict[str, Any] | None, "teacher_name": str | None},
            root / "manifest.json",
        )
        shards = list(committed_shards(root))
        found: dict[str, dict[str, Any]] = {}
        for shard in shards:
            for clip in shard["clips"]:  # two workers may find the same bytes under two names: the first one counts
                found.setdefault(clip["key"], {**clip, "file": shard["file"], "file_sha256": shard["sha256"]})
        self.clips = [found[key] for key in sorted(found)]
        in_tf32 = {shard["file"] for shard in shards if shard.get("tf32")}
        self.tf32_clips = sum(clip["file"] in in_tf32 for clip in self.clips)  # whose latents were computed in TF32
        if not self.clips:
            raise SettingsError(
                f"{shown} holds no clips", "its cache-latents run was stopped early or skipped every video: run it again"
            )
        self._verified: set[str] = set()
        self.damaged: dict[str, str] = {}  # a damaged shard is an error, never passed over

    def _copy_records(self, root: Path) -> None:
        """Copy the manifest and the shards' .json as they are now; several processes may do so at once."""
        assert self._remote is not None
        there = {name for name in self._remote.listing() if name == "manifest.json" or re.fullmatch(r"shards/[^/]*\.json", name)}
        for name in there:
            self._remote.get(name, root / name)
        for path in (root / "manifest.json", *(root / "shards").glob("*.json")):
            if path.relative_to(root).as_posix() not in there:
                path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def frames(self) -> int:
        """Pixel frames of each clip."""
        return int(self.manifest["clip"]["frames"])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of each clip in pixels."""
        height, width = self.manifest["clip"]["size"]
        return height, width

    @property
    def fingerprint(self) -> str:
        """A hash of all clips and their shards; it changes when any of them changes."""
        return hashlib.sha256("".join(f"{clip['key']}{clip['file_sha256']}" for clip in self.clips).encode()).hexdigest()

    def read(self, index: int, place: Place | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and std (C, t, h, w) fp32 and video (3, T, H, W) in [-1, 1] of one clip, or of a place in it.

        Raises CorruptFileError if the shard is missing or its bytes changed.
        """
        clip = self.clips[index]
        path = self.root / "shards" / str(clip["file"])
        if clip["file"] not in self._verified:
            if self._remote is not None and (not path.is_file() or sha256_of(path) != clip["file_sha256"]):
                self._remote.get(f"shards/{clip['file']}", path)
            if not path.is_file() or sha256_of(path) != clip["file_sha256"]:
                raise CorruptFileError(
                    f"{path} is missing or not what was written (sha256 differs)",
                    f"remove {path.with_suffix('.json')} and run cache-latents again",
                )
            self._verified.add(clip["file"])
        try:
            with safe_open(path, framework="pt") as file:
                mean, std = (file.get_tensor(f"{clip['key']}.{name}").float() for name in ("mean", "std"))
                video = file.get_slice(f"{clip['key']}.video")
                self._check_shapes(mean, std, video)
                std = std.expand(mean.shape)
                if place is None:
                    return mean, std, to_model(video[:])
                return mean[..., *place.latents], std[..., *place.latents], to_model(video[:, *place.pixels])
        except (SafetensorError, ValueError) as error:
            raise CorruptFileError(
                f"{path} does not hold clip {clip['key']} as its manifest records: {error}",
                f"remove {path.with_suffix('.json')} and run cache-latents again",
            ) from error

    def _check_shapes(self, mean: Tensor, std: Tensor, video: Any) -> None:
        wanted = [self.frames, *self.size, 3]
        channels = (self.manifest.get("teacher") or {}).get("latent_channels", mean.shape[:1].numel())
        if mean.shape[:1].numel() != channels:
            raise ValueError(f"latents {tuple(mean.shape)}, not {shown(channels)} channels")
        if std.shape[1:] != mean.shape[1:] or std.shape[:1].numel() not in (1, channels):
            raise ValueError(f"latents {tuple(mean.shape)} with deviations {tuple(std.shape)}")
        if mean.ndim != 4 or 0 in mean.shape or video.get_dtype() != "U8" or video.get_shape() != wanted:
            raise ValueError(f"latents {tuple(mean.shape)}, video {video.get_shape()} of {video.get_dtype()}, not {wanted} of U8")

    def batch_at(self, seed: int, index: int, batch_size: int, crop: Crop | None = None, part: slice = ALL_CLIPS) -> Batch:
        """Return `part` of batch `index` of an endless shuffled stream, cut to `crop`, in the shapes of Batch.

        It depends on its arguments only. Raises CorruptFileError as `read` does.
        """
        numbers = [item_at(seed, index * batch_size + i, len(self)) for i in range(batch_size)[part]]
        places = [None] * len(numbers) if crop is None else crop.places(seed, index, batch_size, self.size)[part]
        means, stds, videos = zip(*(self.read(number, place) for number, place in zip(numbers, places, strict=True)), strict=True)
        windows = tuple(place.window for place in places if place is not None) if crop is not None and crop.margin else None
        return Batch(torch.stack(videos), torch.stack(means), torch.stack(stds), windows)

    def names_at(self, seed: int, index: int, batch_size: int, part: slice = ALL_CLIPS) -> list[str]:
        """Return the names of the clips that `batch_at` returns for the same arguments, for messages."""
        clips = [self.clips[item_at(seed, index * batch_size + i, len(self))] for i in range(batch_size)[part]]
        return [f"{clip['path']} from frame {clip['start']} ({clip['key']} in {clip['file']})" for clip in clips]


@contextmanager
def open_cache(out: str | Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Yield (a local folder to write a latent cache in, a function to call with each finished shard).

    If `out` is a URL, a finished shard is uploaded and removed here; the remaining files, which are small, follow at the end.
    """
    if not is_url(out):
        yield Path(out), lambda _: None
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-", ignore_cleanup_errors=True) as room:
        mirror = Mirror(str(out), Path(room))
        mirror.fetch(lambda name: name.endswith(".json"))

        def pushed(shard: Path) -> None:
            mirror.push()
            shard.unlink()

        try:
            yield mirror.local, pushed
        finally:
            mirror.push()
