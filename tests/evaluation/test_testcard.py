"""The test card: what it shows of the embedded pair, its figures on planted errors, and where it is kept and shown."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import is_two_lines
from limits import HANG_S
from safetensors.torch import save_file
from small_teachers import write_small_teacher
from trio import write_trio

from turbovaed_cli.cli.testcard_tables import card_tables
from turbovaed_cli.errors import CorruptFileError, SettingsError
from turbovaed_cli.evaluation.decoding import decode_clip
from turbovaed_cli.evaluation.evaluate import evaluate_all
from turbovaed_cli.evaluation.testcard import measure_testcard, measure_testcards, pattern_frames
from turbovaed_cli.evaluation.testcard.measure import border_error, figures_of, still_flicker
from turbovaed_cli.evaluation.testcard.patterns import PATTERNS
from turbovaed_cli.evaluation.testcard.scores import (
    FIGURES,
    card_document,
    in_order,
    read_card,
    summarise_card,
    whole_document,
    worst_patterns,
)
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.report.compare_page import write_comparison
from turbovaed_cli.report.run_page import keep_cards, report_of_run, write_report
from turbovaed_cli.report.testcard import card_view
from turbovaed_cli.settings import EvalSettings
from turbovaed_cli.video import to_model

SMALL = EvalSettings(frames=9, size=(32, 32))
SIZE = ("--frames", 9, "--size", "32x32")
FEW = ("flat_000000", "flat_808080", "flat_2040c0", "bars_100", "bars_75", "ramps", "checkers_8", "still", "cuts", "grain")


@pytest.fixture(scope="module", autouse=True)
def few():
    """A card of ten patterns, so that a test takes a second; test_testcard_patterns.py draws them all."""
    with pytest.MonkeyPatch.context() as patch:
        patterns = tuple(pattern for pattern in PATTERNS if pattern.name in FEW)
        for module in ("patterns", "measure"):
            patch.setattr(f"turbovaed_cli.evaluation.testcard.{module}.PATTERNS", patterns)
        yield


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    return write_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture(scope="module")
def pairs(trio):
    teacher = str(trio.teacher)
    return [load_pair(str(trio.student), teacher), load_pair(str(trio.flash), teacher), load_pair(teacher)]


@pytest.fixture(scope="module")
def cards(pairs):
    return measure_testcards(pairs, SMALL)


@pytest.fixture(scope="module")
def embedded():
    """Flat colours and bars of the embedded pair, at half the default size."""
    names = ("flat_2040c0", "flat_808080", "flat_000000", "bars_100", "bars_75")
    return measure_testcard(load_pair(), EvalSettings(frames=3, size=(128, 128)), only=names)


# --- what it shows ------------------------------------------------------------------------------------------------


def of(card, name):
    return next(one for one in card.patterns if one.name == name)


def test_the_embedded_student_has_the_colours_of_its_teacher_and_no_grid_on_them(embedded):
    for name in ("flat_2040c0", "flat_808080", "flat_000000"):
        flat = of(embedded, name)
        assert flat.student["psnr"] > min(40, flat.teacher["psnr"] - 1), name
        assert flat.student["colour_mean"] < 2 and flat.student["grid"] < 1, name
    assert summarise_card(embedded).worst_flat is of(embedded, "flat_2040c0")


def test_the_embedded_student_has_the_colour_bars_of_its_teacher(embedded):
    for name in ("bars_100", "bars_75"):
        bars = of(embedded, name)
        assert bars.student["psnr"] > bars.teacher["psnr"] - 0.5
        assert bars.student["colour_mean"] < bars.teacher["colour_mean"] + 0.5


# --- the figures --------------------------------------------------------------------------------------------------


def grey_clip(frames=3, size=48, level=100):
    return to_model(np.full((frames, size, size, 3), level, np.uint8))


def test_an_identical_clip_has_no_error():
    clip = to_model(np.repeat(PATTERNS[0].draw(1, 48, 48), 3, axis=0))
    found = figures_of(clip, clip, 8)
    assert found == {"psnr": 100, **dict.fromkeys(("colour_mean", "colour_worst", "grid", "banding", "border", "flicker"), 0)}
    assert found.keys() | {"psnr_to_teacher"} == FIGURES.keys()


def test_a_bright_frame_around_a_picture_is_its_border_error():
    source = grey_clip()
    video = source.clone()
    video[..., :8, :] += 10 / 127.5
    assert border_error(video, source, 8) == pytest.approx(10 * (48 * 8 / (48 * 48 - 32 * 32)) ** 0.5, rel=1e-5)
    video = source.clone()
    video[..., 8:-8, 8:-8] += 4 / 127.5
    assert border_error(video, source, 8) == pytest.approx(-4, rel=1e-5)
    assert border_error(source[..., :20], source[..., :20], 8) is None


def test_only_what_stands_still_in_the_source_can_flicker():
    source = grey_clip(frames=4)
    source[:, 2:, :, :24] += 0.5  # the left half changes once
    video = source.clone()
    video[:, 1::2] += 6 / 127.5  # from frame to frame, everywhere
    assert still_flicker(video, source) == pytest.approx(6, rel=1e-5)
    video = source.clone()
    video[:, 2:, :, :24] += 0.2  # where and when the source changes: no flicker
    assert still_flicker(video, source) == 0
    assert still_flicker(video[:, :1], source[:, :1]) is None


def test_the_colour_error_is_of_all_parts_of_a_clip():
    source = grey_clip(frames=17, level=0)
    video = source.clone()
    video[:, -1, 3, 4] = 1  # one white pixel in the last frame
    found = figures_of(video, source, 8)
    assert found["colour_worst"] == pytest.approx(100, abs=1e-3) and found["colour_mean"] == pytest.approx(100 / (5 * 48 * 48))


# --- measuring ----------------------------------------------------------------------------------------------------


def test_every_decoder_has_a_card_and_they_share_the_teacher_s_decodes(pairs, cards, monkeypatch):
    assert [card.family for card in cards] == ["turbo-vaed", "flash-vaed-ltx", "diffusers"]
    for card in cards:
        assert [one.name for one in card.patterns] == list(FEW)
        assert [one.teacher for one in card.patterns] == [one.teacher for one in cards[0].patterns]
        assert (card.frames, card.size) == (9, (32, 32))
    own = cards[2]  # the teacher's own decoder
    assert all(one.student == {**one.teacher, "psnr_to_teacher": 100} for one in own.patterns)
    assert summarise_card(own).kept == 1 and summarise_card(cards[0]).kept < 1

    asked = []
    monkeypatch.setattr(
        "turbovaed_cli.evaluation.testcard.measure.decode_clip",
        lambda source, pair, with_teacher=True: (
            asked.append(with_teacher) or decode_clip(source, pair, with_teacher=with_teacher)
        ),
    )
    measure_testcards(pairs, SMALL, only=["flat_808080"])
    assert asked == [True, False, False]


def test_figures_are_those_of_the_frames_that_reconstruct_writes(pairs, cards):
    scores = of(cards[0], "cuts")
    source, teacher, student = pattern_frames(pairs[0], scores)
    assert source.shape == (9, 32, 32, 3)
    again = figures_of(to_model(student), to_model(source), pairs[0].teacher.spec.space_ratio)
    assert again.items() <= scores.student.items() and "border" not in again  # one cell of 32 pixels has no inside
    errors = np.square(student.astype(float) - source).mean(axis=(1, 2, 3))
    shown = scores.pictures
    assert shown.index == errors.argmax()
    for picture, frames in ((shown.source, source), (shown.teacher, teacher), (shown.student, student)):
        assert (picture == frames[shown.index]).all()


def test_a_teacher_of_images_gets_pictures_that_stand_still(tmp_path):
    teacher = write_small_teacher("sdxl", tmp_path / "vae")
    card = measure_testcard(load_pair(str(teacher)), EvalSettings(frames=17, size=(16, 16)))
    assert card.frames == 1 and {one.frames for one in card.patterns} == {1}
    assert not {"cuts", "edges"} & {one.name for one in card.patterns}
    assert all("flicker" not in one.student for one in card.patterns)
    view = card_view(card, "sdxl")
    assert view.lead == f"{len(card.patterns)} drawn clips of at most 1 frame at 16x16"
    assert view.large[0].rows[0][0] == "The picture"  # of one frame, which needs no number


def test_only_some_patterns_can_be_measured(pairs):
    card = measure_testcard(pairs[0], SMALL, only=["ramps"])
    assert [one.name for one in card.patterns] == ["ramps"] and summarise_card(card).worst_flat is None
    assert card_document(card)["worst_flat"] is None
    with pytest.raises(SettingsError, match="rmaps"):
        measure_testcard(pairs[0], SMALL, only=["rmaps"])


# --- the result ---------------------------------------------------------------------------------------------------


def test_the_summary_is_of_the_patterns(cards):
    card = cards[0]
    summary = summarise_card(card)
    teacher, student = ([getattr(one, side)["psnr"] for one in card.patterns] for side in ("teacher", "student"))
    assert summary.mean_psnr == pytest.approx({"teacher": np.mean(teacher), "student": np.mean(student)})
    assert summary.kept == pytest.approx(np.mean(student) / np.mean(teacher))
    assert summary.num_low == {"teacher": sum(x < 30 for x in teacher), "student": sum(x < 30 for x in student)}
    flat = [one for one in card.patterns if one.colour is not None]
    assert summary.worst_flat.student["psnr"] == min(one.student["psnr"] for one in flat)
    assert summary.worst_colour.student["colour_mean"] == max(one.student["colour_mean"] for one in flat)
    assert summary.worst_grid.student["grid"] == max(one.student["grid"] for one in flat)
    behind = [one.shortfall_db for one in in_order(card.patterns)]
    assert behind == sorted(behind, reverse=True)


def test_each_worst_pattern_is_named_once_with_all_its_roles(cards):
    found = worst_patterns(cards[0])
    assert len({one.name for _, one in found}) == len(found)
    roles = [role for roles, _ in found for role in roles.split(", ")]
    assert len(set(roles)) == len(roles) and {"worst flat colour", "worse colour bars", "lowest PSNR"} <= set(roles)
    assert "furthest behind the teacher" not in [role for roles, _ in worst_patterns(cards[2]) for role in roles.split(", ")]


def test_the_document_can_be_read_again(cards, tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(whole_document(cards[1])))
    assert read_card(path) == cards[1]  # without pictures
    assert all(one.pictures is None for one in read_card(path).patterns)
    document = whole_document(cards[1])
    document["testcard"]["patterns"][3]["student"]["psnr"] = "high"
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptFileError, match=r"patterns\.3\.student"):
        read_card(path)
    document["testcard"]["patterns"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptFileError, match="no patterns"):
        read_card(path)


def test_tables_fit_80_columns_and_v_shows_every_pattern(cards, capsys, monkeypatch):
    from turbovaed_cli.cli.table import print_tables

    monkeypatch.setenv("COLUMNS", "80")
    print_tables(card_tables(cards[:1]))
    short = capsys.readouterr().out
    assert max(map(len, short.splitlines())) <= 80
    heading = next(line for line in short.splitlines() if line.strip().startswith("PSNR"))
    assert "teacher" in short and "banding" in short and heading
    assert sum(line.startswith("checkers 8 px ") for line in short.splitlines()) == 1
    assert ("flat colours (-v shows every pattern)" in short) == (short.count("\nflat #") < 6)
    print_tables(card_tables(cards[:1], every_pattern=True))
    whole = capsys.readouterr().out
    assert whole.count("\nflat #") >= 3 and "not shown" not in whole


# --- the command --------------------------------------------------------------------------------------------------


def test_it_needs_no_data(turbovaed, trio, tmp_path):
    pair = ("eval", "--testcard", "--model", trio.student, "--teacher", trio.teacher, *SIZE)
    code, out, err = turbovaed(*pair, "--report", tmp_path / "page.html")
    assert code == 0, err
    assert "test card of 10 patterns" in out and "worst flat colour" in out and "to look at" in err
    assert "data:image/png" in (tmp_path / "page.html").read_text()
    code, out, err = turbovaed(*pair, "--json", "-q")
    document = json.loads(out)
    assert code == 0 and err == "" and document["schema_version"] == 1 and "means" not in document
    assert len(document["testcard"]["patterns"]) == 10 and document["testcard"]["patterns"][0]["name"] == "flat_000000"


def test_with_data_it_comes_after_the_clips_and_each_compared_decoder_has_one(turbovaed, trio, videos, tmp_path):
    common = ("--data", videos / "a.mp4", "--teacher", trio.teacher, *SIZE, "--metrics", "psnr", "--testcard")
    code, out, err = turbovaed("eval", *common, "--compare", trio.student, trio.flash)
    assert code == 0, err
    assert out.count("test card of 10 patterns") == 2 and out.index("protocol") < out.index("test card")
    code, out, err = turbovaed("eval", *common, "--compare", trio.student, trio.flash, "--json")
    document = json.loads(out)
    for one in (document, *document["comparisons"]):
        assert one["means"]["ratio"]["psnr"] > 0 and one["testcard"]["num_patterns"] == 10
    code, out, err = turbovaed("eval", *common, "--model", trio.student, "--report", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert code == 0 and "<video" in html and "data:image/png" in html


def test_on_latents_it_is_measured_too(turbovaed, trio, tmp_path):
    save_file({"latents": torch.randn(1, 16, 2, 2, 2)}, tmp_path / "raw.safetensors")
    words = ("--latents", tmp_path / "raw.safetensors", "--metrics", "psnr", "--testcard", *SIZE)
    code, out, err = turbovaed("eval", "--model", trio.student, "--teacher", trio.teacher, *words, "--json")
    assert code == 0, err
    assert json.loads(out)["reference"] == "teacher" and json.loads(out)["testcard"]["num_patterns"] == 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--testcard"),
        (("--testcard", "--fail-under", "psnr=0.9"), "--fail-under is about clips"),
        (("--testcard", "--metrics", "psnr"), "--metrics is about clips"),
        (("--testcard", "--speed"), "--speed is about clips"),
        (("--testcard", "--protocol", "paper"), "published script has no test card"),
        (("--testcard", "--frames", "16"), "--frames 15 or 17"),
        (("--testcard", "--size", "100x100"), "--size 96x96 or 104x104"),
    ],
)
def test_what_it_cannot_answer_is_refused(words, says, turbovaed):
    code, out, err = turbovaed("eval", *words)
    assert (code, out) == (2, "") and is_two_lines(err) and says in err


def test_a_run_folder_that_cannot_keep_it_is_refused_before_anything_is_measured(turbovaed, tmp_path):
    (tmp_path / "run/eval").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps({"schema_version": 1, "settings": {}}))
    (tmp_path / "run/eval/testcard").touch()
    code, out, err = turbovaed("eval", "--testcard", "--model", tmp_path / "run")
    assert code != 0 and out == "" and is_two_lines(err) and "testcard" in err


# --- pages and run folders ----------------------------------------------------------------------------------------


def test_a_run_folder_keeps_the_figures_and_its_page_shows_them(pairs, cards, tmp_path, monkeypatch):
    """Also after the next checkpoint, which has no pictures; evaluations are not confused with it."""
    from turbovaed_cli.runs.rundir import RunDir

    run = RunDir(tmp_path / "run")
    run.eval.mkdir(parents=True)
    (run.root / "config.json").write_text(json.dumps({"schema_version": 1, "settings": {}}))
    keep_cards(cards[:1], [replace(pairs[0], run=run)], SMALL)
    (kept,) = run.testcards.iterdir()
    assert kept.name == "9x32x32.json"
    assert read_card(kept) == cards[0]
    assert run.report.read_text().count("data:image/png") > 20
    write_report(run.report, report_of_run(run, {}))
    later = run.report.read_text()
    assert "data:image/png" not in later and "Every pattern (10)" in later and "without its pictures" in later


def test_the_page_of_a_comparison_has_a_card_for_each_decoder(pairs, cards, videos, tmp_path):
    settings = replace(SMALL, metrics=("psnr",))
    results = evaluate_all(pairs, videos / "a.mp4", settings)
    write_comparison(tmp_path / "page.html", results, pairs, settings, videos, cards=cards)
    html = (tmp_path / "page.html").read_text()
    assert html.count('class="swatches"') == 3 and 'href="#testcard"' in html and "<h3>flash.safetensors</h3>" in html
    write_comparison(tmp_path / "page.html", results, pairs, settings, videos)
    assert "testcard-title" not in (tmp_path / "page.html").read_text()


def test_pictures_of_the_page_show_the_decoded_pixels(cards):
    import base64
    import io

    from PIL import Image

    view = card_view(cards[0], "mine")
    assert len(view.swatches) == 3 and view.own == "Student" and len(view.rows) == 10
    large = view.large[0]
    scores = next(one for _, one in worst_patterns(cards[0]))
    shots = large.rows[0][1]
    assert [shot.name for shot in shots] == ["Source", "Teacher", "Student"]
    for shot, picture in zip(shots, (scores.pictures.source, scores.pictures.teacher, scores.pictures.student), strict=True):
        png = Image.open(io.BytesIO(base64.b64decode(shot.data_uri.partition(",")[2])))
        assert (np.asarray(png) == picture).all()
    assert [shot.name for shot in large.rows[2][1]] == ["Teacher's error", "Student's error"]


def test_the_page_shows_its_pictures_in_a_browser(cards, pairs, browser, tmp_path):
    page = tmp_path / "page.html"
    keep_cards(cards, pairs, SMALL, page)
    html = page.read_text()
    assert "default-src 'none'" in html and not any(f'{kind}="http' in html for kind in ("src", "href"))
    assert html.count('class="swatches"') == 3 and "flash.safetensors" in html and str(tmp_path) not in html
    for width, colours in ((1200, "light"), (390, "dark")):
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=colours)
        tab.set_default_timeout(1000 * HANG_S)
        said = []
        tab.on("console", lambda message, said=said: said.append(message.text))
        tab.on("request", lambda request, said=said: said.append(request.url) if request.url.startswith("http") else None)
        tab.goto(page.as_uri())
        images = tab.evaluate("[...document.images].map(image => [image.naturalWidth, image.alt])")
        assert len(images) > 60 and all(natural > 0 and alt for natural, alt in images)
        tab.locator("summary").first.click()
        overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0 and said == []
        tab.close()
