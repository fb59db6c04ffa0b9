"""Pages draw the error that repeats at the lattice: the planted tile, its score, and nothing where there is none."""

import re

import numpy as np
import pytest

from turbovaed_cli.evaluation.scores import ClipScores, EvalResult
from turbovaed_cli.report.clips import ShownClip
from turbovaed_cli.report.grids import REGION, drawn_tiles, grid_tile
from turbovaed_cli.report.run_page import Report, noteworthy_clips, render

TILE = np.array([[0, 8, 0, 0], [8, 8, 0, 0], [0, 0, 0, 0], [-8, -8, -8, 0]])  # sum 0


def clip(frames: int = 3, height: int = 40, width: int = 48) -> np.ndarray:
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[:, None]
    return (100 + rows + columns + np.zeros((frames, 1, 1, 3))).astype(np.uint8)


def textured(source: np.ndarray) -> np.ndarray:
    error = np.tile(TILE, (source.shape[1] // 4, source.shape[2] // 4))[..., None] * [1, 0, -1]
    return (source + 20 + error).astype(np.uint8)


def result_of(*grids: float) -> EvalResult:
    clips = [ClipScores(str(i), 0, {"psnr": 40.0, "grid": 0.0}, {"psnr": 30.0 + i, "grid": grid}) for i, grid in enumerate(grids)]
    return EvalResult("m", "standard", 3, (40, 48), 1, clips, {}, {}, {}, {}, len(clips), {}, {})


def test_a_tile_is_the_planted_pattern_without_the_constant():
    source = clip()
    tile = grid_tile(textured(source), source, 4)
    np.testing.assert_allclose(tile, TILE[..., None] * [1, 0, -1], atol=1e-9)
    assert grid_tile(textured(source), source).shape == (8, 8, 3)  # the largest that 40 pixels have
    assert grid_tile(textured(source), source, 64).shape == (8, 8, 3)
    assert grid_tile(source[:, :7], source[:, :7]) is None


def test_a_drawing_covers_the_region_in_the_colours_of_the_error():
    source = clip()
    scores = {"student": {"grid": 3.5}}
    ((teacher, student),), scale = drawn_tiles([{"source": source, "teacher": source, "student": textured(source)}], [scores], 4)
    assert scale == 8 and (teacher.score, student.score) == (None, 3.5) and student.period == 4
    assert {cell.colour for cell in teacher.cells} == {"#808080"} and len(teacher.cells) == 4  # a run for each row
    painted = np.full((REGION, REGION), "", dtype="<U7")
    for x, y in student.places:
        for cell in student.cells:
            painted[y + cell.y, x + cell.x : x + cell.x + cell.width] = cell.colour
    assert painted[0, 1] == painted[4, 5] == painted[28, 29] == "#ff8000"  # more red, less blue
    assert painted[3, 0] == "#0080ff" and painted[2, 2] == "#808080" and (painted != "").all()


def test_rounding_alone_looks_grey():
    source = clip()
    ((tile,),), scale = drawn_tiles([{"source": source, "student": source}], [{}])
    assert scale == 4 and tile.score is None


def test_a_page_shows_the_grid_of_each_clip_with_its_score():
    source = clip(height=64, width=64)
    scores = {"teacher": {"grid": 0.0}, "student": {"grid": 3.456}}
    shown = ShownClip("a", "worst", source, source, textured(source), scores=scores)
    text = render(Report("title", {}, clips=[shown], lattice=4))
    figure = text.partition('<figure class="grids">')[2].partition("</figure>")[0]
    assert "Teacher's grid: 0.00" in figure.replace("&#39;", "'") and "Student's grid: 3.46" in figure.replace("&#39;", "'")
    assert "repeats every 4 pixels" in figure and "full contrast is 8 of 255" in figure
    assert len(re.findall("<use ", figure)) == 2 * (REGION // 4) ** 2
    without = render(Report("title", {}, clips=[ShownClip("a", "worst", source, source, source)], lattice=4))
    assert "grid:" not in without.partition('<figure class="grids">')[2].partition("</figure>")[0]


@pytest.mark.parametrize(
    ("grids", "roles"),
    [
        ((0.1, 0.1, 0.1, 2.0, 0.2), ["worst", "second worst", "median", "most grid"]),
        ((0.1, 0.1, 0.1, 0.2, 0.1), ["worst", "second worst", "median"]),  # nobody sees it
        ((3.0, 0.1, 0.1, 2.0, 0.1), ["worst", "second worst", "median"]),  # the worst one has it
    ],
)
def test_the_clip_with_the_most_grid_is_shown_too(grids, roles):
    chosen = noteworthy_clips(result_of(*grids))
    assert [role for role, _ in chosen] == roles
    assert len({one.path for _, one in chosen}) == len(chosen)
