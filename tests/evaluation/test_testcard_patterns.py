"""The patterns of the test card are what they claim: flat, of known frequencies and speeds, the same every time."""

import itertools

import numpy as np
import pytest

from turbovaed_cli.errors import FrameCountError, ShapeError
from turbovaed_cli.evaluation.testcard import moving, stills
from turbovaed_cli.evaluation.testcard.patterns import BLUE, CHECKERS, PATTERNS, patterns_for
from turbovaed_cli.registry.rows import MODELS

NAMED = {pattern.name: pattern for pattern in PATTERNS}


def test_names_are_unique_and_labels_fit_a_narrow_table():
    assert len(NAMED) == len(PATTERNS) == len({pattern.label for pattern in PATTERNS})
    assert max(len(pattern.label) for pattern in PATTERNS) <= 15


@pytest.mark.parametrize("size", [(8, 8), (32, 48), (64, 40)])
@pytest.mark.parametrize("frames", [1, 5])
def test_every_pattern_is_drawn_at_any_size_the_same_every_time(frames, size):
    for pattern in PATTERNS:
        clip = pattern.draw(frames, *size)
        assert clip.shape == (frames, *size, 3) and clip.dtype == np.uint8, pattern.name
        assert (pattern.draw(frames, *size) == clip).all(), pattern.name


def test_flat_colours_are_flat_over_the_whole_frame_and_spread_over_the_cube():
    colours = [pattern.colour for pattern in PATTERNS if pattern.colour is not None]
    assert len(set(colours)) == len(colours) == 22 and BLUE == (32, 64, 192) and BLUE in colours
    corners = [colour for colour in colours if set(colour) <= {0, 255}]
    edges = [colour for colour in colours if colour.count(128) == 1]
    assert len(corners) == 8 and len(edges) == 12 and (128, 128, 128) in colours
    for pattern in PATTERNS:
        if pattern.colour is not None:
            assert (pattern.draw(3, 16, 24) == pattern.colour).all()
    assert NAMED["flat_2040c0"].colour == BLUE


@pytest.mark.parametrize("cell", CHECKERS)
def test_checkerboards_have_squares_of_their_size(cell):
    """All the energy is at odd multiples of one cycle per two squares, the largest at that frequency itself."""
    picture = stills.checkers(128, 128, cell)[..., 0].astype(float)
    assert set(np.unique(picture)) == {stills.DARK, stills.LIGHT}
    power = np.abs(np.fft.fft2(picture - picture.mean())) ** 2
    at = 64 // cell  # cycles in 128 pixels
    assert power[at, at] == pytest.approx(power.max())
    rows, columns = np.nonzero(power > 1e-9 * power.max())
    assert ((rows % (2 * at)) == at).all() and ((columns % (2 * at)) == at).all()


def test_the_zone_plate_has_every_frequency_up_to_half_a_cycle_a_pixel():
    """At a third of the way to the border there is a third of half a cycle a pixel, along and across."""
    size = 256
    picture = stills.zone_plate(size, size)[..., 0].astype(float) - (stills.DARK + stills.LIGHT) / 2
    row = picture[size // 2]
    for share in (0.25, 0.5, 0.75):
        middle = int(size / 2 + share * size / 2)
        part = row[middle - 16 : middle + 16] * np.hanning(32)
        spectrum = np.abs(np.fft.rfft(part, 512))
        assert spectrum.argmax() / 512 == pytest.approx(0.5 * share, abs=0.03)
    assert (picture == picture.transpose()).all() and picture[0, 0] == 0


def test_bars_are_eight_even_colours():
    picture = stills.bars(16, 64, 191)
    assert [tuple(picture[0, 8 * number + 4]) for number in (0, 3, 7)] == [(191, 191, 191), (0, 191, 0), (0, 0, 0)]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 8 and (picture == picture[:1]).all()


def test_ramps_and_gradients_have_no_step_of_more_than_a_level_where_they_are_slow():
    ramps = stills.ramps(60, 256).astype(int)
    assert ramps[5, :, 0].tolist() == list(range(256))
    for row, channel in ((45, 0), (55, 2)):  # the slow ones
        assert np.abs(np.diff(ramps[row, :, channel])).max() == 1
    gradient = stills.radial(256, 256).astype(int)
    assert max(np.abs(np.diff(gradient, axis=axis)).max() for axis in (0, 1)) <= 2


def test_letters_and_lines_are_thin():
    text = stills.text(128, 256)
    assert len(np.unique(text[:64].reshape(-1, 3), axis=0)) > 20  # smooth edges
    assert (text[:64] < 60).all(axis=-1).mean() > 0.02 and (text[64:] > 200).all(axis=-1).any()
    lines = stills.lines(64, 64)
    is_light = (lines[:32, :32] > 200).all(axis=-1)
    assert is_light[0].sum() == 5 and (is_light == is_light[:1]).all()  # one pixel wide, six apart


def test_cuts_change_the_picture_at_once_and_only_there():
    clip = moving.cuts(17, 32, 32).astype(int)
    changes = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(clip)]
    cut = [index + 1 for index, change in enumerate(changes) if change > 0]
    assert cut == [5, 9, 13] and min(changes[index - 1] for index in cut) > 20


