"""docs/guides/evaluation.md shows what is so: its figures and pictures are made again from the planted errors and the embedded pair."""

import re

import artefacts
import numpy as np
import pytest
from pages import README, ROOT
from PIL import Image
from test_stlpips import needs_package

from turbovaed_cli import load_pair, measure_testcard
from turbovaed_cli.metrics import METRICS

TEXT = (ROOT / "docs" / "guides" / "evaluation.md").read_text(encoding="utf-8")
KEYS = dict(zip(artefacts.HEADINGS, artefacts.DIGITS, strict=True))


def stated() -> dict[str, dict[str, str]]:
    """The table of the guide: figures by row and key, as text."""
    head, _, *rows = TEXT[TEXT.index("| planted |") :].partition("\n\n")[0].splitlines()
    keys = [KEYS[name.strip()] for name in head.strip("|").split("|")[1:]]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name: dict(zip(keys, figures, strict=True)) for name, *figures in cells}


@pytest.mark.thorough
@needs_package
def test_the_table_is_what_the_planted_errors_measure():
    table = stated()
    assert table.keys() == artefacts.ARTEFACTS.keys()
    for name, artefact in artefacts.ARTEFACTS.items():
        source, video = artefacts.planted(artefact)
        for key, found in artefacts.figures(video, source).items():
            assert float(table[name][key]) == pytest.approx(found, abs=10.0 ** -artefacts.DIGITS[key]), (name, key)


def test_every_figure_in_the_sections_is_in_the_table():
    table, count = stated(), 0
    for section in TEXT.split("\n### ")[1:]:
        heading = section.splitlines()[0].lower()
        (name,) = [name for name in artefacts.ARTEFACTS if name in heading]
        assert f"found-{name}.webp" in section
        for key, figure in re.findall(r"`(\w+)` (-?\d+\.\d+)", section.partition("\n## ")[0]):
            assert table[name][key] == figure, (name, key)
            count += 1
    assert count >= 2 * len(table)


@pytest.mark.parametrize("name", ["grid", "banding"])
def test_a_picture_of_the_guide_is_what_the_tool_draws(name, tmp_path, monkeypatch):
    kept = np.asarray(Image.open(artefacts.PICTURES / f"found-{name}.webp").convert("RGB"), np.float64)
    monkeypatch.setattr(artefacts, "PICTURES", tmp_path)
    artefact = artefacts.ARTEFACTS[name]
    artefacts.draw(name, artefact, *artefacts.planted(artefact))
    drawn = np.asarray(Image.open(tmp_path / f"found-{name}.webp").convert("RGB"), np.float64)
    assert drawn.shape == kept.shape and np.abs(drawn - kept).mean() < 2


def test_the_card_in_the_guide_is_that_of_the_embedded_pair():
    """The checkerboard, the bars and the green; another processor may differ in the last digit, so there is some room."""
    card = {one.name: one for one in measure_testcard(load_pair("tiny"), only=artefacts.CARD_ROWS).patterns}
    checkers, bars, green = (card[name] for name in artefacts.CARD_ROWS)
    starts = ("checkerboard", "bars", "green")
    lines = {start: re.split(r"\n(?:- |\n)", TEXT[TEXT.index(f"- **The {start}**") :])[0] for start in starts}
    wanted = {
        "checkerboard": [checkers.teacher["psnr"], checkers.student["psnr"]],
        "bars": [bars.teacher["colour_mean"], bars.student["colour_mean"], bars.teacher["psnr"], bars.student["psnr"]],
        "green": [green.teacher["psnr"], green.student["psnr"], green.student["colour_mean"], green.student["border"]],
    }
    for start, figures in wanted.items():
        assert [float(text) for text in re.findall(r"\d+\.\d+", lines[start])] == pytest.approx(figures, abs=0.06), start


def test_the_figures_of_real_clips_are_those_of_readme_and_the_bounds_those_of_the_metrics():
    readme, measured = (path.read_text(encoding="utf-8") for path in (README, ROOT / "docs" / "measurements.md"))
    assert "33.73 ± 5.82" in TEXT and "33.73 ± 5.82" in readme and "99.3 %" in readme and "99.3 %" in measured
    bounds = {name: metric.negligible for name, metric in METRICS.items() if metric.negligible}
    assert bounds == {"grid": 0.25, "seam": 1.5, "banding": 0.25}
    assert "0.25 levels of grid and banding and 1.5 of seam" in TEXT
    for figure in ("32.16 dB", "35.40 dB", "110.1 %", "31.0 dB", "37.4 dB", "1.16", "0.52"):
        assert figure in TEXT and figure in readme and figure in measured
