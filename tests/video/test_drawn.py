"""Drawn clips for training, and other colours for filmed ones: the same for a text, of every kind, and none of the test card."""

import random

import numpy as np
import pytest

from turbovaed_cli.evaluation.testcard import PATTERNS
from turbovaed_cli.video.drawn import KINDS, draw_clip, kind_of, recoloured
from turbovaed_cli.video.drawn.recolour import MOST_SATURATION, _mixing

SIZE = (32, 48)


@pytest.fixture(scope="module")
def clips():
    return {f"0/{number}": draw_clip(f"0/{number}", 5, SIZE) for number in range(300)}


def test_a_clip_is_a_function_of_its_text(clips):
    for text in list(clips)[:40]:
        assert np.array_equal(draw_clip(text, 5, SIZE), clips[text])
    assert len({clip.tobytes() for clip in clips.values()}) == len(clips)


def test_every_kind_occurs_and_gives_frames_of_the_size_that_was_asked_for(clips):
    assert {kind_of(text) for text in clips} == set(KINDS)
    assert all(clip.shape == (5, *SIZE, 3) and clip.dtype == np.uint8 for clip in clips.values())
    one_of_each = {kind_of(text): text for text in clips}
    for text in one_of_each.values():
        for frames, size in ((1, (8, 8)), (1, (64, 16)), (3, (17, 9))):
            assert draw_clip(text, frames, size).shape == (frames, *size, 3)


def test_clips_stand_still_and_move(clips):
    still = [text for text, clip in clips.items() if (clip == clip[:1]).all()]
    assert 0.35 < len(still) / len(clips) < 0.75
    for kind in ("flat", "ramp", "bars", "shapes", "text", "noise", "checkers"):
        of_kind = [text for text in clips if kind_of(text) == kind]
        assert 0 < len(set(still) & set(of_kind)) < len(of_kind), kind


def test_colours_fill_the_cube_and_its_edges_more_than_uniform_draws_would(clips):
    """Of uniform draws, 0.5 % have two channels at or within two levels of an end."""
    flats = np.array([clip[0, 0, 0] for text, clip in clips.items() if kind_of(text) == "flat"]).astype(int)
    flats = np.concatenate([flats, [draw_clip(f"1/{n}", 1, (8, 8))[0, 0, 0] for n in range(2000) if kind_of(f"1/{n}") == "flat"]])
    at_ends = ((flats <= 2) | (flats >= 253)).sum(axis=1)
    assert (at_ends >= 2).mean() > 0.15 and (at_ends == 0).mean() > 0.3
    octants = {tuple(colour > 127) for colour in flats}
    assert len(octants) == 8


def test_no_clip_shows_a_flat_colour_of_the_test_card():
    card = {pattern.colour for pattern in PATTERNS if pattern.colour is not None}
    assert len(card) > 20
    for number in range(8000):
        if kind_of(f"card/{number}") == "flat":
            clip = draw_clip(f"card/{number}", 1, (8, 8))
            assert tuple(map(int, clip[0, 0, 0])) not in card


def test_recolouring_is_one_change_of_colours_for_all_frames_and_a_function_of_its_text():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)
    frame[12:] = frame[:12]  # every colour twice
    clip = np.stack([frame, frame[::-1]])
    changed = {text: recoloured(text, clip) for text in map(str, range(150))}
    whole = 0
    for text, other in changed.items():
        assert other.shape == clip.shape and other.dtype == np.uint8
        assert np.array_equal(recoloured(text, clip), other)
        whole += np.array_equal(other[0, 12:], other[0, :12]) and np.array_equal(other[1], other[0, ::-1])
    assert 0.7 < whole / len(changed) < 0.95  # others have a drawn part
    assert sum(np.array_equal(other, clip) for other in changed.values()) < 15
    assert np.array_equal(clip[0], frame)  # the clip itself is left alone


def test_the_channels_are_mixed_so_that_greys_stay_and_colours_get_stronger_or_paler_or_turn():
    """The determinant of a saturation is its square; another order of channels or another hue has 1 or -1."""
    matrices = [_mixing(random.Random(number)) for number in range(300)]
    assert all(np.allclose(matrix.sum(axis=1), 1) for matrix in matrices)
    strength = np.abs([np.linalg.det(matrix) for matrix in matrices]) ** 0.5
    assert strength.max() <= MOST_SATURATION + 1e-6 and (strength > 1.5).sum() > 50 and (strength < 0.7).sum() > 20
    turned = [matrix for matrix, value in zip(matrices, strength, strict=True) if abs(value - 1) < 1e-6]
    assert sum(not np.allclose(matrix, np.eye(3)) for matrix in turned) > 30