def test_edges_move_by_shares_of_a_pixel():
    """The centre of each bar moves at its speed, also between pixels."""
    width = 96
    clip = moving.edges(9, 32, width).astype(float)
    for number, speed in enumerate(moving.SPEEDS):
        rows = clip[:, number * 8 + 4]  # (T, W, 3)
        mass = np.abs(rows - rows[:, :1]).sum(axis=-1)
        centre = (mass * np.arange(width)).sum(axis=1) / mass.sum(axis=1)
        assert np.diff(centre) == pytest.approx(np.full(8, speed), abs=0.02)
    share = moving.covered(6, 1.25, 3.5)
    assert share.tolist() == [0, 0.75, 1, 0.5, 0, 0]


def test_grain_is_another_one_in_every_frame_and_of_its_strength():
    clip = moving.grain(4, 96, 96).astype(float)
    noise = clip - stills.radial(96, 96)
    assert noise.std() == pytest.approx(moving.GRAIN_LEVELS, rel=0.05) and abs(noise.mean()) < 0.5
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_the_still_picture_stands_still_and_has_colour_and_structure():
    clip = NAMED["still"].draw(5, 64, 64)
    assert (clip == clip[:1]).all() and len(np.unique(clip[0].reshape(-1, 3), axis=0)) > 200
    assert (clip[0].max(axis=-1) - clip[0].min(axis=-1)).max() > 120


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_clips_suit_every_teacher(name):
    teacher = MODELS[name].teacher
    frames, ratio = teacher.frames.at_most(17), teacher.space_ratio
    size = (ratio * 8, ratio * 6)
    clips = patterns_for(teacher, frames, size)
    for clip in clips:
        teacher.check_frames(clip.frames)
        teacher.check_size(*clip.size)
        assert clip.frames <= frames and clip.size[0] <= size[0] and clip.size[1] <= size[1]
    moving_ones = [clip for clip in clips if clip.pattern.changes]
    if teacher.family.is_of_images:
        assert not moving_ones and {clip.frames for clip in clips} == {1}
    else:
        assert moving_ones and {clip.frames for clip in moving_ones} == {frames}
    assert {clip.pattern.name for clip in patterns_for(teacher, 1, size)} == set(NAMED) - {"cuts", "edges"}


def test_image_teachers_are_known_and_a_decoder_over_time_is_none():
    of_images = {name for name, spec in MODELS.items() if spec.teacher.family.is_of_images}
    assert {"sdxl", "flux1", "flux2", "sana"} <= of_images and not {"svd", "tiny", "ltx", "wan2.1"} & of_images


def test_frames_and_sizes_that_the_teacher_would_change_are_refused():
    teacher = MODELS["ltx"].teacher
    with pytest.raises(FrameCountError):
        patterns_for(teacher, 16, (256, 256))
    with pytest.raises(ShapeError):
        patterns_for(teacher, 17, (250, 256))
