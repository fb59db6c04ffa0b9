"""`banding` reads the height of planted steps in a smooth gradient, and nothing where the picture is noisy, blurred or textured."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.metrics import banding, psnr
from turbovaed_cli.metrics.banding import _Picture, banding_of_all

LEVEL = 1 / 127.5  # of 8 bits, in units of [-1, 1]


def rounded(levels: torch.Tensor) -> torch.Tensor:
    """Levels 0 to 255 as a clip in [-1, 1], rounded to 8 bits as every measured clip."""
    return levels.round().clamp(0, 255) * LEVEL - 1


def gradient(kind: str = "columns", frames: int = 2, height: int = 96, width: int = 160) -> torch.Tensor:
    """A smooth gradient in levels, (3, T, H, W): along the rows, the columns, a diagonal, or round a centre."""
    rows, columns = torch.arange(height)[:, None] * 1.0, torch.arange(width) * 1.0
    picture = {
        "rows": 20 + 1.2 * rows.expand(height, width),
        "columns": 20 + 1.1 * columns.expand(height, width),
        "diagonal": 20 + 0.6 * rows + 0.7 * columns,
        "radial": 220 - 1.2 * ((rows - height / 2) ** 2 + (columns - width / 2) ** 2).sqrt(),
    }[kind]
    return torch.stack([picture, 255 - picture, picture * 0.6 + 40])[:, None].repeat(1, frames, 1, 1)


def quantised(levels: torch.Tensor, step: float) -> torch.Tensor:
    return (levels / step).round() * step


def noise(like: torch.Tensor, levels: float) -> torch.Tensor:
    return levels * torch.randn(like.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["rows", "columns", "diagonal", "radial"])
def test_a_gradient_of_16_32_or_64_levels_counts_the_height_of_its_steps(kind):
    smooth = gradient(kind)
    source = rounded(smooth)
    values = [banding(rounded(quantised(smooth, step)), source) for step in (4, 8, 16)]
    assert values == sorted(values)
    for value, step in zip(values, (4, 8, 16), strict=True):
        assert 0.75 * step < value <= step


def test_identical_clips_and_the_source_s_own_steps_count_nothing():
    for kind in ("rows", "columns", "radial"):
        source = rounded(gradient(kind) * 0.2)  # plateaus of several pixels with steps of one level
        assert banding(source, source) == 0
    coarse = rounded(quantised(gradient(), 4))
    assert banding(coarse, coarse) == 0
    twice = rounded(quantised(gradient(frames=1) / 6, 2))
    assert banding(twice, rounded(gradient(frames=1) / 6)) == pytest.approx(2, abs=1.1)  # the least step that counts


def test_noise_dither_blur_and_offsets_are_no_banding():
    smooth = gradient("diagonal")
    source = rounded(smooth)
    for levels in (0.3, 1, 3, 10):
        assert banding(rounded(smooth + noise(smooth, levels)), source) < 0.02
    spread = torch.rand(smooth.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    dithered = rounded(quantised(smooth + 16 * spread, 16))
    banded = rounded(quantised(smooth, 16))
    assert psnr(dithered, source) < psnr(banded, source)  # by its size alone, dither is the larger error
    assert banding(dithered, source) < 0.5 < banding(banded, source) - 12
    assert banding(source.roll(3, dims=-1), source) < 0.02
    assert banding(rounded(smooth + 7), source) < 0.02
    blurred = torch.nn.functional.avg_pool2d(smooth, 7, 1, 3, count_include_pad=False)
    assert banding(rounded(blurred), source) < 0.02
    texture = 3 * torch.sin(torch.arange(160) * 2 * math.pi / 8)
    assert banding(rounded(smooth + texture), source) < 0.1


def test_flat_and_busy_sources_have_nowhere_to_show_it():
    flat = torch.full((3, 2, 64, 64), 100.0)
    stripes = flat + 8 * (torch.arange(64) // 8)
    assert banding(rounded(stripes), rounded(flat)) == 0
    busy = flat + noise(flat, 20)
    assert banding(rounded(quantised(busy, 16)), rounded(busy)) < 0.1


def test_a_little_jitter_does_not_hide_the_steps():
    """A decoder's plateaus are not exact: one level up or down in every tenth pixel."""
    smooth = gradient()
    lone = torch.rand(smooth.shape, generator=torch.Generator().manual_seed(3)) < 0.1
    assert banding(rounded(quantised(smooth, 16) + lone), rounded(smooth)) == pytest.approx(16, rel=0.1)


