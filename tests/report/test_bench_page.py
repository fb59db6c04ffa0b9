"""The page of bench shows what was measured, keeps estimates apart, and opens without the network."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from limits import HANG_S
from test_bench import row_with

from turbovaed_cli.benchmarking import results
from turbovaed_cli.benchmarking.published import SPEEDS, estimate_on_phone
from turbovaed_cli.benchmarking.results import BenchResult, MemoryRow
from turbovaed_cli.benchmarking.target import TEACHER
from turbovaed_cli.report.bench_page import bars, memory, name_of, render, tradeoff, write_page

HOSTILE = "<img src=x onerror=alert(1)> {{ 7*7 }}"


def rows():
    student = row_with([10.0, 11.0, 12.0, 10.5, 10.2], speedup=9.0)
    return [
        replace(student, target="torch", layout="", psnr_db=140.0),
        replace(student, target="torch", layout="", network=TEACHER, psnr_db=None, p50_ms=90.0, fps=100.0, samples_ms=[90.0] * 5),
        student,
        replace(student, precision="int8", psnr_db=38.0, p50_ms=5.0, fps=1800.0, samples_ms=[5.0, 5.1, 4.9, 5.0, 5.2]),
        replace(student, target="coreml", measured=False, status=f"not measured: {HOSTILE}", fps=None, samples_ms=[]),
    ]


@pytest.fixture
def document():
    lengths = [
        MemoryRow(form, frames, 10.0 * frames if form == "whole clip" else 40.0)
        for form in ("whole clip", "streamed")
        for frames in (9, 17)
    ]
    result = BenchResult(
        HOSTILE, "this machine", "random latents", 1_000_000, rows(), {"torch": (0.5, 0.75)}, lengths, {"ltx": SPEEDS["ltx"]}, estimate_on_phone(3000.0, 9)
    )  # fmt: skip
    return json.loads(json.dumps(results.bench_document(result)))


def test_every_row_is_there_and_what_was_not_measured_says_why(document):
    html = render([document])
    assert html.count('<tr><th scope="row">') == 4 + 2  # rows that were measured, and published sizes
    assert "&lt;img src=x onerror=alert(1)&gt; {{ 7*7 }}" in html and "<img" not in html
    assert "int8" in html and "Load average before and after: torch 0.5, 0.8" in html
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", html)
    assert "default-src 'none'" in html


def test_estimates_and_published_figures_are_in_a_section_of_their_own(document):
    before, _, apart = render([document]).partition("Not from this run")
    assert "Estimate, not a measurement" in apart and "iPhone" not in before
    assert ">162<" in apart and ">162<" not in before  # published frames per second on the phone
    assert "Not from this run" not in render([{**document, "published": [], "estimates": []}])


def test_bars_are_as_long_as_they_are_fast():
    slow, fast = bars([rows()[1], rows()[3]])
    assert (fast.end - 250) / (slow.end - 250) == pytest.approx(18, rel=0.02)
    assert fast.low < fast.end < fast.high
    assert name_of(rows()[1]) == "torch fp32 teacher" and slow.text == "100 frames/s"


def test_the_line_joins_what_nothing_beats_in_both():
    plot = tradeoff([("tiny", rows())])
    assert [dot.label for dot in sorted(plot.dots, key=lambda dot: dot.x)][-1] == "onnx int8"
    ((name, path),) = plot.lines
    places = {(dot.x, dot.y) for dot in plot.dots}
    joined = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    assert name == "frontier" and set(joined) <= places and len(joined) == 2
    assert "fp32 student" in plot.y_title and not any(dot.square for dot in plot.dots)
    of_source = [replace(row, source_psnr_db=27.0 + i) for i, row in enumerate(rows()[:4])]
    assert "source" in tradeoff([("tiny", of_source)]).y_title and len(tradeoff([("tiny", of_source)]).dots) == 4
    assert tradeoff([("tiny", rows()[4:])]) is None


def test_names_of_points_do_not_lie_on_each_other():
    crowd = [replace(rows()[2], unit=f"GPU {i}", fps=800.0 + i, psnr_db=60.0 + i / 100) for i in range(8)]
    plot = tradeoff([("tiny", crowd)])
    heights = sorted(dot.text_y for dot in plot.dots)
    assert all(b - a >= 14 for a, b in pairwise(heights))


def test_models_of_other_runs_are_points_beside_it(document):
    other = {**document, "model": "bigger", "params": 2_000_000}
    html = render([document, other])
    assert "bigger: onnx int8" in html and "bigger (2.0 M)" in html and "Left out" not in html
    smaller = {**other, "rows": [{**row, "size": [32, 32]} for row in other["rows"]]}
    html = render([document, smaller])
    assert "bigger: onnx int8" not in html and "Left out, with another number of frames or another size: bigger" in html


def test_models_that_are_each_measured_against_themselves_share_no_frontier():
    alone = tradeoff([("tiny", rows())])
    assert alone.lines and tradeoff([("tiny", rows()), ("bigger", rows())]).lines == []
    of_source = [replace(row, source_psnr_db=30.0 - i) for i, row in enumerate(rows()[:4])]
    assert tradeoff([("tiny", of_source), ("bigger", of_source)]).lines


def test_memory_is_drawn_over_length(document):
    plot = memory([MemoryRow("whole clip", 9, 90.0), MemoryRow("whole clip", 17, 170.0), MemoryRow("streamed", 17, None)])
    assert [name for name, _ in plot.lines] == ["whole-clip"] and "17 frames: 170 MB" in plot.summary
    assert memory([]) is None
    assert "--memory-frames" in render([{**document, "memory": []}])


def test_it_opens_in_a_browser(document, browser, tmp_path):
    write_page(tmp_path / "bench.html", [document])
    for width, colours in ((1100, "light"), (390, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=colours)
        page.set_default_timeout(1000 * HANG_S)
        said = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("request", lambda request, said=said: said.append(request.url) if not request.url.startswith("file:") else None)
        page.goto((tmp_path / "bench.html").as_uri())
        assert page.locator("svg.chart").count() == 3 and page.locator("svg rect.onnx").first.bounding_box()["width"] > 20
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0 and said == []
        ends = page.evaluate("[...document.querySelectorAll('.chart text, .caption')].map(e => e.getBoundingClientRect().right)")
        assert len(ends) > 10 and max(ends) <= width  # no label or caption is cut off
        page.close()


def test_only_what_is_drawn_is_explained(document):
    """Without a teacher there is no "x" and no square; rows of one quality are no plot."""
    without = {
        **document,
        "rows": [{**row, "speedup": None, "psnr_db": 100.0} for row in document["rows"] if row["network"] != TEACHER],
    }
    html, whole = render([without]), render([document])
    assert "do not differ in quality" in html and "“x” is" not in html and "Squares are" not in html
    assert "“x” is" in whole and "The dashed line joins" in whole and tradeoff([("tiny", rows())]).lines
