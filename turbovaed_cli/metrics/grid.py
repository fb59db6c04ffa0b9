"""Grid: the error that repeats at the lattice of a decoder's upsampling, which PSNR hardly counts and which eyes see first.

An upsampling decoder of space ratio r can leave the same little pattern in every r x r pixels. In the spectrum of the error
such a pattern is lines: all its energy is at multiples of 1/r of the sampling rate, horizontally, vertically and both. Noise
and errors that follow the content fill the spectrum smoothly. So a line counts by how far it stands above its neighbours.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.metrics.pixels import HALF_RANGE

MIN_SIDE = 8  # pixels: four periods of the smallest lattice
_BLOCK = 128  # pixels a side, at most: local enough for a pattern in a part of the picture
_PERIODS = 4  # of a lattice in a block at least: a window of Hann spreads a line over the next frequency, so lines need room
_FRAMES_AT_ONCE = 16  # of a block: in fp64 all steps of a frame take 2.5 MB
_MARGIN = 2  # a line counts by its power over this many times its neighbours': the ratio that chance does not reach


def grid(video: Tensor, source: Tensor) -> float:
    """Return the periodic error at the upsampling lattice: its root mean square over pixels and channels, in levels of 255.

    Both (3, T, H, W) in [-1, 1]; from 0 (none) to 255, lower is better. A pattern that repeats every 2, 4, 8, 16 or 32
    pixels in all of the picture counts its root mean square, in a part of it less by the root of that share, at any offset. Still
    and flickering patterns count alike. A constant error, noise and errors without a period count 0. So does
    an error that follows a pattern of the source with the same period. Lattices go up to a quarter of the shorter side.

    Definition: blocks of up to 128 pixels, half overlapping, with a Hann window; the power of the error's discrete Fourier
    transform, mean over blocks, frames and channels. The sum over lattice frequencies, without the constant, of what
    is above twice the mean of the two neighbours in a row or a column, whichever is larger. Raises ShapeError below 8x8 pixels.
    """
    return grid_of_all([video], source)[0]


def grid_of_all(videos: Sequence[Tensor], source: Tensor) -> list[float]:
    """Return `grid` of each video; the spectra of the source are computed once."""
    return [_lines(*spectra) for spectra in _spectra(videos, source)]


def _lines(power: Tensor, source_power: Tensor, explained: Tensor) -> float:
    # What the error has in common with the source counts as content only where the source has a line of its own.
    is_content = source_power > _MARGIN * _neighbours(source_power)
    lines = torch.where(is_content, power - explained, power) - _MARGIN * _neighbours(power)
    lattice = lines[::2, ::2].clamp(min=0)
    lattice[0, 0] = 0
    return float(lattice.sum().sqrt())


def grid_of(video: Tensor, source: Tensor, period: int = 0) -> Tensor:
    """Return the error folded over the lattice: (3, T, P, P) fp64 in levels of 255, the mean over all tiles of P x P pixels.

    Both clips (3, T, H, W) in [-1, 1]. `period` is P; 0 takes `lattice_of`. Each channel of each frame has mean 0. Tiles are
    counted from the top left; rows and columns that do not fill a tile are left out. Repeated over a picture this is its
    periodic error, for pages; `grid` says how much of it stands above chance. Raises ShapeError for a picture smaller than P.
    """
    period = period or lattice_of(video)
    rows, columns = (side // period for side in video.shape[-2:])
    if not rows or not columns:
        raise ShapeError(f"no tile of {period}x{period} pixels fits into {_size(video)}", "use a larger `size`")
    area = (..., slice(rows * period), slice(columns * period))
    error = (video[area].double() - source[area].double()) * HALF_RANGE
    tile = error.unflatten(-1, (columns, period)).unflatten(-3, (rows, period)).mean(dim=(-4, -2))  # (3, T, P, P)
    return tile - tile.mean(dim=(-2, -1), keepdim=True)


def lattice_of(video: Tensor) -> int:
    """Return the largest period that `grid` sees in a clip (3, T, H, W), in pixels: 2, 4, 8, 16 or 32.

    Raises ShapeError below 8x8 pixels.
    """
    side = min(video.shape[-2:])
    if side < MIN_SIDE:
        raise ShapeError(f"grid needs {MIN_SIDE}x{MIN_SIDE} pixels at least; this is {_size(video)}", "use a larger `size`")
    return min(_BLOCK, 2 ** (side.bit_length() - 1)) // _PERIODS


def _size(video: Tensor) -> str:
    return f"{video.shape[-1]}x{video.shape[-2]}"


def _spectra(videos: Sequence[Tensor], source: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return, of each video, the power of the error, that of the source, and the part of the former that is a multiple of the source.

    Each (2P, 2P), mean over blocks, frames and channels, at multiples of 1/2P of the sampling rate: lattice frequencies are at
    even places, and the neighbours that the window keeps free of them at odd ones.
    """
    period = lattice_of(source)
    block, bins = period * _PERIODS, period * 2
    window = torch.hann_window(block, dtype=torch.float64).to(source.device)
    window = (window / window.sum())[:, None] * (window / window.sum()) * HALF_RANGE
    # Pixels are real: the other half of a spectrum mirrors this one.
    powers = torch.zeros(1 + len(videos), bins, bins // 2 + 1, dtype=torch.float64).to(source.device)
    common = torch.zeros(len(videos), bins, bins // 2 + 1, dtype=torch.complex128).to(source.device)
    count = 0
    for rows, columns in _blocks(source.shape[-2], source.shape[-1], block):
        for first in range(0, source.shape[1], _FRAMES_AT_ONCE):
            part = (slice(None), slice(first, first + _FRAMES_AT_ONCE), rows, columns)
            original = source[part].double()
            images = [original, *(video[part].double() - original for video in videos)]
            folded = [_folded(_folded(x * window, -2), -1) for x in images]
            of_source, *of_errors = (torch.fft.rfft2(x).flatten(0, 1) for x in folded)  # each (3T, 2P, P + 1)
            for i, spectrum in enumerate((of_source, *of_errors)):
                powers[i] += (spectrum.real.square() + spectrum.imag.square()).sum(0)
            for i, spectrum in enumerate(of_errors):
                common[i] += (spectrum * of_source.conj()).sum(0)
            count += len(of_source)
    explained = common.abs().square() / powers[0].clamp(min=torch.finfo(torch.float64).tiny)
    source_power = _mirrored(powers[0]) / count
    return [
        (_mirrored(power) / count, source_power, _mirrored(share) / count)
        for power, share in zip(powers[1:], explained, strict=True)
    ]


def _folded(x: Tensor, dim: int) -> Tensor:
    """Return the sum of both halves, whose transform has every second frequency of that of the whole."""
    first, second = x.chunk(2, dim)
    return first + second


def _mirrored(half: Tensor) -> Tensor:
    """Return all of a power spectrum (n, n) from its columns 0 to n / 2: that of real values is the same at -k and k."""
    others = half[:, 1:-1].flip(1)
    return torch.cat([half, torch.cat([others[:1], others[1:].flip(0)])], 1)


def _blocks(height: int, width: int, block: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the blocks that cover a picture, each overlapping the next by half or more."""
    for top in _starts(height, block):
        for left in _starts(width, block):
            yield slice(top, top + block), slice(left, left + block)


def _starts(side: int, block: int) -> list[int]:
    steps = -(-2 * (side - block) // block)
    return [i * (side - block) // steps for i in range(steps + 1)] if steps else [0]


def _neighbours(power: Tensor) -> Tensor:
    """Return the mean power of the two neighbours in the row or in the column, whichever is larger.

    A hard edge in the error leaves a line of energy along one axis of the spectrum, so only neighbours on it are like it.
    """
    in_row, in_column = ((power.roll(1, dim) + power.roll(-1, dim)) / 2 for dim in (1, 0))
    return torch.maximum(in_row, in_column)
