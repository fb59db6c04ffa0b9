"""The latent cache: posterior mean and std of clips, with the very pixels they were made from.

    cache/manifest.json                          what made it: teacher identity and clip settings; how many parts it has
    cache/shards/part-007-3f2a....safetensors    {key}.mean {key}.std (C, t, h, w) fp32, {key}.video (T, H, W, 3) uint8
    cache/shards/part-007-3f2a....json           its sha256, "tf32": true if it was encoded in TF32, and, per clip: key, source, first frame
    cache/parts/                                 who works on what, and what is known of the videos: see cache_parts.py

A shard counts only with its .json, which is written after it: what a killed process leaves half-done is never read.
"""

import hashlib
import json
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from turbovaed_cli.cache_parts import RERUN
from turbovaed_cli.errors import CorruptFileError, SettingsError
from turbovaed_cli.files.changes import arrow, differences, option_of
from turbovaed_cli.files.documents import check_fields, plain_name, shown
from turbovaed_cli.files.locks import held
from turbovaed_cli.files.remote import Mirror, RemoteFolder, cache_home, is_url
from turbovaed_cli.files.sealed import read_sealed, sealed
from turbovaed_cli.files.whole import sha256_of, whole_files, write_whole
from turbovaed_cli.video import to_model


@dataclass(frozen=True)
class ClipSource:
    """Where a clip comes from: which frames of which video, at what size."""

    path: str  # of the video, for people
    video_sha256: str
    start: int
    frames: int
    stride: int
    size: tuple[int, int]

    @cached_property
    def key(self) -> str:
        """The same for the same pixels, different for all others: names of files play no part."""
        text = f"{self.video_sha256}/{self.start}/{self.frames}/{self.stride}/{self.size[0]}x{self.size[1]}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Place:
    """Where a crop lies in its clip: (rows, columns) of latents and of pixels, and those of its own pixels that losses look at."""

    latents: tuple[slice, slice]
    pixels: tuple[slice, slice]
    window: tuple[slice, slice]


@dataclass(frozen=True)
class Crop:
    """Crops of (height, width) latents at random places, `ratio` pixels to a latent.

    A latent near a cut has seen pixels beyond it, as the encoder saw the whole clip, and the student's zeros stand there for
    what is no border: so `margin` latents along a cut are context, and losses look at the window that is left.
    """

    height: int
    width: int
    ratio: int
    margin: int = 0

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of a crop in pixels."""
        return self.height * self.ratio, self.width * self.ratio

    def place(self, rng: random.Random, clip: tuple[int, int]) -> Place:
        """A place in a clip of (height, width) latents."""
        (top, window_rows), (left, window_columns) = (
            _span(rng, length, whole, 0 if length == whole else self.margin)
            for length, whole in zip((self.height, self.width), clip, strict=True)
        )
        return Place(
            (top, left),
            (_times(top, self.ratio), _times(left, self.ratio)),
            (_times(window_rows, self.ratio), _times(window_columns, self.ratio)),
        )

    def places(self, seed: int, index: int, batch_size: int, clip: tuple[int, int]) -> list[Place]:
        """Those of batch number `index`, in clips of (height, width) pixels."""
        rng = random.Random(f"crop/{seed}/{index}")  # noqa: S311 - reproducible, not secret
        return [self.place(rng, (clip[0] // self.ratio, clip[1] // self.ratio)) for _ in range(batch_size)]


def _span(rng: random.Random, length: int, whole: int, margin: int) -> tuple[slice, slice]:
    """(what to cut out of `whole`, its window): the clip's borders come up as often as its middle, and a window reaches them."""
    window = length - 2 * margin
    first = min(max(rng.randrange(1 - window, whole), 0), whole - window)
    start = min(max(first - margin, 0), whole - length)
    return slice(start, start + length), slice(first - start, first - start + window)


def _times(span: slice, ratio: int) -> slice:
    return slice(span.start * ratio, span.stop * ratio)


