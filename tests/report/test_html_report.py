"""report.html shows what was measured, whatever files are called, and says in words what was not; looked at in a browser too."""

import io
import json
import re
import shutil
import sys
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import make_video
from limits import HANG_S
from PIL import Image

from turbovaed_cli import cli
from turbovaed_cli.evaluation.evaluate import clip_frames, evaluate
from turbovaed_cli.evaluation.scores import DecodeTimes, eval_document
from turbovaed_cli.files.whole import write_json
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.report import tables
from turbovaed_cli.report.clips import encode, error_levels, error_scale, heat
from turbovaed_cli.report.curves import LEFT, MAX_POINTS, RIGHT, draw
from turbovaed_cli.report.run_page import ShownClip, noteworthy_clips, render, report_of_eval, report_of_run, write_report
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DistillSettings, EvalSettings, Stage
from turbovaed_cli.training.distill import distill

HOSTILE = "<img src=x onerror=alert(1)> & \"'{{ 7*7 }}.mp4"
SMALL = EvalSettings(frames=9, size=(64, 64), metrics=("psnr", "ssim", "lpips"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four generated videos, one of which is called what it should not be."""
    folder = tmp_path_factory.mktemp("clips")
    for name, source in (("a.mp4", "testsrc2"), ("b.mp4", "mandelbrot"), (HOSTILE, "testsrc"), ("d.mp4", "smptebars")):
        make_video(folder / name, source, frames=12)
    return folder


def two_stages(second_steps: int = 2) -> DistillSettings:
    first = Stage("first", steps=2, accumulation=1, perceptual="none")
    second = replace(first, name="second", steps=second_steps, crop=(32, 48))
    return DistillSettings((first, second), frames=5, size=(64, 64), dtype="fp32", save_every=2, sample_every=4)


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory):
    """A run of the embedded pair in two stages, four steps on from its own student."""
    folder = tmp_path_factory.mktemp("runs") / "a <b> run"
    settings = two_stages()
    distill(find_model("tiny"), folder, data=clips, settings=settings, init="tiny")
    return RunDir(folder)


@pytest.fixture(scope="module")
def pair(run):
    return load_pair(str(run.root))


@pytest.fixture(scope="module")
def result(pair, clips):
    return evaluate(pair, clips, SMALL)


@pytest.fixture(scope="module")
def report(pair, result, clips):
    """Of that run and its evaluation."""
    return report_of_eval(result, pair, lambda clip: clip_frames(pair, clip, SMALL), SMALL, clips)


@pytest.fixture(scope="module")
def path(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, report)
    return path


# --- the file -----------------------------------------------------------------------------------------------------


def test_nothing_in_it_names_a_place_to_load_from(path):
    text = re.sub(r'src="data:video/mp4;base64,[\w+/=]+"', "", path.read_text())
    assert not re.findall(r"https?:|//\w+\.\w+|@import|url\((?!#)|\ssrc=|<link", text.replace("&lt;img src=x", ""))
    assert path.stat().st_size < 10e6


def test_a_hostile_name_stays_text(path):
    text = path.read_text()
    assert "<img" not in text and "49" + ".mp4" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_every_metric_has_a_figure_or_a_reason(path, result):
    text = path.read_text()
    for name in result.means["student"]:
        for side in ("teacher", "student"):
            assert tables.score_text(name, result.means[side][name]) in text
    assert "LPIPS-Alex" in text and "not measured: " in text and "turbovaed models pull" in text


def test_intervals_are_the_evaluation_s(result):
    span = (result.means["student"]["psnr"] - 0.5, result.means["student"]["psnr"] + 0.5)
    drawn = replace(result, num_videos=5, intervals={"student": {"psnr": span}})
    row = tables.metric_rows(eval_document(drawn))[0]
    assert row.student.interval == "± 0.50" and row.student.places
    for few in (replace(drawn, num_videos=2), replace(drawn, intervals={})):  # the first as earlier versions wrote it
        row = tables.metric_rows(eval_document(few))[0]
        assert row.student.interval == "" and row.student.places is None


def test_a_page_has_no_command_line_whose_paths_are_private(tmp_path):
    run = RunDir(tmp_path)
    run.snapshot({"settings": {"recipe": "own"}, "command_line": "turbovaed distill --data /home/me"}, {})
    settings = report_of_run(run, {}).settings
    assert settings["settings"] == {"recipe": "own"} and "command_line" not in settings


def test_too_few_videos_for_an_interval_are_said_once_and_nothing_is_drawn(path, result):
    text = path.read_text()
    assert result.num_videos < 5 and text.count(f"{result.num_videos} videos: too few for an interval") == 1
    table = text.partition('<table class="metrics">')[2].partition("</table>")[0]
    assert "±" not in table and "<svg" not in table


def test_a_score_that_is_none_is_no_figure(result):
    document = eval_document(result)
    document["means"]["student"]["psnr"] = document["means"]["ratio"]["psnr"] = None
    row = tables.metric_rows(document)[0]
    assert row.student.text == "none" and "%" not in row.ratio.text
    assert all("PSNR" not in words for _, words in tables.key_figures(document, (), {}))


def test_the_worst_and_the_median_clips_are_shown(result, report):
    scores = sorted(clip.student["psnr"] for clip in result.clips)
    assert [(role, clip.student["psnr"]) for role, clip in noteworthy_clips(result)] == [
        ("worst", scores[0]), ("second worst", scores[1]), ("median", scores[2]),
    ]  # fmt: skip
    assert [clip.role for clip in report.clips] == ["worst", "second worst", "median"]
    three, one = replace(result, clips=result.clips[:3]), replace(result, clips=result.clips[:1])
    assert [role for role, _ in noteworthy_clips(three)] == ["worst", "median"]
    assert [role for role, _ in noteworthy_clips(one)] == ["worst"]


# --- clips --------------------------------------------------------------------------------------------------------


def test_the_error_s_colours_reach_from_dark_to_light_and_say_their_scale(report):
    clip = report.clips[0]
    error = error_levels(clip.student, clip.source)
    assert error == pytest.approx(np.abs(clip.student.astype(float) - clip.source).mean(axis=-1), abs=1e-4)
    scale = error_scale(report.clips)
    assert scale % 4 == 0 and (error > scale).mean() < 0.01
    lightness = heat(np.linspace(0, scale, 50), scale).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(lightness) > 0)
    assert np.array_equal(heat(np.array([scale]), scale), heat(np.array([10 * scale]), scale))


def test_pictures_are_near_to_what_was_measured(report):
    video = encode(report.clips[0], 16)
    assert video.distance_db > 38
    assert (video.width, video.height, video.num_frames, video.cut) == (64, 64, 9, "")
    assert video.parts["student"].left == 2 * video.parts["source"].width == 512


def test_a_large_clip_is_cut_to_its_worst_part_and_says_so(monkeypatch):
    monkeypatch.setattr("turbovaed_cli.report.clips.MAX_SIDE", 64)
    monkeypatch.setattr("turbovaed_cli.report.clips.MAX_FRAMES", 4)
    source = np.zeros((6, 96, 81, 3), np.uint8)
    student = source.copy()
    student[:, -20:, :20] = 200
    video = encode(ShownClip("a", "worst", source, source, student), 16)
    assert (video.num_frames, video.height, video.width) == (4, 64, 64)
    assert video.cut == "the first 4 of 6 frames, the 64x64 pixels of 81x96 with the largest error"
    assert video.clip.student[0, -1, 0].tolist() == [200, 200, 200]  # the wrong corner is in


# --- curves -------------------------------------------------------------------------------------------------------


def rows_of(*stages: tuple[str, int]) -> list[dict]:
    names = [name for name, count in stages for _ in range(count)]
    return [{"step": i, "stage": name, "loss": 1 / i, "lr": 1e-4} for i, name in enumerate(names, start=1)]


def test_stages_are_set_apart_and_no_line_crosses_from_one_to_the_next():
    rows = rows_of(("align", 900), ("large", 90), ("adversarial", 10))
    for row in rows[-10:]:
        row["adversarial"] = -0.5
    curves = draw(rows)
    assert [band.name for band in curves.bands] == ["align", "large", "adversarial"]
    assert curves.bands[0].left == LEFT and curves.bands[-1].left + curves.bands[-1].width == pytest.approx(RIGHT)
    loss, adversarial = curves.panels[0], next(panel for panel in curves.panels if panel.name == "adversarial")
    assert len(loss.lines) == 3 and loss.is_log
    assert len(adversarial.lines) == 1 and not adversarial.is_log
    assert adversarial.points[0] is None and adversarial.points[-1].text == "-0.5"
    assert len(curves.stretches) <= MAX_POINTS + 3 and curves.stretches[-1].endswith("1000")
    assert [panel.name for panel in curves.panels] == ["loss", "adversarial", "lr"]


def test_what_was_not_finite_is_a_gap():
    rows = rows_of(("", 5))
    rows[2]["loss"] = None
    assert [point is None for point in draw(rows).panels[0].points] == [False, False, True, False, False]
    assert draw([]) is None


def test_a_change_of_data_shape_is_a_curve_and_a_table(report):
    settings = report.settings["settings"]
    rows = tables.with_data_size(report.metrics)
    assert [row["megapixels"] for row in rows] == [5 * 64 * 64 / 1e6] * 2 + [5 * 32 * 48 / 1e6] * 2
    columns, cells = tables.stage_table(settings)
    assert cells[1][columns.index("crop")] == "48x32"
    assert tables.stage_table({"steps": 4}) is None


# --- what distill writes ------------------------------------------------------------------------------------------


def test_a_run_ends_with_a_report_of_its_curves_and_one_clip(run):
    text = run.report.read_text()
    assert "Gradient norm" in text and "training clip" in text and "Not measured yet" in text
    assert "a &lt;b&gt; run" in text and "<b>" not in text


def test_a_checkpoint_brings_its_curves_and_a_finished_run_keeps_its_report(run, clips, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run.root, folder)
    (folder / "report.html").write_text("of an evaluation")
    settings = two_stages()
    distill(find_model("tiny"), folder, data=clips, settings=settings, init="tiny")
    assert (folder / "report.html").read_text() == "of an evaluation"

    written = []
    monkeypatch.setattr("turbovaed_cli.training.outputs.write_report", lambda path, report: written.append((path, report)))
    distill(find_model("tiny"), folder, data=clips, settings=two_stages(4), init="tiny")
    assert [(len(report.metrics), len(report.clips)) for _, report in written] == [(6, 0), (6, 1)]


def test_going_on_keeps_the_newest_evaluation_and_says_that_it_is_older(run, result, clips, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.root, folder)
    write_json(folder / "eval" / "val.json", eval_document(result))
    distill(find_model("tiny"), folder, data=clips, settings=two_stages(3), init="tiny")
    text = (folder / "report.html").read_text()
    assert "Measured before the last steps, in val.json" in text and "of 5 steps" in text
    assert tables.score_text("psnr", result.means["student"]["psnr"]) in text


def test_the_page_of_a_timed_evaluation_says_how_much_faster(result):
    document = eval_document(replace(result, decode_times=DecodeTimes([3.0, 4.0, 5.0], [1.0, 2.0, 1.0], "cpu")))
    assert ("4.0×", "as fast as its decoder, median of 3 turns on cpu") in tables.key_figures(document, (), {})


def test_a_set_measured_as_a_whole_shows_no_clip(result, pair, clips):
    """RFVD alone: no clip has a score to be put in order by."""
    without = [replace(clip, teacher={}, student={}) for clip in result.clips]
    whole = {"teacher": {"rfvd": 5.0}, "student": {"rfvd": 6.0}, "ratio": {"rfvd": 1.2}}
    alone = replace(result, clips=without, means=whole, intervals={}, kept={"rfvd": 5 / 6}, worst={})
    text = render(report_of_eval(alone, pair, lambda clip: clip_frames(pair, clip, SMALL), SMALL, clips))
    assert noteworthy_clips(alone) == [] and "rFVD" in text


def test_a_reason_is_given_once(path):
    assert "not measured: not measured" not in path.read_text()


def test_a_report_is_whole_or_absent(tmp_path, report):
    path = tmp_path / "report.html"
    path.write_text("before")
    broken = replace(report, clips=[replace(report.clips[0], student=report.clips[0].student[:, :-8])])
    with pytest.raises(ValueError, match="shape"):
        write_report(path, broken)
    assert path.read_text() == "before" and [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_eval_writes_the_page_and_the_run_s_own_and_replaces_only_the_latter(run, clips, tmp_path, capsys, monkeypatch):
    folder, page = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(run.root, folder)

    def evaluated(*arguments):
        words = ("eval", "--data", clips / "a.mp4", "--frames", "9", "--size", "64", "--metrics", "psnr", *arguments)
        monkeypatch.setattr(sys, "argv", ["turbovaed", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    code, err = evaluated("--model", folder, "--report", page)
    assert code == 0 and str(page) in err
    assert page.read_text() == (folder / "report.html").read_text()
    assert "Gradient norm" in page.read_text() and "a.mp4" in page.read_text()
    page.write_text("mine")
    code, err = evaluated("--report", page)
    assert code == 2 and "--overwrite" in err and page.read_text() == "mine"


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture
def show(browser, path):
    """Open the report: in a window of this size and these colours; at the end nothing may have gone wrong or out."""
    opened, said, asked = [], [], []

    def open_page(width: int = 1280, height: int = 900, colours: str = "light", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours, **options)
        context.set_default_timeout(1000 * HANG_S)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            until(lambda: page.evaluate("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)"))
        return page

    yield open_page
    for context in opened:
        context.close()
    assert [line for line in said if "willReadFrequently" not in line] == []  # that is about how pixels() looks
    assert {url for url in asked if not url.startswith("data:video/mp4")} == {path.as_uri()}


def until(condition) -> None:
    """Wait from here: the page's policy forbids the browser what wait_for_function does in it."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pixels(page, selector: str) -> np.ndarray:
    """What the first such canvas holds, (H, W, 3)."""
    script = """canvas => [canvas.height, canvas.width,
        [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]]"""
    height, width, values = page.locator(selector).first.evaluate(script)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def seen(locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(float)


def to_frame(page, number: int) -> None:
    """Go to a frame of the first clip and wait until it is there."""
    page.evaluate(
        """number => new Promise(done => {
            const video = document.querySelector('video'), slider = document.querySelector('.frame-number');
            video.addEventListener('seeked', () => requestAnimationFrame(() => requestAnimationFrame(done)), {once: true});
            slider.value = number;
            slider.dispatchEvent(new Event('input'));
        })""",
        number,
    )


def test_every_video_plays_and_every_canvas_shows_something(show):
    page = show()
    assert page.evaluate("[...document.querySelectorAll('video')].map(v => [v.error, v.videoWidth > 0])") == [[None, True]] * 3
    assert page.evaluate("[...document.images].filter(image => !image.complete || !image.naturalWidth).length") == 0
    assert page.locator("canvas").count() == 12
    for selector in (".over", ".under", ".error"):
        assert pixels(page, selector).std() > 5
    assert "<img src=x" in page.locator("main").inner_text()


def test_the_pictures_are_the_frames_that_were_measured(show, report):
    """Read back from the canvas: source and student of the very frame that the slider names, and their error's colours."""
    page, clip = show(), report.clips[0]
    for number in (1, 6, 9):
        to_frame(page, number)
        for selector, video in ((".over", clip.source), (".under", clip.student)):
            shown = pixels(page, selector)
            distances = [decibels(shown, frame) for frame in video]
            assert distances[number - 1] > 30
            assert distances[number - 1] > max(distances) - 1e-9
    wanted = heat(error_levels(clip.student, clip.source), error_scale(report.clips))[8]
    assert decibels(pixels(page, ".error[data-part=student_error]")[::2, ::2], wanted) > 15


def test_the_divider_moves_by_keyboard(show):
    page = show()
    divider, frame = page.locator(".divider").first, page.locator(".frame").first
    page.locator(".choose.right").first.select_option("student_error")  # mostly dark, where the source is bright
    before = seen(frame)
    divider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert page.locator(".over").first.evaluate("canvas => canvas.style.clipPath") == "inset(0px 30% 0px 0px)"
    assert "70 %" in divider.get_attribute("aria-valuetext")
    changed = np.abs(seen(frame) - before).sum(axis=-1).max(axis=0) > 60  # by column
    width = changed.size
    assert changed[int(0.5 * width) : int(0.72 * width)].mean() > 0.5
    # The outermost columns may hold the focus ring.
    assert not changed[8 : int(0.45 * width)].any() and not changed[int(0.76 * width) : -8].any()
    page.keyboard.press("Home")
    assert page.locator(".tag.left").first.is_hidden()  # nothing of the left side is seen, so nothing says it is


def test_the_divider_follows_the_pointer_from_anywhere(show):
    page = show()
    frame = page.locator(".frame").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 90, steps=4)
    page.mouse.up()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 90)
    assert page.locator(".divider").first.input_value() == "25"
    assert page.locator(".over").first.evaluate("canvas => canvas.style.clipPath") == "inset(0px 75% 0px 0px)"
    assert page.locator(".handle").first.evaluate("handle => handle.style.left") == "25%"


def test_a_finger_moves_the_divider(show):
    page = show(390, 844, has_touch=True, is_mobile=True)
    frame = page.locator(".frame").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    page.touchscreen.tap(box["x"] + 0.7 * box["width"], box["y"] + 0.3 * box["height"])
    assert page.locator(".divider").first.input_value() == "70"


def test_both_sides_can_be_chosen_and_play_in_step(show):
    page = show()
    article = page.locator(".clip").first
    assert decibels(pixels(page, ".over"), pixels(page, ".under")) < 40  # source and student
    article.locator(".choose.left").select_option("student")
    assert np.array_equal(pixels(page, ".over"), pixels(page, ".under"))
    button = article.locator(".play")
    button.focus()
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("document.querySelector('video').currentTime > 0.05"))
    assert button.inner_text() == "Pause" and "Pause" in button.get_attribute("aria-label")
    script = """() => new Promise(done => {
        const read = selector => new Uint32Array(
            document.querySelector(selector).getContext('2d').getImageData(0, 0, 64, 64).data.buffer);
        const number = document.querySelector('.frame-number'), found = new Set(), began = performance.now();
        let differing = 0;
        const look = () => {
            const left = read('.over'), right = read('.under');
            if (left.some((pixel, i) => pixel !== right[i])) differing++;
            found.add(number.value);
            if (performance.now() - began < 1500) setTimeout(look, 15); else done([differing, found.size]);
        };
        look();
    })"""
    differing, frames = page.evaluate(script)
    assert differing == 0 and frames >= 2
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("document.querySelector('video').paused") and button.inner_text() == "Play")


