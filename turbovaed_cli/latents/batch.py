"""Batches of clips, and the crops that are cut from them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The position of a crop in its clip, as (rows, columns) of latents and of pixels, and the window of it that losses use."""

    latents: tuple[slice, slice]
    pixels: tuple[slice, slice]
    window: tuple[slice, slice]


@dataclass(frozen=True)
class Crop:
    """Crops of (height, width) latents at random places, `ratio` pixels to a latent.

    Latents near a cut were encoded from pixels beyond it, but the student pads there with zeros. So `margin` latents along
    each cut are context only, and losses use the window that is left.
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
        """Draw a place in a clip of (height, width) latents."""
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
        """Return the places of the crops of batch number `index`, in clips of (height, width) pixels."""
        rng = random.Random(f"crop/{seed}/{index}")
        return [self.place(rng, (clip[0] // self.ratio, clip[1] // self.ratio)) for _ in range(batch_size)]


def _span(rng: random.Random, length: int, whole: int, margin: int) -> tuple[slice, slice]:
    """Draw (slice to cut out of `whole`, its window). The clip's borders are drawn as often as its middle; windows reach them."""
    window = length - 2 * margin
    first = min(max(rng.randrange(1 - window, whole), 0), whole - window)
    start = min(max(first - margin, 0), whole - length)
    return slice(start, start + length), slice(first - start, first - start + window)


def _times(span: slice, ratio: int) -> slice:
    return slice(span.start * ratio, span.stop * ratio)


@dataclass(frozen=True)
class Batch:
    """The input of one training step: video (B, 3, T, H, W) in [-1, 1]; mean and std (B, C, t, h, w), None if not encoded yet."""

    video: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    windows: tuple[tuple[slice, slice], ...] | None = None  # per clip, the rows and columns of pixels that losses use; None: all
    noise: Tensor | None = None  # standard normal (B, C, t, h, w), if the posterior is sampled
    looked_at: tuple[int, ...] | None = None  # pixel frames that the perceptual loss uses; None: all

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that are not None."""
        return [tensor for tensor in (self.video, self.mean, self.std, self.noise) if tensor is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `change` applied to video (B, 3, T, H, W) and to mean, std and noise (B, C, t, h, w) or None."""
        mean, std, noise = (None if tensor is None else change(tensor) for tensor in (self.mean, self.std, self.noise))
        return replace(self, video=change(self.video), mean=mean, std=std, noise=noise)

    def counted(self, video: Tensor) -> Tensor:
        """Return the window of each clip of `video` (B, 3, T, H, W) that losses use, (B, 3, T, H', W'); without windows all."""
        if self.windows is None:
            return video
        return torch.stack([clip[..., rows, columns] for clip, (rows, columns) in zip(video, self.windows, strict=True)])


ALL_CLIPS = slice(None)  # every clip of a batch; with several processes each reads its part


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_items: int) -> list[int]:
    order = list(range(num_items))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)
    return order


def item_at(seed: int, index: int, num_items: int) -> int:
    """Return item number `index` of an endless stream that reshuffles `num_items` in every epoch: a function without state."""
    return _order(seed, index // num_items, num_items)[index % num_items]
