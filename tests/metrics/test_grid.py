"""`grid` reads the strength of a planted pattern in levels of 255, and 0 for every error that has no period."""

import math

import numpy as np
import pytest
import torch

from turbovaed_cli import load_pair
from turbovaed_cli.errors import ShapeError
from turbovaed_cli.evaluation.decoding import decode_clip
from turbovaed_cli.metrics import grid
from turbovaed_cli.metrics.grid import grid_of, grid_of_all, lattice_of
from turbovaed_cli.video import to_model

LEVEL = 1 / 127.5  # of 8 bits, in units of [-1, 1]


def content(frames: int = 3, height: int = 96, width: int = 128, seed: int = 0) -> torch.Tensor:
    """Smooth colours with an edge that moves."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 3, 5, 7, generator=generator)
    clip = torch.nn.functional.interpolate(coarse, size=(frames, height, width), mode="trilinear")[0] - 0.5
    for i in range(frames):
        clip[:, i, :, : 30 + 3 * i] += 0.3
    return clip


def noise(like: torch.Tensor, levels: float, seed: int = 1) -> torch.Tensor:
    return levels * LEVEL * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def pattern(like: torch.Tensor, period: int, seed: int = 2, offset: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """A random tile of root mean square 1 level and mean 0, repeated over the picture."""
    tile = torch.randn(3, 1, period, period, generator=torch.Generator().manual_seed(seed))
    tile -= tile.mean(dim=(-2, -1), keepdim=True)
    tile /= tile.square().mean().sqrt()
    rows, columns = (torch.arange(side) + start for side, start in zip(like.shape[-2:], offset, strict=True))
    return LEVEL * tile[..., rows % period, :][..., columns % period].expand(like.shape)


@pytest.mark.parametrize("period", [2, 4, 8, 16])
@pytest.mark.parametrize("offset", [(0, 0), (3, 5)])
def test_a_planted_grid_counts_its_root_mean_square_at_any_offset(period, offset):
    source = content()
    for levels in (0.5, 2.0, 8.0):
        planted = levels * pattern(source, period, offset=offset)
        assert grid(source + planted, source) == pytest.approx(levels, rel=0.02)
        assert grid(source + planted + 0.2, source) == pytest.approx(levels, rel=0.02)
        assert grid(source + planted + noise(source, levels), source) == pytest.approx(levels, rel=0.15)


def test_a_grid_of_32_pixels_is_seen_in_frames_of_128():
    source = content(height=128)
    assert lattice_of(source) == 32
    assert grid(source + 3 * pattern(source, 32), source) == pytest.approx(3, rel=0.02)


def test_the_value_rises_with_the_strength():
    source = content()
    error = noise(source, 4)
    values = [grid(source + error + levels * pattern(source, 8), source) for levels in (0, 0.5, 1, 2, 4, 8)]
    assert values == sorted(values) and values[0] < 0.2 and values[-1] == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize("size", [(96, 128), (100, 131), (33, 70), (64, 64)])
def test_sizes_that_are_no_multiple_of_the_lattice_read_the_same(size):
    source = content(height=size[0], width=size[1])
    assert grid(source + 3 * pattern(source, 8, offset=(1, 2)), source) == pytest.approx(3, rel=0.05)


def test_errors_without_a_period_count_nothing():
    source = content()
    assert grid(source, source) == 0
    assert grid(source + 0.3, source) == pytest.approx(0, abs=1e-5)
    assert grid(source * 0.8, source) < 0.05  # contrast
    assert grid(source.roll(1, dims=-1), source) < 0.05  # moved edges, and a column at the border
    assert grid(source + torch.linspace(0, 0.3, source.shape[-1]), source) < 0.02
    for levels in (1, 8, 30):
        assert grid(source + noise(source, levels), source) < 0.02 * levels
    step = torch.zeros_like(source)
    step[..., 37:] = 10 * LEVEL
    assert grid(source + step, source) < 0.1
    rows = torch.sin(torch.arange(96) * 2 * math.pi / 11)[:, None]  # a period that is no power of two
    assert grid(source + 5 * LEVEL * rows, source) < 0.3


def test_a_pattern_of_the_source_with_less_contrast_is_no_grid():
    """A checkerboard of 8 pixels that a decoder blurs has an error of that period; it follows the content."""
    rows, columns = torch.arange(128)[:, None] // 4, torch.arange(128) // 4
    board = (((rows + columns) % 2) * 1.6 - 0.8).expand(3, 2, 128, 128)
    blurred = torch.nn.functional.avg_pool2d(board, 3, 1, 1, count_include_pad=False)
    assert (blurred - board).square().mean().sqrt() > 20 * LEVEL
    assert grid(blurred, board) < 0.5
    assert grid(board * 0.9, board) < 0.01
    assert grid(content(2, 128) + 3 * pattern(board, 8), content(2, 128)) == pytest.approx(3, rel=0.02)


def test_flickering_and_still_patterns_count_alike_and_a_part_counts_by_its_share():
    source = content(frames=4)
    signs = torch.tensor([1.0, -1, 1, -1]).view(1, 4, 1, 1)
    planted = 4 * pattern(source, 8)
    assert grid(source + signs * planted, source) == pytest.approx(grid(source + planted, source), rel=1e-3)
    red = planted.clone()
    red[1:] = 0
    alone = float(red.square().mean().sqrt()) / LEVEL  # over all three channels
    assert grid(source + red, source) == pytest.approx(alone, rel=0.02)
    flat = torch.zeros(3, 2, 256, 256)
    half = 4 * pattern(flat, 8)
    half[..., 128:] = 0
    assert grid(flat + half, flat) == pytest.approx(4 / math.sqrt(2), rel=0.15)


def test_it_equals_a_transform_that_is_summed_directly():
    """One block, so the definition is a sum over pixels at each of the few frequencies."""
    source = content(frames=2, height=16, width=16)
    video = source + noise(source, 3) + 5 * pattern(source, 4)
    error = ((video.double() - source.double()) * 127.5).numpy()
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(16) / 16)
    window = np.outer(hann, hann) / hann.sum() ** 2

    def power(row: int, column: int) -> float:
        wave = np.exp(-2j * np.pi * (row * np.arange(16)[:, None] + column * np.arange(16)) / 16)
        return float(np.mean(np.abs((error * window * wave).sum(axis=(-2, -1))) ** 2))

    total = 0.0
    for row in range(0, 16, 4):  # a period of 4 pixels
        for column in range(0, 16, 4):
            beside = max(
                (power(row, column - 2) + power(row, column + 2)) / 2, (power(row - 2, column) + power(row + 2, column)) / 2
            )
            total += max(power(row, column) - 2 * beside, 0) if row or column else 0
    assert grid(video, source) == pytest.approx(math.sqrt(total), rel=1e-9)


def test_the_folded_error_is_the_planted_tile():
    source = content(height=99, width=128)
    planted = 3 * pattern(source, 8)
    tile = grid_of(source + planted + 0.2, source, 8)
    assert tile.shape == (3, 3, 8, 8) and tile.dtype == torch.float64
    torch.testing.assert_close(tile.float() * LEVEL, planted[..., :8, :8], atol=1e-5, rtol=0)
    assert grid_of(source + planted, source).shape[-1] == lattice_of(source) == 16
    by_hand = np.zeros((8, 8))
    error = ((source + noise(source, 3)).double() - source.double())[0, 1].numpy() * 127.5
    for row in range(96):
        for column in range(128):
            by_hand[row % 8, column % 8] += error[row, column] / (12 * 16)
    found = grid_of(source + noise(source, 3), source, 8)[0, 1].numpy()
    np.testing.assert_allclose(found, by_hand - by_hand.mean(), atol=1e-9)


def test_small_frames_are_refused_and_equal_input_gives_equal_output():
    source = content(height=8, width=9)
    assert grid(source + 3 * pattern(source, 2), source) == pytest.approx(3, rel=0.05)
    with pytest.raises(ShapeError, match=r"grid needs 8x8 pixels at least; this is 9x7"):
        grid(source[..., :7, :], source[..., :7, :])
    with pytest.raises(ShapeError, match="no tile of 16x16"):
        grid_of(source, source, 16)
    large = content()
    values = {grid(large + noise(large, 3), large) for _ in range(3)}
    assert len(values) == 1


def test_the_embedded_student_leaves_no_texture_in_plain_blue():
    pair = load_pair("tiny")
    blue = np.empty((9, 128, 128, 3), np.uint8)
    blue[:] = (32, 64, 192)
    teacher, student = decode_clip(blue, pair)
    source, by_teacher, by_student = (to_model(frames) for frames in (blue, teacher, student))
    assert grid(by_student, source) < 0.7
    assert grid(by_student, source) < grid(by_teacher, source) + 0.2


def test_memory_does_not_grow_with_the_length_of_a_clip(monkeypatch):
    torch.manual_seed(0)
    source = torch.rand(3, 40, 16, 16) * 2 - 1
    video = (source + torch.randn_like(source) / 50).clamp(-1, 1)
    transform, lengths = torch.fft.rfft2, []
    monkeypatch.setattr(torch.fft, "rfft2", lambda x: lengths.append(x.shape[1]) or transform(x))
    value = grid(video, source)
    assert max(lengths) <= 16 and sum(lengths) == 40 + 40  # of the source and of the error
    monkeypatch.setitem(grid.__globals__, "_FRAMES_AT_ONCE", 40)
    assert grid(video, source) == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_videos_of_one_source_score_together_as_alone():
    source = content()
    videos = [source + 2 * pattern(source, 4), source + noise(source, 3), source]
    assert grid_of_all(videos, source) == [grid(video, source) for video in videos]
    assert grid_of_all(videos, source)[0] == pytest.approx(2, rel=0.02)
