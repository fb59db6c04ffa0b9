"""Banding: plateaus with steps between them, where the source is a smooth gradient.

Coarse numbers in a decoder (8-bit weights, bf16) make contours in a sky. The error is small, and noise of the same size does not
show; so plateaus and steps are what is counted. A source of 8 bits has steps of one level itself, which are no defect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.metrics.pixels import HALF_RANGE

MIN_SIDE = 16  # pixels
_REACH = 8  # pixels on each side that must be smooth
_LEAST_RUN = 3  # pixels of a plateau
_LEAST_STEP = 2  # levels
_CALM = 8  # a step is this many times the mean change that the median makes next to it
_LEAST_SHARE = 0.01  # of all pixels: a smaller smooth area counts as if it had this share
_FRAMES = 8  # frames that are looked at, evenly spread: gradients last longer than a frame


def banding(video: Tensor, source: Tensor) -> float:
    """Return the mean height of bands where the source is a smooth gradient, in levels of 255.

    Both (3, T, H, W) in [-1, 1], rounded to 8 bits; from 0 (none) to 255, lower is better. A smooth gradient that is rounded to
    every fourth level counts 4, and less where its bands are narrow. Noise, dither, blur, a constant error and flat areas
    count 0, and so does a source without a smooth gradient.

    Definition, for R, G and B of up to 8 frames, along rows and columns, after a median of 3x3 pixels (of both clips): the source
    is a smooth gradient at a pixel if it changes over the 8 pixels on each side, and its differences there stay within one
    level of each other. The height at such a pixel is the mean of the steps at the ends of its plateau. A plateau is 3 or
    more equal pixels; a step is 2 levels or more, between two plateaus, in the direction of the source's gradient, where the
    median changes the 5x5 pixels on each side by at most an eighth of the step (dither changes more). Of rows and columns the
    larger counts. The sum is divided by the number of pixels where the source is smooth, or by 1 % of all if that is more.
    A smooth source has no such steps itself. NaN for clips with values that are not finite. Raises ShapeError below 16x16 pixels.
    """
    return banding_of_all([video], source)[0]


def banding_of_all(videos: Sequence[Tensor], source: Tensor) -> list[float]:
    """Return `banding` of each video; where the source is smooth is found once."""
    height, width = source.shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise ShapeError(f"banding needs {MIN_SIDE}x{MIN_SIDE} pixels at least; this is {width}x{height}", "use a larger `size`")
    is_finite = [bool((video - source).isfinite().all()) for video in videos]  # integers hold no other values
    chosen = _spread(source.shape[1], _FRAMES)
    totals, area = [0.0] * len(videos), 0
    for frame in chosen if any(is_finite) else ():
        levels = _Picture.of(source[:, frame]).levels
        along_rows, along_columns = _direction(levels), _direction(levels.mT.contiguous())
        area += int(((along_rows != 0) | (along_columns != 0).mT).sum())
        for i, video in enumerate(videos):
            if is_finite[i]:
                decoded = _Picture.of(video[:, frame])
                heights = torch.maximum(_heights(decoded, along_rows), _heights(decoded.turned, along_columns).mT)
                totals[i] += float(heights.sum(dtype=torch.float64))
    least = _LEAST_SHARE * 3 * len(chosen) * height * width
    return [total / max(area, least) if finite else math.nan for total, finite in zip(totals, is_finite, strict=True)]


def _spread(length: int, count: int) -> Sequence[int]:
    return range(length) if length <= count else [i * (length - 1) // (count - 1) for i in range(count)]


@dataclass(frozen=True)
class _Picture:
    """One frame as levels 0 to 255 by a median of 3x3 pixels, so that a lone pixel splits no plateau, and what it changed."""

    levels: Tensor  # (3, H, W) int16
    unrest: Tensor  # (3, H, W) fp32: the mean change of the 5x5 pixels around each

    @classmethod
    def of(cls, frame: Tensor) -> "_Picture":
        """Return the picture of a frame (3, H, W) in [-1, 1]."""
        levels = ((frame.float() + 1) * HALF_RANGE).round()
        height, width = levels.shape[-2:]
        padded = functional.pad(levels, (1, 1, 1, 1), mode="replicate").to(torch.int16)
        low, middle, high = _sorted(*(padded[:, i : i + height] for i in range(3)))  # of each column of three
        lows, middles, highs = ([x[..., i : i + width] for i in range(3)] for x in (low, middle, high))
        # The median of nine is the median of: the largest low, the median of the middles, the smallest high.
        median = _sorted(_sorted(*lows)[2], _sorted(*middles)[1], _sorted(*highs)[0])[1]
        unrest = functional.avg_pool2d((levels - median).abs(), 5, 1, 2, count_include_pad=False)
        return cls(median, unrest)

    @property
    def turned(self) -> "_Picture":
        """The picture with rows and columns exchanged."""
        return _Picture(self.levels.mT.contiguous(), self.unrest.mT.contiguous())


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return torch.minimum(low, c), torch.maximum(low, torch.minimum(high, c)), torch.maximum(high, c)


def _direction(levels: Tensor) -> Tensor:
    """Return the sign of the gradient along the last dimension of a source (3, H, W) where it is smooth; 0 elsewhere."""
    steps = levels.diff(dim=-1).float()
    size = 2 * _REACH
    # Differences of pixel x - 8 to x + 8 are at places x - 8 to x + 7; outside the picture is nothing.
    padded = functional.pad(steps, (_REACH, _REACH), value=-torch.inf), functional.pad(-steps, (_REACH, _REACH), value=-torch.inf)
    largest, smallest = functional.max_pool1d(padded[0], size, 1), -functional.max_pool1d(padded[1], size, 1)
    places = torch.arange(levels.shape[-1], device=levels.device)
    before, after = (places - _REACH).clamp(min=0), (places + _REACH).clamp(max=levels.shape[-1] - 1)
    slope = levels[..., after] - levels[..., before]
    return slope.sign() * (largest - smallest <= 1)


def _heights(picture: _Picture, direction: Tensor) -> Tensor:
    """Return the mean step at the ends of each pixel's plateau, (3, H, W); 0 where `direction` is 0 or there is none.

    `direction` is the sign of the source's gradient at each pixel of a smooth place.
    """
    lines = (direction != 0).any(dim=-1)  # the others have none
    heights = torch.zeros_like(picture.unrest)
    heights[lines] = _heights_along(picture.levels[lines], picture.unrest[lines], direction[lines])
    return heights


def _heights_along(levels: Tensor, all_unrest: Tensor, direction: Tensor) -> Tensor:
    """Return `_heights` of single lines, all (n, W)."""
    length = levels.shape[-1]
    is_new = functional.pad(levels.diff(dim=-1) != 0, (1, 0), value=True)
    places = torch.arange(length, device=levels.device).expand(levels.shape)
    first = torch.where(is_new, places, 0).cummax(dim=-1).values  # of the plateau of each pixel
    is_last = functional.pad(is_new[..., 1:], (0, 1), value=True)
    last = torch.where(is_last, places, length - 1).flip(-1).cummin(dim=-1).values.flip(-1)
    is_long = last - first + 1 >= _LEAST_RUN
    jump = functional.pad(levels.diff(dim=-1), (1, 0))  # from the pixel before
    counts = is_long & functional.pad(is_long[..., :-1], (1, 0)) & (direction != 0)
    counts &= functional.pad(direction[..., :-1], (1, 0)) != 0
    counts &= (jump.abs() >= _LEAST_STEP) & (jump.sign() == direction)
    unrest = torch.maximum(all_unrest, functional.pad(all_unrest[..., :-1], (1, 0)))
    counts &= unrest * _CALM <= jump.abs()
    step = torch.where(counts, jump.abs(), 0)
    at_start = step.gather(-1, first)
    at_end = functional.pad(step, (0, 1)).gather(-1, last + 1)
    number = (at_start > 0).int() + (at_end > 0).int()
    return (at_start + at_end) / number.clamp(min=1) * (direction != 0)
