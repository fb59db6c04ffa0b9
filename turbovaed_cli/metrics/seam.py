"""Seam: the error that jumps along a whole line, at the border of a tile in space or of a window in time.

A decoder that works in tiles or windows makes errors that differ from one piece to the next. The error then jumps across a
straight line: between two rows, two columns or two frames. The place need not be known: a seam stands out from the lines next
to it, from the lines at the same place of the upsampling lattice, and from what the source does there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.metrics.pixels import HALF_RANGE

MIN_SIDE = 32  # pixels
_PARTS = 16  # of a line, each averaged alone; _BLOCKS x _BLOCKS of a frame
_BLOCKS = 8
_FRAMES = 8  # averaged before jumps are squared: tiles stay where they are
_MARGIN = 2  # a line counts by its squared jump over this many times the next lines': the ratio that chance does not reach
_LEAST_NEAR = 2  # lines that a line must be compared with: fewer say nothing of chance


@dataclass(frozen=True)
class Borders:
    """Known borders: each number is the first row, column or frame after one."""

    rows: Sequence[int] = ()
    columns: Sequence[int] = ()
    frames: Sequence[int] = ()


@dataclass(frozen=True)
class _Search:
    """How lines of one direction are compared."""

    near: int  # lines on each side that a seam must exceed,
    skipped: int  # without the nearest, an eighth of all at most: a tile's padding disturbs several lines
    edge: int  # lines at the ends that are not searched, a quarter at most: errors at a picture's own border are no seam
    reach: int  # lines around an edge of the source where a jump counts as content
    periods: tuple[int, ...]  # lattices of upsampling, in lines


_IN_SPACE = _Search(near=16, skipped=8, edge=16, reach=2, periods=(2, 4, 8, 16, 32))
_IN_TIME = _Search(near=4, skipped=2, edge=1, reach=4, periods=(2, 4, 8))


def seam(video: Tensor, source: Tensor, borders: Borders | None = None) -> float:
    """Return the jump of the error across the strongest seam, in levels of 255: root mean square over channels, median of its parts.

    Both (3, T, H, W) in [-1, 1]; from 0 (none) to 510, lower is better. A step of A levels in all channels along one row, column
    or frame counts A, and less by the root of its share if only some channels have it; the line need not be straight through
    the whole picture, but through more than half. Noise, gradual errors, cuts and edges of the source count about 0, and so does
    what repeats every 2 to 32 lines (every 2 to 8 frames): that is `grid`. So tiles of 32 pixels or less need `borders`, as do
    seams in the outer 16 pixels (a quarter of a small frame). With `borders`, only those lines count, lattice or not.

    Definition: the error is averaged over 8 frames and each sixteenth of a line (over blocks of a frame, for jumps in time).
    A line's jump is the difference across it minus the mean of the differences one line before and after. It is squared; the
    source's own at a distance of up to 2 lines (4 frames) is subtracted; the median over parts is the line's value. What is
    above twice the largest value of the lines 9 to 16 away (frames: 3 and 4), and above the median of the lines at the same
    place of a lattice, counts; for known borders, what is above the median of the former. Small clips compare with nearer
    lines. NaN for clips with values that are not finite. Raises ShapeError below 32x32 pixels, and for a border outside the clip.
    """
    if min(video.shape[-2:]) < MIN_SIDE:
        height, width = video.shape[-2:]
        raise ShapeError(f"seam needs {MIN_SIDE}x{MIN_SIDE} pixels at least; this is {width}x{height}", "use a larger `size`")
    known = (borders.rows, borders.columns, borders.frames) if borders else (None, None, None)
    found = [0.0]
    for of_error, of_source, search, lines in zip(
        _profiles(video, source), _profiles(source), (_IN_SPACE, _IN_SPACE, _IN_TIME), known, strict=True
    ):
        length = of_error.shape[-1]
        if lines is not None and any(not 0 < line < length for line in lines):
            raise ShapeError(f"a border at {max(lines)} is outside the clip of {length}", "each is the first line after a border")
        if length > 2:  # one jump has no slope next to it
            found.append(_strongest(of_error, of_source, search, lines))
    return max(found) if bool((video - source).isfinite().all()) else math.nan  # a median passes over NaN


def _profiles(video: Tensor, source: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return means over parts of rows (N, parts, H), of columns (N, parts, W) and of frames (3, blocks, T), in levels.

    Of the error if there is a source, else of the video; N is 3 channels times groups of frames.
    """
    rows, columns, frames = [], [], []
    for start, end in _pieces(video.shape[1], max(round(video.shape[1] / _FRAMES), 1)):
        group = video[:, start:end].double()
        group = (group - (source[:, start:end].double() if source is not None else 0)) * HALF_RANGE  # (3, t, H, W)
        still = group.mean(dim=1)
        rows.append(_means(still, _PARTS).mT)
        columns.append(_means(still.mT, _PARTS).mT)
        frames.append(_means(_means(group, _BLOCKS).mT, _BLOCKS).flatten(-2).mT)  # (3, 64, t)
    return torch.cat(rows), torch.cat(columns), torch.cat(frames, dim=-1)


