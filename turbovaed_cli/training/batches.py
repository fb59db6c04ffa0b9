"""Batches as functions of (seed, index), and their copies to the device."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from turbovaed_cli.errors import VideoError
from turbovaed_cli.latents.batch import ALL_CLIPS, Batch, Crop, item_at
from turbovaed_cli.video import VideoInfo, read_clip_uint8, sha256_of_video, to_model
from turbovaed_cli.video.drawn import draw_clip, kind_of, recoloured


@dataclass(frozen=True)
class Mix:
    """What becomes of the clips of videos: the share that get other colours, and the share of drawn clips among all."""

    augment: float = 0.0
    synthetic: float = 0.0


class VideoClips:
    """Random clips from videos, without a cache: place, start, flip, colours and drawn clips are functions of (seed, index)."""

    is_encoded = False  # its batches are for the teacher to encode

    def __init__(
        self,
        videos: Sequence[VideoInfo],
        frames: int,
        size: tuple[int, int],
        stride: int,
        damaged: dict[str, str] | None = None,
        mix: Mix = Mix(),
    ) -> None:
        self.videos = sorted(videos, key=lambda info: str(info.path))
        self.frames, self.size, self.stride, self.mix = frames, size, stride, mix
        self.damaged = {} if damaged is None else damaged  # videos that could not be read, and why; streams may share it

    @property
    def fingerprint(self) -> str:
        """A hash of the videos' bytes: it changes if a video changes, is added or removed; not if the folder moves."""
        return hashlib.sha256("".join(sha256_of_video(info.path) for info in self.videos).encode()).hexdigest()

    def batch_at(self, seed: int, index: int, batch_size: int, crop: Crop | None = None, part: slice = ALL_CLIPS) -> Batch:
        """Return `part` of batch number `index`, video (B, 3, T, H, W) only; it depends on its arguments and the files.

        A damaged video is recorded in `damaged`, and the next video takes its place, the same one every time. Losses use all
        of a crop: the teacher encodes the crop alone, so its borders are real ones. Raises VideoError if no video can be read.
        """
        clips = [self._clip_at(seed, i) for i in range(index * batch_size, (index + 1) * batch_size)[part]]
        if crop is not None:
            places = replace(crop, margin=0).places(seed, index, batch_size, self.size)[part]
            clips = [clip[..., *place.pixels] for clip, place in zip(clips, places, strict=True)]
        return Batch(torch.stack(clips))

    def names_at(self, seed: int, index: int, batch_size: int, part: slice = ALL_CLIPS) -> list[str]:
        """Return the names of the clips that `batch_at` returns for the same arguments, for messages."""
        names = []
        for i in range(index * batch_size, (index + 1) * batch_size)[part]:
            if self._is_drawn(seed, i):
                names.append(f"drawn clip {i} ({kind_of(f'{seed}/{i}')})")
                continue
            turns = [(info, start) for info, start, _ in self._turns(seed, i) if str(info.path) not in self.damaged]
            names += [f"{info.path} from frame {start}" for info, start in turns[:1]]
        return names

    def _is_drawn(self, seed: int, i: int) -> bool:
        return random.Random(f"synthetic/{seed}/{i}").random() < self.mix.synthetic

    def _turns(self, seed: int, i: int) -> Iterator[tuple[VideoInfo, int, random.Random]]:
        """Yield candidates for clip `i`, of which the first readable one is used: video, first frame, random generator."""
        first = item_at(seed, i, len(self.videos))
        for turn in range(len(self.videos)):
            info = self.videos[(first + turn) % len(self.videos)]
            rng = random.Random(f"clip/{seed}/{i}/{turn}")
            yield info, rng.randrange(info.num_frames - (self.frames - 1) * self.stride), rng

    def _clip_at(self, seed: int, i: int) -> Tensor:
        """Return clip number `i`, (3, T, H, W) in [-1, 1]."""
        if self._is_drawn(seed, i):
            return to_model(draw_clip(f"{seed}/{i}", self.frames, self.size))
        for info, start, rng in self._turns(seed, i):
            crop = (rng.random(), rng.random())
            try:
                clip = read_clip_uint8(info, self.frames, self.size, start=start, stride=self.stride, crop=crop)
            except VideoError as error:
                self.damaged[str(info.path)] = error.what
                continue
            clip = clip[:, :, ::-1] if rng.random() < 0.5 else clip
            if random.Random(f"augment/{seed}/{i}").random() < self.mix.augment:
                clip = recoloured(f"{seed}/{i}", clip)
            return to_model(clip)
        raise VideoError("no video can be read any more", "; ".join(list(self.damaged.values())[:3]))


class DeviceCopies:
    """Copies batches to the device from the threads that read them, while the device computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Batch) -> Batch:
        """Return a batch on the device, in the same shapes, complete when this returns; may be called from any thread."""
        if self._stream is None:
            return batch.map(lambda tensor: tensor.to(self.device))
        with torch.cuda.stream(self._stream):
            moved = batch.map(lambda tensor: tensor.pin_memory().to(self.device, non_blocking=True))
        self._stream.synchronize()
        return moved

    def take(self, batch: Batch) -> Batch:
        """Return the same batch for use on the current stream, which keeps its memory from other copies until it is done."""
        if self._stream is not None:
            for tensor in batch.tensors:
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return batch


class ClipStream(Protocol):
    """An endless stream of batches, each a function of (seed, index): a latent cache or plain videos."""

    is_encoded: bool  # whether its batches have latents
    damaged: dict[str, str]  # videos that could not be read during the run, and why

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of each clip in pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash that changes when the data changes."""
        ...

    def batch_at(self, seed: int, index: int, batch_size: int, crop: Crop | None = None, part: slice = ALL_CLIPS) -> Batch:
        """Return `part` of batch number `index`, cut to `crop`, in the shapes of Batch."""
        ...

    def names_at(self, seed: int, index: int, batch_size: int, part: slice = ALL_CLIPS) -> list[str]:
        """Return the names of the clips that `batch_at` returns for the same arguments, for messages."""
        ...

    @property
    def frames(self) -> int:
        """Pixel frames of each clip."""
        ...