@dataclass(frozen=True)
class Batch:
    """What one forward pass learns from: video (B, 3, T, H, W) in [-1, 1]; mean and std (B, C, t, h, w), or None when not encoded yet."""

    video: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    windows: tuple[tuple[slice, slice], ...] | None = None  # of each clip, rows and columns of pixels that count; None: all
    noise: Tensor | None = None  # standard normal (B, C, t, h, w), where the posterior is sampled
    looked_at: tuple[int, ...] | None = None  # pixel frames that the perceptual loss looks at; None: all

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [tensor for tensor in (self.video, self.mean, self.std, self.noise) if tensor is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with every tensor changed."""
        mean, std, noise = (None if tensor is None else change(tensor) for tensor in (self.mean, self.std, self.noise))
        return replace(self, video=change(self.video), mean=mean, std=std, noise=noise)

    def counted(self, video: Tensor) -> Tensor:
        """The part of each clip of (B, 3, T, H, W) that losses look at."""
        if self.windows is None:
            return video
        return torch.stack([clip[..., rows, columns] for clip, (rows, columns) in zip(video, self.windows, strict=True)])


WHOLE = slice(None)  # every clip of a batch; of several processes each reads its part


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_items: int) -> list[int]:
    order = list(range(num_items))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)  # noqa: S311 - reproducible, not secret
    return order


def item_at(seed: int, index: int, num_items: int) -> int:
    """The `index`-th item of an endless stream that shuffles `num_items` anew each time round: a function, no state."""
    return _order(seed, index // num_items, num_items)[index % num_items]


class CacheWriter:
    """Adds clips to a cache folder, shard by shard, from any thread. Use as a context manager: its exit commits the open shard."""

    def __init__(
        self,
        root: Path,
        made_by: Mapping[str, Any],
        shard_mb: int,
        parts: int = 1,
        on_commit: Callable[[Path], None] = lambda _: None,
        *,
        tf32: bool = False,
    ) -> None:
        """`parts` is for a new cache: how many its videos are divided into; `self.parts` is what it has. `on_commit` gets each shard.

        `tf32` is recorded with each shard if the latents were computed in TF32.
        """
        self.root = root
        self.shards = root / "shards"
        self.max_bytes = shard_mb * 1_000_000
        self._on_commit = on_commit
        self._how: dict[str, Any] = {"tf32": True} if tf32 else {}
        self._part = 0
        self._tensors: dict[str, Tensor] = {}
        self._clips: list[dict[str, Any]] = []
        self._bytes = 0
        self._lock = threading.RLock()
        self.parts = int(_agree_on_manifest(root, made_by, parts).get("parts", 1))
        # Of an earlier turbovaed, whose shards belong to no part.
        self._of_no_part = self._keys("[!p]*.json")

    def committed(self, part: int) -> set[str]:
        """Keys of the clips that a part has: whoever holds the part is alone in adding to them."""
        return self._of_no_part | self._keys(f"part-{part:03}-*.json")

    def _keys(self, pattern: str) -> set[str]:
        return {clip["key"] for path in whole_files(self.shards, pattern) for clip in read_shard(path)["clips"]}

    def add(self, source: ClipSource, mean: Tensor, std: Tensor, video: Tensor) -> None:
        """Keep one clip: mean and std (C, t, h, w), video (T, H, W, 3) uint8. Written when the shard is full."""
        self.add_all([(source, mean, std, video)])

    def add_all(self, clips: Sequence[tuple[ClipSource, Tensor, Tensor, Tensor]], part: int = 0) -> None:
        """Keep clips of one part that were encoded together; a shard ends behind all of them, so that a rerun makes the same batches."""
        with self._lock:
            if part != self._part:
                self.commit()
                self._part = part
            for source, mean, std, video in clips:
                key = source.key
                # A deterministic or shared std is constant over channels: what repeats is stored once and expanded on reading.
                pieces = {f"{key}.mean": mean, f"{key}.std": std, f"{key}.video": video}
                self._tensors |= {name: value.detach().cpu().contiguous() for name, value in pieces.items()}
                self._clips.append({"key": key, **asdict(source)})
                self._bytes += sum(self._tensors[name].nbytes for name in pieces)
            if self._bytes >= self.max_bytes:
                self.commit()

    def commit(self) -> None:
        """Write the open shard, then the .json that makes it count."""
        with self._lock:
            if self._clips:
                self._commit()

    def _commit(self) -> None:
        digest = hashlib.sha256("".join(clip["key"] for clip in self._clips).encode()).hexdigest()[:16]
        path = self.shards / f"part-{self._part:03}-{digest}.safetensors"
        write_whole(path, lambda temporary: save_file(self._tensors, temporary))
        record = {"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size, **self._how, "clips": self._clips}
        text = sealed(record)
        write_whole(path.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._tensors, self._clips, self._bytes = {}, [], 0
        self._on_commit(path)

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # Also on an error: what was encoded so far is whole, and the next run goes on behind it.
        self.commit()


def _agree_on_manifest(root: Path, made_by: Mapping[str, Any], parts: int) -> dict[str, Any]:
    """The manifest of a cache, written where there is none; SettingsError where it was made otherwise."""
    path = root / "manifest.json"
    if not path.exists():
        ours = ("shards", "parts", "manifest.json")  # which another process may have written meanwhile
        if root.exists() and any(
            item.name not in ours and not item.name.startswith(".manifest.json.") for item in root.iterdir()
        ):
            raise SettingsError(f"{root} holds other things and no latent cache", "give a new or empty folder as --out")
        text = sealed({**made_by, "parts": parts})
        while not path.exists():
            with held(root / "parts" / "manifest.lock") as other:
                if other is None and not path.exists():
                    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            time.sleep(0.02 if other else 0)
    return check_manifest(root, made_by)


def check_manifest(root: Path, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a cache; SettingsError where it was made otherwise."""
    path = root / "manifest.json"
    before, manifest = read_sealed(path), json.loads(json.dumps(made_by))
    check_fields(before, {"parts": int | None}, path)
    # The first command decides the number of parts.
    if found := manifest_differences({**before, "parts": None}, {**manifest, "parts": None}):
        raise SettingsError(f"{root} was made with other settings: {'; '.join(found)}", "give another folder as --out")
    return before


def manifest_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What two manifests say differently, as options of `cache-latents`, but for what belongs to the document alone."""
    a, b = (
        {name: value for name, value in one.items() if name not in ("schema_version", "seal", "teacher_name")} for one in (a, b)
    )
    changes = [change for change in differences(a, b) if change.field != "licence"]  # its wording changes nothing
    weights = next((change for change in changes if change.name == "teacher.weights_sha256"), None)
    if weights is not None:
        items = [arrow("weights of --teacher", str(weights.before)[:12], str(weights.now)[:12])]
    else:
        items = ["the config of --teacher differs"] * any(change.name.startswith("teacher") for change in changes)
    others = [change for change in changes if not change.name.startswith("teacher")]
    for change in others:
        is_option = change.name.startswith("clip.") or change.name == "dtype"
        items.append(arrow(option_of(change.field) if is_option else change.field, change.before, change.now, change.field))
    return items


def committed_shards(root: Path) -> Iterator[dict[str, Any]]:
    """The .json of every committed shard, by name; CorruptFileError where one is not what CacheWriter wrote."""
    yield from map(read_shard, whole_files(root / "shards", "*.json"))


def read_shard(path: Path) -> dict[str, Any]:
    """The .json of a committed shard."""
    shard = read_sealed(path, RERUN)
    check_fields(shard, {"file": str, "sha256": str, "bytes": int, "tf32": bool | None, "clips": list[dict[str, Any]]}, path)
    if not plain_name(shard["file"]):
        raise CorruptFileError(f"{path} names {shard['file']!r}, which is no file of its folder", f"remove {path}")
    for number, clip in enumerate(shard["clips"]):
        check_fields(clip, {"key": str}, path, f"clips.{number}.")
    return shard


class LatentCache:
    """A finished (or growing) cache, read at random. Every shard is checked against its sha256 when first used."""

    is_encoded = True  # its batches have latents

    def __init__(self, root: str | Path) -> None:
        """`root` may be an fsspec URL: its shards are copied here as they are read, and kept."""
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
            for clip in shard["clips"]:  # of two workers that met the same bytes under two names, the first
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
        """The manifest and the shards' .json as they are there now; several processes may do so at once."""
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
        """Frames of its clips."""
        return int(self.manifest["clip"]["frames"])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its clips in pixels."""
        height, width = self.manifest["clip"]["size"]
        return height, width

    @property
    def fingerprint(self) -> str:
        """Changes when any clip or what made it changes."""
        return hashlib.sha256("".join(f"{clip['key']}{clip['file_sha256']}" for clip in self.clips).encode()).hexdigest()

    def read(self, index: int, place: Place | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(mean (C, t, h, w) fp32, std fp32, video (3, T, H, W) in [-1, 1]) of one clip, or of a place in it.

        Raises CorruptFileError where bytes changed.
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
                f"{path} does not hold clip {clip['key']} as its manifest says: {error}",
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

    def batch_at(self, seed: int, index: int, batch_size: int, crop: Crop | None = None, part: slice = WHOLE) -> Batch:
        """`part` of the batch number `index` of an endless shuffled stream, cut to `crop`; depends on nothing but its arguments."""
        numbers = [item_at(seed, index * batch_size + i, len(self)) for i in range(batch_size)[part]]
        places = [None] * len(numbers) if crop is None else crop.places(seed, index, batch_size, self.size)[part]
        means, stds, videos = zip(*(self.read(number, place) for number, place in zip(numbers, places, strict=True)), strict=True)
        windows = tuple(place.window for place in places if place is not None) if crop is not None and crop.margin else None
        return Batch(torch.stack(videos), torch.stack(means), torch.stack(stds), windows)

    def names_at(self, seed: int, index: int, batch_size: int, part: slice = WHOLE) -> list[str]:
        """The clips of that batch, for people."""
        clips = [self.clips[item_at(seed, index * batch_size + i, len(self))] for i in range(batch_size)[part]]
        return [f"{clip['path']} from frame {clip['start']} ({clip['key']} in {clip['file']})" for clip in clips]


@contextmanager
def open_cache(out: str | Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """(the local folder to write a latent cache in, what to do with each shard that is complete).

    Behind a URL a shard is copied there and removed here; the rest, which is small, follows in the end.
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