def _pieces(length: int, count: int) -> list[tuple[int, int]]:
    """Cut a length into `count` pieces that differ by 1 at most: (start, end) of each."""
    return [(i * length // count, (i + 1) * length // count) for i in range(count)]


def _means(x: Tensor, count: int) -> Tensor:
    """Return the means of `count` parts of the last dimension: (..., L) to (..., count)."""
    return torch.stack([x[..., start:end].mean(dim=-1) for start, end in _pieces(x.shape[-1], count)], dim=-1)


def _strongest(of_error: Tensor, of_source: Tensor, search: _Search, lines: Sequence[int] | None) -> float:
    """Return the strongest seam of one direction, from profiles (N, parts, lines); 0 without one."""
    jumps, content = _jumps(of_error), _jumps(of_source)  # (parts, L - 1): place i is between lines i and i + 1
    content = functional.max_pool1d(content, 2 * search.reach + 1, stride=1, padding=search.reach)
    values = (jumps - content).clamp(min=0).median(dim=0).values
    everything = jumps.median(dim=0).values  # a lattice has the same jumps where the source hides some of them
    places = torch.arange(len(values), device=values.device)
    skipped = max(min(search.skipped, len(values) // 8), 1)  # a jump bends the slope of the next line at least
    if lines is not None:
        chosen = torch.tensor([line - 1 for line in lines], dtype=torch.long, device=values.device)
        near = _near(values, torch.isin(places, chosen, invert=True), search.near, skipped)
        limit = near.nanmedian(dim=1).values.nan_to_num(0)
        excess = (values - limit)[chosen]
    else:
        edge = min(search.edge, len(values) // 4)
        inside = (places >= edge) & (places < len(places) - edge)
        near = _near(values, inside, search.near, skipped)
        limit = _MARGIN * near.nan_to_num(0).amax(dim=1)
        limit[(~near.isnan()).sum(dim=1) < _LEAST_NEAR] = torch.inf
        excess = (values - torch.maximum(limit, _of_lattice(everything, inside, search)))[inside]
    return float(excess.max().clamp(min=0).sqrt()) if len(excess) else 0.0


def _jumps(profile: Tensor) -> Tensor:
    """Return the squared jumps (parts, L - 1) of a profile (N, parts, L), mean over N, without the slope next to each."""
    steps = profile.diff(dim=-1)
    around = functional.pad(steps, (1, 1), mode="reflect")  # an end has one neighbour, which counts twice
    return (steps - (around[..., :-2] + around[..., 2:]) / 2).square().mean(dim=0)


def _near(values: Tensor, allowed: Tensor, near: int, skipped: int) -> Tensor:
    """Return for each line the values of lines up to `near` away, (L, 2 near + 1): NaN for itself, the next `skipped` and others."""
    padded = functional.pad(torch.where(allowed, values, torch.nan), (near, near), value=torch.nan)
    windows = padded.unfold(0, 2 * near + 1, 1).clone()
    windows[:, near - skipped : near + skipped + 1] = torch.nan
    return windows


def _of_lattice(values: Tensor, allowed: Tensor, search: _Search) -> Tensor:
    """Return for each line the median of the other lines at the same place of a lattice: the largest over all lattices."""
    found = torch.zeros_like(values)
    for period in search.periods:
        for phase in range(min(period, len(values))):
            places = torch.arange(phase, len(values), period, device=values.device)
            places = places[allowed[places]]
            if len(places) > 2:
                others = ~torch.eye(len(places), dtype=torch.bool, device=values.device)
                same = values[places].expand(len(places), -1)[others].unflatten(0, (len(places), -1))
                found[places] = torch.maximum(found[places], same.median(dim=1).values)
    return found