def test_a_part_of_a_gradient_counts_by_its_share_and_a_tiny_gradient_by_less():
    smooth = gradient(frames=1)
    half = smooth.clone()
    half[..., 48:, :] = quantised(half[..., 48:, :], 8)
    assert banding(rounded(half), rounded(smooth)) == pytest.approx(4, rel=0.15)
    flat = smooth.clone()
    flat[..., :80] = 90
    assert banding(rounded(quantised(flat, 8)), rounded(flat)) == pytest.approx(8, rel=0.15)  # the flat half does not count
    tiny = noise(torch.zeros(3, 1, 128, 128), 30) + 128
    tiny[..., :6, :20] = torch.arange(20) * 1.0 + 100
    coarse = tiny.clone()
    coarse[..., :6, :20] = quantised(coarse[..., :6, :20], 8)
    assert 0 < banding(rounded(coarse), rounded(tiny)) < 4


def test_long_clips_are_looked_at_in_eight_frames():
    smooth = gradient(frames=17, height=32, width=64)
    source, banded = rounded(smooth), rounded(quantised(smooth, 8))
    seen = [0, 2, 4, 6, 9, 11, 13, 16]
    others = [i for i in range(17) if i not in seen]
    mixed = source.clone()
    mixed[:, others] = banded[:, others]
    assert banding(mixed, source) == 0
    mixed = banded.clone()
    mixed[:, others] = source[:, others]
    assert banding(mixed, source) == banding(banded, source) > 6


def test_the_median_equals_scipy_s():
    frame = rounded(torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(4)) * 255)
    wanted = np.stack([median_filter(((one + 1) * 127.5).round().numpy(), size=3, mode="nearest") for one in frame])
    np.testing.assert_array_equal(_Picture.of(frame).levels.numpy(), wanted)


def test_one_row_by_hand():
    """Plateaus of 5 pixels and steps of 5 levels; the source rises by one level a pixel, so it has no plateaus."""
    row = torch.arange(40) * 1.0 + 50
    smooth = row.expand(3, 1, 16, 40)
    banded = (row / 5).floor() * 5
    assert banding(rounded(banded.expand(3, 1, 16, 40)), rounded(smooth)) == pytest.approx(5)


def test_small_frames_are_refused_and_equal_input_gives_equal_output():
    with pytest.raises(ShapeError, match="banding needs 16x16 pixels at least; this is 20x15"):
        banding(torch.zeros(3, 1, 15, 20), torch.zeros(3, 1, 15, 20))
    smooth = gradient()
    assert len({banding(rounded(quantised(smooth, 8)), rounded(smooth)) for _ in range(3)}) == 1


def test_a_clip_with_nan_has_no_banding_value_rather_than_the_best_one():
    broken = torch.zeros(3, 3, 64, 64)
    broken[0, 1, 5, 5] = torch.nan
    assert math.isnan(banding(broken, torch.zeros_like(broken)))


def test_videos_of_one_source_score_together_as_alone():
    smooth = gradient()
    source = rounded(smooth)
    videos = [rounded(quantised(smooth, 8)), torch.full_like(source, math.nan), source]
    coarse, unknown, same = banding_of_all(videos, source)
    assert coarse == banding(videos[0], source) > 6 and math.isnan(unknown) and same == 0
