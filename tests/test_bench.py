"""Bench measures what runs here, says what did not, and never mixes the two."""

import json
import platform

import pytest

from turbovaed_cli.bench import MODULES, as_document, as_row, bench
from turbovaed_cli.errors import SettingsError, ShapeError
from turbovaed_cli.settings import BenchSettings

SMALL = {"frames": 9, "size": (64, 64), "warmup": 1, "repeats": 3}


def test_torch_and_onnx_are_measured_beside_the_teacher(ltx_student, ltx_teacher):
    result = bench(str(ltx_student), BenchSettings(("torch", "onnx"), **SMALL), teacher=str(ltx_teacher))
    rows = {(row.target, row.network): row for row in result.rows}
    assert set(rows) == {("torch", "student"), ("torch", MODULES), ("torch", "teacher"), ("onnx", "student")}
    assert "Winograd" in rows["torch", "student"].runtime and "module by module" in rows["torch", MODULES].runtime
    for row in rows.values():
        assert row.measured and row.status == "measured"
        assert len(row.samples_ms) == 3
        assert 0 < row.p50_ms <= row.p90_ms
        assert row.fps == pytest.approx(9 / row.p50_ms * 1e3)
        assert row.peak_mb > 50
        assert row.speedup == pytest.approx(rows["torch", "teacher"].p50_ms / row.p50_ms)
    assert rows["torch", "teacher"].speedup == 1
    document = json.loads(json.dumps(as_document(result)))
    assert document["schema_version"] == 1
    assert {"target", "measured", "status"} <= set(document["rows"][0])
    assert "threads" in result.header


@pytest.mark.skipif(platform.system() == "Darwin", reason="there Core ML is measured")
def test_coreml_converts_describes_and_says_it_did_not_run(ltx_student):
    (row,) = bench(str(ltx_student), BenchSettings(("coreml",), **SMALL)).rows
    assert not row.measured
    assert row.p50_ms is row.fps is row.speedup is None
    assert "did not run here" in row.status and "Mac" in row.status
    assert row.precision == "fp16" and row.size_mb > 0
    assert "operators" in row.remarks[0] and "GMAC" in row.remarks[0]
    assert as_row(row)[3:9] == ("-",) * 6


def test_without_the_teacher_its_row_says_why(ltx_student):
    student, teacher, _plain = bench(str(ltx_student), BenchSettings(("torch",), **SMALL)).rows
    assert student.measured and student.speedup is None
    assert teacher.network == "teacher" and not teacher.measured
    assert "--teacher" in teacher.status or "which teacher" in teacher.status


def test_what_cannot_be_benched_is_refused_before_anything_runs(ltx_student):
    for settings, said in (
        (BenchSettings(("tpu",)), "tpu"),
        (BenchSettings(("onnx",), precision="bf16"), "bf16"),
        (BenchSettings(("torch",), repeats=0), "repeats"),
    ):
        with pytest.raises(SettingsError, match=said):
            bench(str(ltx_student), settings)
    with pytest.raises(ShapeError):
        bench(str(ltx_student), BenchSettings(("torch",), frames=4))
