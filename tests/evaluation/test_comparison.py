"""Decoders of several families on the same clips: one table, one page, and the whole chain from eval to an export."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from limits import HANG_S
from safetensors.torch import save_file
from trio import write_trio

from turbovaed_cli.cli.eval_tables import as_tables
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.evaluation.evaluate import evaluate_all
from turbovaed_cli.evaluation.from_latents import evaluate_latents
from turbovaed_cli.evaluation.scores import eval_document
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.report.compare_page import comparison_of, decoder_rows, quality_and_speed, write_comparison
from turbovaed_cli.settings import EvalSettings

SMALL = EvalSettings(frames=9, size=(64, 64), metrics=("psnr", "ssim", "flicker"), speed_repeats=2)


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    return write_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture(scope="module")
def pairs(trio):
    teacher = str(trio.teacher)
    return [load_pair(str(trio.student), teacher), load_pair(str(trio.flash), teacher), load_pair(teacher)]


@pytest.fixture(scope="module")
def results(pairs, videos):
    """With peaks as the command measures them, in processes of their own."""
    peaks = {"teacher": 60.0, "student": 20.0}
    return [replace(result, peak_mb=peaks) for result in evaluate_all(pairs, videos, SMALL)]


@pytest.fixture(scope="module")
def page(results, pairs, videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_comparison(path, results, pairs, SMALL, videos)
    return path


def test_three_kinds_of_decoders_are_measured_on_the_same_clips(results):
    student, flash, own = results
    assert [result.family for result in results] == ["turbo-vaed", "flash-vaed-ltx", "diffusers"]
    assert own.means["student"] == own.means["teacher"] == student.means["teacher"] == flash.means["teacher"]
    assert own.kept["psnr"] == 1 and flash.means["student"] != student.means["student"]
    assert student.decode_times.teacher_s == own.decode_times.teacher_s  # timed once, in turns with all
    document = eval_document(flash)
    assert document["reference"] == "source" and document["family"] == "flash-vaed-ltx" and "no licence" in document["licence"]
    text = str([table.rows for table in as_tables(results, Path())])
    assert "no licence" in text and "one decode adds" in text and "  decoder" in text


def test_the_table_has_a_row_for_each_decoder_and_a_column_for_each_metric(results, pairs):
    rows = decoder_rows(results, pairs)
    assert [row.name for row in rows] == ["Teacher", "student", "flash.safetensors", "vae"]
    assert [row.is_teacher for row in rows] == [True, False, False, False]
    comparison = comparison_of(results, rows, [], "videos")
    assert [metric.name for metric in comparison.metrics] == ["psnr", "ssim", "flicker"]
    assert all(row.milliseconds > 0 and row.frames_per_second > 0 and row.peak_mb > 0 and row.params > 0 for row in rows)
    plot = quality_and_speed(comparison)
    assert {dot.label for dot in plot.dots} == {row.name for row in rows} and [dot.square for dot in plot.dots].count(True) == 1
    assert "higher is better" in plot.y_title


def test_the_page_loads_nothing_and_names_everything(page):
    html = page.read_text()
    assert "default-src 'none'" in html and not any(f'{kind}="http' in html for kind in ("src", "href"))
    assert "flash.safetensors" in html and "no licence" in html and html.count("<article") == 2  # the worst and the median clip
    assert str(page.parent) not in html


def test_any_two_pictures_are_chosen_in_a_browser(page, browser):
    for width, colours in ((1100, "light"), (390, "dark")):
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=colours)
        tab.set_default_timeout(1000 * HANG_S)
        said = []
        tab.on("console", lambda message, said=said: said.append(message.text))
        tab.on("request", lambda request, said=said: said.append(request.url) if request.url.startswith("http") else None)
        tab.goto(page.as_uri())
        first = tab.locator("article").first
        choices = first.locator(".choose.left option").all_inner_texts()
        assert choices[:5] == ["Source", "Teacher", "student", "flash.safetensors", "vae"] and len(choices) == 9
        tab.wait_for_function("document.querySelector('video').readyState >= 2")
        for side, value in (("left", "source"), ("right", "model-1")):
            first.locator(f".choose.{side}").select_option(value)
        drawn = tab.evaluate(
            "['.over', '.under'].map(name => { const c = document.querySelector('article ' + name);"
            " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].reduce((a, b) => a + b, 0); })"
        )
        assert drawn[0] != drawn[1] and min(drawn) > 0
        first.locator(".divider").focus()
        tab.keyboard.press("ArrowRight")
        assert first.locator(".divider").input_value() == "51"
        assert first.locator(".tag.left").inner_text() == "Source"
        overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0 and said == []
        tab.close()


def test_on_latents_the_teacher_is_the_reference(pairs, tmp_path):
    latents = torch.randn(1, 16, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, tmp_path / "raw.safetensors")
    results = evaluate_latents(pairs, [tmp_path / "raw.safetensors"], SMALL)
    assert results[2].means["student"]["psnr"] == 100 and results[2].means["student"]["flicker"] == 0
    assert 0 < results[1].means["student"]["psnr"] < 60 and results[0].means["teacher"] == {} == results[0].means["ratio"]
    document = json.loads(json.dumps(eval_document(results[0])))
    assert document["reference"] == "teacher" and "no source" in document["reference_label"]
    assert (document["frames"], document["size"]) == (9, [64, 64])
    text = str([table.rows for table in as_tables(results, tmp_path)])
    assert "no source" in text and "'ratio'" not in text
    normalised = pairs[0].student.space.normalised(latents)
    save_file({"latents": normalised}, tmp_path / "normalised.safetensors")
    again = evaluate_latents(pairs, [tmp_path / "normalised.safetensors"], SMALL, latents_are="normalised")
    assert again[1].means["student"]["psnr"] == pytest.approx(results[1].means["student"]["psnr"], abs=0.05)
    write_comparison(tmp_path / "page.html", results, pairs, SMALL, None)
    html = (tmp_path / "page.html").read_text()
    assert "Teacher&#39;s decode" in html and "the teacher&#39;s own decode" in html
    with pytest.raises(SettingsError, match="paper"):
        evaluate_latents(pairs, [tmp_path / "raw.safetensors"], replace(SMALL, protocol="paper"))


@pytest.mark.thorough
def test_the_whole_chain_from_the_command_line(turbovaed, trio, videos, tmp_path):
    """Three kinds side by side with a page, JSON as before, and an export of the rival."""
    common = ("--frames", 9, "--size", "64x64", "--metrics", "psnr", "--json")
    models = ("--compare", trio.student, trio.flash, f"diffusers:{trio.teacher}", "--teacher", trio.teacher)
    code, out, err = turbovaed("eval", "--data", videos / "a.mp4", *models, *common, "--report", tmp_path / "page.html")
    assert code == 0, err
    document = json.loads(out)
    assert [one["family"] for one in document["comparisons"]] == ["flash-vaed-ltx", "diffusers"]
    peaks = [one["peak_mb"] for one in (document, *document["comparisons"])]
    assert all(one["student"] > 0 for one in peaks) and len({one["teacher"] for one in peaks}) == 1  # measured once
    assert document["means"]["ratio"]["psnr"] > 0 and (tmp_path / "page.html").stat().st_size > 10_000
    code, out, err = turbovaed(
        "export", "--model", trio.flash, "--teacher", trio.teacher, "--frames", 9, "--size", "32x32", "--out", tmp_path / "f.onnx"
    )
    assert code == 0 and "f.onnx" in out, err


def test_what_latents_cannot_answer_is_refused(turbovaed, tmp_path):
    save_file({"latents": torch.zeros(1, 12, 2, 2, 2)}, tmp_path / "l.safetensors")
    for words, says in (
        ((), "there is nothing to measure"),
        (("--data", tmp_path, "--latents", tmp_path / "l.safetensors"), "cannot be combined"),
        (("--latents", tmp_path / "l.safetensors", "--fail-under", "psnr=0.9"), "the teacher is the reference"),
    ):
        code, _, err = turbovaed("eval", *words)
        assert code == 2 and says in err
