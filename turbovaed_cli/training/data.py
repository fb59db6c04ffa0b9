"""Batches as functions of (seed, index), and reading them ahead of the training loop."""

import hashlib
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from turbovaed_cli.errors import SettingsError, VideoError
from turbovaed_cli.latents import WHOLE, Batch, Crop, item_at
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import ClipSettings
from turbovaed_cli.video import VideoInfo, as_text, list_videos, notes_on, probe, read_clip, sha256_of_video

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Skipped:
    """An input that could not be used, and why."""

    path: str
    reason: str

    @property
    def reason_alone(self) -> str:
        """The reason without the path of the video, with which many begin; `path` may name a frame after it."""
        return self.reason.removeprefix(self.path.partition(" (from frame ")[0]).lstrip(": ")


def usable_videos(
    data: Path, num_frames: int, report: Reporter = quiet, *, first: int | None = None, hdr: str = ClipSettings.hdr
) -> tuple[list[VideoInfo], list[Skipped]]:
    """Probe every video under `data`; those unreadable or shorter than `num_frames` are named with the reason.

    With `first`, no further than so many usable ones, and their first `num_frames` frames are decoded to be sure. Raises
    SettingsError when none is left.
    """
    usable: list[VideoInfo] = []
    skipped: list[Skipped] = []
    for path in report.track(list_videos(data, report), "probing videos"):
        if len(usable) == first:
            break
        try:
            info = probe(path, hdr=hdr)
            if first is not None and info.num_frames >= num_frames:
                read_clip(info, num_frames, (8, 8))
        except VideoError as error:
            skipped.append(Skipped(as_text(path), error.what))
            continue
        if info.num_frames < num_frames:
            skipped.append(Skipped(str(path), too_short(info.num_frames, num_frames)))
        else:
            usable.append(info)
    if not usable:
        raise no_usable_video(skipped)
    for note in notes_on(usable):
        report.note(note)
    return usable, skipped


def too_short(num_frames: int, needed: int) -> str:
    """Why a video has no clip."""
    return f"{num_frames} frames, {needed} needed"


def no_usable_video(skipped: Sequence[Skipped]) -> SettingsError:
    """What to say where every video was skipped."""
    reasons = "; ".join(f"{Path(item.path).name}: {item.reason_alone}" for item in skipped[:3])
    return SettingsError(
        f"none of {len(skipped)} videos can be used ({reasons})",
        "give readable videos of at least that many frames, or lower --frames",
    )


class VideoClips:
    """Random clips straight from videos: place, start, flip are functions of (seed, index)."""

    is_encoded = False  # its batches are for the teacher to encode

    def __init__(
        self,
        videos: Sequence[VideoInfo],
        frames: int,
        size: tuple[int, int],
        stride: int,
        damaged: dict[str, str] | None = None,
    ) -> None:
        self.videos = sorted(videos, key=lambda info: str(info.path))
        self.frames, self.size, self.stride = frames, size, stride
        self.damaged = {} if damaged is None else damaged  # what failed while it was read, and why; streams may share it

    @property
    def fingerprint(self) -> str:
        """Changes when any video's bytes change, or one comes or goes; not when the folder moves."""
        return hashlib.sha256("".join(sha256_of_video(info.path) for info in self.videos).encode()).hexdigest()

    def batch_at(self, seed: int, index: int, batch_size: int, crop: Crop | None = None, part: slice = WHOLE) -> Batch:
        """`part` of batch number `index`, video only; depends on nothing but its arguments and the files.

        A place that turns out damaged is named in `damaged` and the next video takes its turn, the same one every time.
        All of a crop counts: the teacher will encode it alone, so its borders are real ones.
        """
        clips = [self._clip_at(seed, i) for i in range(index * batch_size, (index + 1) * batch_size)[part]]
        if crop is not None:
            places = replace(crop, margin=0).places(seed, index, batch_size, self.size)[part]
            clips = [clip[..., *place.pixels] for clip, place in zip(clips, places, strict=True)]
        return Batch(torch.stack(clips))

    def names_at(self, seed: int, index: int, batch_size: int, part: slice = WHOLE) -> list[str]:
        """The clips of that batch, for people."""
        names = []
        for i in range(index * batch_size, (index + 1) * batch_size)[part]:
            turns = [(info, start) for info, start, _ in self._turns(seed, i) if str(info.path) not in self.damaged]
            names += [f"{info.path} from frame {start}" for info, start in turns[:1]]
        return names

    def _turns(self, seed: int, i: int) -> Iterator[tuple[VideoInfo, int, random.Random]]:
        """Where clip `i` may come from, the first that can be read: video, first frame, and what the rest is drawn from."""
        first = item_at(seed, i, len(self.videos))
        for turn in range(len(self.videos)):
            info = self.videos[(first + turn) % len(self.videos)]
            rng = random.Random(f"clip/{seed}/{i}/{turn}")  # noqa: S311 - reproducible, not secret
            yield info, rng.randrange(info.num_frames - (self.frames - 1) * self.stride), rng

    def _clip_at(self, seed: int, i: int) -> Tensor:
        for info, start, rng in self._turns(seed, i):
            crop = (rng.random(), rng.random())
            try:
                clip = read_clip(info, self.frames, self.size, start=start, stride=self.stride, crop=crop)
            except VideoError as error:
                self.damaged[str(info.path)] = error.what
                continue
            return clip.flip(-1) if rng.random() < 0.5 else clip
        raise VideoError("no video can be read any more", "; ".join(list(self.damaged.values())[:3]))


class DeviceCopies:
    """Brings batches to the device from the threads that read them, beside what the device computes meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Batch) -> Batch:
        """A batch on the device, complete when this returns; from any thread."""
        if self._stream is None:
            return batch.map(lambda tensor: tensor.to(self.device))
        with torch.cuda.stream(self._stream):
            moved = batch.map(lambda tensor: tensor.pin_memory().to(self.device, non_blocking=True))
        self._stream.synchronize()
        return moved

    def take(self, batch: Batch) -> Batch:
        """The same batch for use on the current stream: until that is done with it, its memory goes to no other copy."""
        if self._stream is not None:
            for tensor in batch.tensors:
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return batch


class Waited(Iterator[Item]):
    """An iterator that counts the seconds its consumer waited for the next item."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self.seconds = 0.0

    def __next__(self) -> Item:
        began = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - began


def read_ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    is_quick: Callable[[Item], bool] = lambda _: False,
    patience_s: float | None = None,
    stalled: Callable[[Item, float], None] = lambda _item, _seconds: None,
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, work(item)) in order, with up to `workers` items worked on in threads ahead of the consumer.

    Of items that are quick, the work is done here: a thread would cost more. Calls `stalled` with the item and the seconds
    waited for it, every `patience_s` that it does not come.
    """
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        waiting: deque[tuple[Item, Future[Result] | None]] = deque()
        slow, most = 0, 8 * max(workers, 1)  # quick ones behind a slow one are not gathered without end

        def first() -> tuple[Item, Result]:
            item, future = waiting.popleft()
            if future is None:
                return item, work(item)
            began = time.monotonic()
            while wait([future], patience_s).not_done:
                stalled(item, time.monotonic() - began)
            return item, future.result()

        try:
            for item in items:
                waiting.append((item, None if is_quick(item) else pool.submit(work, item)))
                slow += waiting[-1][1] is not None
                while waiting and (waiting[0][1] is None or slow > workers or len(waiting) > most):
                    slow -= waiting[0][1] is not None
                    yield first()
            while waiting:
                yield first()
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()