def test_nothing_moves_by_itself(show):
    page = show(reduced_motion="reduce")
    assert page.evaluate("[...document.querySelectorAll('video')].every(video => video.paused && !video.autoplay)")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_desktop(width, show):
    page = show(width, 844)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = """width => [...document.querySelectorAll('main *')].filter(item => !item.closest('.scroll, .unseen, .panel svg')
        && item.getBoundingClientRect().right > width + 0.5).map(item => item.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside, width) == []


def test_light_and_dark_follow_the_system_and_the_switch(show):
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = show(), show(colours="dark")
    assert sum(json.loads(light.evaluate(ground).replace("rgb(", "[").replace(")", "]"))) > 700
    assert sum(json.loads(dark.evaluate(ground).replace("rgb(", "[").replace(")", "]"))) < 120
    lit = dark.evaluate(ground)
    dark.get_by_role("radio", name="Light").focus()
    dark.keyboard.press("Space")
    assert dark.evaluate(ground) == light.evaluate(ground) != lit
    dark.reload()
    assert dark.evaluate(ground) == light.evaluate(ground)


def test_the_tab_key_reaches_every_control_and_shows_where_it_is(show):
    page = show()
    wanted = page.evaluate("""() => {
        const all = [...document.querySelectorAll('a[href], button, select, summary, input, [tabindex="0"]')];
        const seen = all.filter(item => item.checkVisibility() && !(item.type === 'radio' && !item.checked));
        seen.forEach((item, i) => item.dataset.number = i);
        return seen.length;
    }""")
    look = """() => {
        const item = document.activeElement, by = item.matches('.divider') ? item.closest('.frame')
            : item.matches('.theme input') ? item.nextElementSibling : item;
        const style = getComputedStyle(by);
        return [item.dataset.number ?? null, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1];
    }"""
    reached = []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        number, has_ring = page.evaluate(look)
        assert has_ring, number
        reached.append(int(number))
    assert reached == sorted(reached) == list(range(wanted))


def test_curves_are_read_off_with_the_keyboard_and_the_pointer(show, report):
    page = show()
    cursor, reading = page.locator("#cursor"), page.locator(".reading").first
    last = reading.inner_text()
    cursor.focus()
    page.keyboard.press("Home")
    assert page.locator("#cursor-text").inner_text() == "step 1"
    assert float(reading.inner_text()) == pytest.approx(report.metrics[0]["loss"], rel=0.01)
    drawing = page.locator(".panel svg").nth(1)
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    page.mouse.move(box["x"] + 0.97 * box["width"], box["y"] + 60)
    assert reading.inner_text() == last
    assert page.locator(".band.odd").count() == page.locator(".panel").count()


def test_headings_are_in_order_and_pictures_have_words(show):
    page = show()
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(heading => Number(heading.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    nameless = """[...document.querySelectorAll('canvas, video, [role=img], .divider, select, button, input, [role=region]')]
        .filter(item => !item.ariaLabel && !item.labels?.length && !item.matches('.theme input')).map(item => item.outerHTML)"""
    assert page.evaluate(nameless) == []


def test_without_scripts_the_sheet_of_videos_is_there_with_its_controls(show):
    page = show(java_script_enabled=False)
    assert page.locator("video[controls]").first.is_visible()
    assert page.locator(".divider").first.is_hidden() and page.locator(".panel .line").first.is_visible()
