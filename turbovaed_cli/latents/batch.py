"""Batches of clips, and the crops that are cut from them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


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
        rng = random.Random(f"crop/{seed}/{index}")
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


ALL_CLIPS = slice(None)  # every clip of a batch; of several processes each reads its part


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_items: int) -> list[int]:
    order = list(range(num_items))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)
    return order


def item_at(seed: int, index: int, num_items: int) -> int:
    """The `index`-th item of an endless stream that shuffles `num_items` anew each time round: a function, no state."""
    return _order(seed, index // num_items, num_items)[index % num_items]
