"""Bench puts further decoders beside a student: rows of their own, on the same latents."""

import json
import sys
from dataclasses import replace

import pytest
from trio import write_trio

from turbovaed_cli.benchmarking import child, results
from turbovaed_cli.benchmarking.bench import _Asked, _decoders_of, _memory_over_length, bench
from turbovaed_cli.cli import bench_tables
from turbovaed_cli.errors import CheckFailedError, SettingsError
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.report.bench_page import render
from turbovaed_cli.reporting import quiet
from turbovaed_cli.settings import BenchSettings

SMALL = {"frames": 9, "size": (32, 32), "warmup": 1, "repeats": 2}


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    return write_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture(scope="module")
def measured(trio, videos):
    settings = BenchSettings(("torch", "onnx"), data=videos, clips=1, **SMALL)
    return bench(str(trio.student), settings, teacher=str(trio.teacher), against=[str(trio.flash)])


def test_a_decoder_of_another_family_has_a_row_on_every_target(measured):
    rows = {(row.target, row.network): row for row in measured.rows if row.is_beside}
    assert set(rows) == {("torch", "flash.safetensors"), ("onnx", "flash.safetensors")}
    for row in rows.values():
        assert row.measured and row.p50_ms > 0 and row.peak_mb > 0 and row.psnr_db is None and row.speedup > 0
        assert 3 < row.source_psnr_db < 40
    assert rows["onnx", "flash.safetensors"].size_mb > 0 and rows["onnx", "flash.safetensors"].layout == ""
    gap = [row.source_psnr_db for row in rows.values()]
    assert gap[0] == pytest.approx(gap[1], abs=1e-3)  # ONNX Runtime computes the same video
    assert {row.network for row in measured.rows if not row.is_beside} >= {"student", "teacher"}


def test_memory_is_that_of_forms_that_each_decoder_has(trio, monkeypatch):
    """The work of the processes that measure it, done in this one."""
    settings, teacher = BenchSettings(("torch",), memory_frames=(9,), **SMALL), str(trio.teacher)
    pair = load_pair(str(trio.student), teacher, against=[str(trio.flash), teacher], with_teacher=False)
    job = {"decoders": _decoders_of(pair, _Asked(str(trio.student), teacher)), "teacher": teacher}
    monkeypatch.setattr(
        sys.modules["turbovaed_cli.benchmarking.bench"], "peak_in_child", lambda job, of: (child._memory_of_length(job, of), [])
    )
    forms = {row.form: row.peak_mb for row in _memory_over_length(job, settings, quiet)}
    kinds = ("whole clip", "streamed")
    assert list(forms) == [*kinds, *(f"flash.safetensors, {kind}" for kind in kinds), "vae, whole clip"]  # a VAE does not stream
    assert all(peak is not None for peak in forms.values())
    assert child._memory_of_length({**job, "memory": ["whole clip", 9], "of": "teacher"}, settings) is not None


def test_family_parameters_and_licence_of_each_are_shown(measured):
    document = json.loads(json.dumps(results.bench_document(measured), default=str))
    assert [(one["name"], one["family"]) for one in document["decoders"]][1] == ("flash.safetensors", "flash-vaed-ltx")
    assert document["decoders"][1]["params"] > 100_000 and "no licence" in document["decoders"][1]["licence"]
    text = "\n".join(str(table.rows) for table in bench_tables.tables(measured))
    assert "flash-vaed-ltx" in text and "no licence" in text
    html = render([document])
    assert "no licence" in html and html.count("flash.safetensors") > 2


def test_thresholds_are_for_the_model_and_not_for_those_beside_it(measured):
    fastest = max(row.fps for row in measured.rows if row.fps and not row.is_beside and row.network != "teacher")
    rows = [replace(row, fps=10 * fastest) if row.is_beside else row for row in measured.rows]
    with pytest.raises(CheckFailedError):
        results.raise_for_thresholds(replace(measured, rows=rows), {"fps": 2 * fastest})


def test_a_rival_is_a_model_too(trio):
    measured = bench(str(trio.flash), BenchSettings(("torch",), teacher=False, **SMALL), teacher=str(trio.teacher))
    (row,) = measured.rows
    assert row.network == "student" and row.measured and row.psnr_db > 90 and measured.params > 100_000


def test_a_model_is_not_put_beside_itself(trio):
    with pytest.raises(SettingsError, match="twice"):
        bench(str(trio.student), BenchSettings(("torch",), **SMALL), teacher=str(trio.teacher), against=[str(trio.student)])
