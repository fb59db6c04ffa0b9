"""`seam` finds a planted step of the error and reads its height in levels of 255; content, noise and lattices are no seams."""

import math

import numpy as np
import pytest
import torch

from turbovaed_cli import load_pair
from turbovaed_cli.errors import ShapeError
from turbovaed_cli.metrics import seam
from turbovaed_cli.metrics.seam import Borders

LEVEL = 1 / 127.5  # of 8 bits, in units of [-1, 1]


def content(frames: int = 17, height: int = 96, width: int = 128) -> torch.Tensor:
    """Smooth colours, a straight edge over the whole width, one that moves, and a cut."""
    rows, columns = torch.arange(height)[:, None] / 30, torch.arange(width) / 40
    waves = [torch.sin(rows + a) * torch.cos(columns - a) for a in range(3)]
    clip = torch.stack(waves)[:, None].repeat(1, frames, 1, 1) * 0.4 - 0.2
    clip[..., height // 2 :, :] += 0.3
    for i in range(frames):
        clip[:, i, :, : 30 + i] += 0.2
    clip[:, 11:] = clip[:, 11:].flip(-1) * 0.7 + 0.2
    return clip


def noise(like: torch.Tensor, levels: float, seed: int = 1) -> torch.Tensor:
    return levels * LEVEL * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def with_step(video: torch.Tensor, levels: float, direction: str, at: int) -> torch.Tensor:
    """A step of the error of this height at one line: the tile or window after it is brighter."""
    stepped = video.clone()
    dim = {"frames": 1, "rows": 2, "columns": 3}[direction]
    stepped.narrow(dim, at, video.shape[dim] - at).add_(levels * LEVEL)
    return stepped


@pytest.mark.parametrize(("direction", "at"), [("rows", 32), ("rows", 61), ("columns", 64), ("columns", 77), ("frames", 5)])
def test_a_planted_step_counts_its_height(direction, at):
    source = content()
    known = Borders(**{direction: (at,)})
    for levels in (1, 4, 16):
        assert seam(with_step(source, levels, direction, at), source) == pytest.approx(levels, rel=0.02)
        assert seam(with_step(source, -levels, direction, at) + 0.1, source) == pytest.approx(levels, rel=0.02)
        noisy = with_step(source + noise(source, levels), levels, direction, at)
        assert seam(noisy, source) == pytest.approx(levels, rel=0.35)
        assert seam(noisy, source, known) == pytest.approx(levels, rel=0.2)


def test_the_value_rises_with_the_step_and_is_that_of_the_strongest():
    source = content()
    video = source + noise(source, 3)
    values = [seam(with_step(video, levels, "columns", 64), source) for levels in (0, 1, 2, 4, 8)]
    assert values == sorted(values) and values[0] < 0.3 and values[-1] == pytest.approx(8, rel=0.1)
    assert seam(with_step(with_step(source, 3, "rows", 40), 6, "columns", 64), source) == pytest.approx(6, rel=0.02)


def test_errors_without_a_seam_count_nothing():
    source = content()
    assert seam(source, source) == 0
    assert seam(source + 0.2, source) == pytest.approx(0, abs=1e-5)
    for levels in (1, 5, 20):
        assert seam(source + noise(source, levels), source) < 0.05 * levels
    ramp = torch.linspace(0, 0.4, source.shape[-1])
    assert seam(source + ramp, source) < 1e-3
    assert seam(source + ramp.square(), source) < 0.05
    assert seam(source + torch.linspace(0, 0.3, 17)[:, None, None], source) < 1e-3


def test_cuts_and_edges_of_the_source_are_no_seams():
    """Blur, lost contrast and ghosts jump where the source does."""
    source = content()
    blurred = torch.nn.functional.avg_pool2d(source, 5, 1, 2, count_include_pad=False)
    assert (blurred - source).abs().max() > 10 * LEVEL
    assert seam(blurred, source) < 0.3
    assert seam(source * 0.7, source) < 0.1
    ghost = source.clone()
    ghost[:, 1:] = 0.7 * source[:, 1:] + 0.3 * source[:, :-1]
    assert (ghost - source)[:, 11].abs().max() > 10 * LEVEL
    assert seam(ghost, source) < 0.1
    partial = source.clone()
    partial[..., 60:, :50] += 8 * LEVEL  # an edge through less than half of the picture
    assert seam(partial, source) < 0.1


@pytest.mark.parametrize("period", [2, 4, 8, 16])
def test_what_repeats_at_the_lattice_is_no_seam(period):
    source = content()
    tile = torch.randn(3, 1, period, period, generator=torch.Generator().manual_seed(period))
    planted = source + 4 * LEVEL * tile.repeat(1, 1, 96 // period, 128 // period).expand(source.shape)
    assert seam(planted, source) < 0.2
    weak = source + (planted - source) / 4
    assert seam(with_step(weak, 16, "columns", 63), source) == pytest.approx(16, rel=0.25)
    pulse = torch.zeros(17)
    pulse[1::4] = 5 * LEVEL  # latent frames of 4 pixel frames
    assert seam(source + pulse[:, None, None], source) < 0.1


def test_tiles_are_found_without_their_borders_and_narrow_ones_with_them():
    source = content(frames=2, height=160, width=160)
    wide, narrow = source.clone(), source.clone()
    for row in range(0, 160, 64):
        for column in range(0, 160, 64):
            wide[..., row : row + 64, column : column + 64] += ((row + 2 * column) // 64 % 3 - 1) * 3 * LEVEL
    assert 2 < seam(wide, source) < 7
    for column in range(0, 160, 16):
        narrow[..., column : column + 16] += column // 16 % 2 * 5 * LEVEL
    assert seam(narrow, source) < 0.1  # it repeats at the lattice of 16
    assert seam(narrow, source, Borders(columns=range(16, 160, 16))) == pytest.approx(5, rel=0.02)
    assert seam(narrow, source, Borders(rows=(64,), frames=(1,))) < 0.1


@torch.no_grad()
def test_the_embedded_student_in_tiles_has_a_seam_and_a_whole_decode_has_none_there():
    """Tiles without overlap: the padding of each disturbs several pixels on both sides of the border."""
    pair = load_pair("tiny")
    source = content(frames=5, height=96, width=128)
    latents = pair.teacher.encode(source[None]).mean
    whole = pair.student.decode(latents).sample[0]
    tiled = torch.cat([pair.student.decode(half).sample[0] for half in latents.chunk(2, dim=-1)], dim=-1)
    assert seam(tiled, source) > max(3, 2 * seam(whole, source))  # along other lines, a whole decode has its own errors
    assert seam(whole, source, Borders(columns=(64,))) < 1 and seam(tiled, source, Borders(columns=(64,))) > 3


def test_the_edge_of_the_picture_is_searched_only_if_it_is_named():
    source = content(frames=2)
    dark = with_step(source, 6, "rows", 93)
    assert seam(dark, source) < 0.1
    assert seam(dark, source, Borders(rows=(93,))) == pytest.approx(6, rel=0.02)


def test_one_channel_counts_by_its_share():
    source = content(frames=2)
    red = source.clone()
    red[0, :, 40:] += 6 * LEVEL
    assert seam(red, source) == pytest.approx(6 / 3**0.5, rel=0.02)


def test_it_equals_its_formula_for_a_known_border():
    """Plain loops over parts and lines, for one row of a clip of one group of frames."""
    source = content(frames=4, height=64, width=64)
    video = with_step(source + noise(source, 5), 9, "rows", 20)
    error, original = (((a.double() - b) * 127.5).mean(1).numpy() for a, b in ((video, source.double()), (source, 0.0)))

    def jump(values: np.ndarray, line: int, part: int) -> float:
        means = values[:, :, 4 * part : 4 * part + 4].mean(axis=2)
        step = means[:, line] - means[:, line - 1]
        around = (means[:, line - 1] - means[:, line - 2] + means[:, line + 1] - means[:, line]) / 2
        return float(np.mean((step - around) ** 2))

    def value(line: int) -> float:
        parts = [
            max(jump(error, line, part) - max(jump(original, near, part) for near in range(line - 2, line + 3)), 0)
            for part in range(16)
        ]
        return sorted(parts)[7]

    beside = [line for line in range(4, 37) if abs(line - 20) > 7]  # 63 lines: an eighth is left out
    wanted = value(20) - sorted(value(line) for line in beside)[(len(beside) - 1) // 2]
    assert seam(video, source, Borders(rows=(20,))) == pytest.approx(wanted**0.5, rel=1e-9)


def test_clips_that_are_too_small_and_borders_outside_are_refused():
    source = content(frames=1, height=40, width=32)
    assert seam(with_step(source, 5, "rows", 14), source) == pytest.approx(5, rel=0.05)
    for frames in range(1, 7):  # with too few frames to compare with, a change in time is none
        short = source.expand(3, frames, 40, 32)
        assert seam(short + noise(short, 10), short) < 1.5
    with pytest.raises(ShapeError, match="seam needs 32x32 pixels at least; this is 31x40"):
        seam(source[..., :31], source[..., :31])
    for outside in (0, 40):
        with pytest.raises(ShapeError, match="outside the clip of 40"):
            seam(source, source, Borders(rows=(outside,)))
    large = content()
    assert len({seam(with_step(large, 3, "rows", 50), large) for _ in range(3)}) == 1


def test_a_clip_with_nan_has_no_seam_value_rather_than_the_best_one():
    broken = torch.zeros(3, 3, 64, 64)
    broken[0, 1, 5, 5] = torch.nan
    assert math.isnan(seam(broken, torch.zeros_like(broken)))
    assert math.isnan(seam(broken, torch.zeros_like(broken), Borders(columns=(32,))))
