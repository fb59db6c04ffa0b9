"""Bench measures what runs here, says what did not, and never mixes the two."""

import copy
import json
import platform
import re
import sys
from dataclasses import asdict, replace

import fake_coreml
import pytest
import torch
from conftest import installed
from safetensors.torch import save_file
from trio import write_trio

from turbovaed_cli.benchmarking import results
from turbovaed_cli.benchmarking.bench import bench
from turbovaed_cli.benchmarking.published import SPEEDS, estimate_on_phone, smallest_gmacs, why_no_estimate
from turbovaed_cli.benchmarking.results import BenchResult, BenchRow
from turbovaed_cli.benchmarking.target import COMPILED, MODULES
from turbovaed_cli.benchmarking.targets import coreml
from turbovaed_cli.cli import bench_tables
from turbovaed_cli.errors import CheckFailedError, SettingsError, ShapeError, TurboVaedError, UnavailableError
from turbovaed_cli.report.bench_page import render
from turbovaed_cli.settings import BenchSettings

SMALL = {"frames": 9, "size": (64, 64), "warmup": 1, "repeats": 3}


@pytest.fixture(scope="module", params=[("torch",), pytest.param(("torch", "onnx"), marks=pytest.mark.thorough)], ids="-".join)
def measured(request, videos, tmp_path_factory):
    """Torch, or torch and ONNX, with a decoder of another family beside the student, on latents of real clips."""
    trio = write_trio(tmp_path_factory.mktemp("trio"))
    settings = BenchSettings(request.param, data=videos, clips=2, **SMALL)
    return bench(str(trio.student), settings, teacher=str(trio.teacher), against=[str(trio.flash)])


def test_a_student_is_measured_beside_its_teacher(measured):
    rows = {(row.target, row.network): row for row in measured.rows if not row.is_beside}
    targets = {target for target, _ in rows}
    assert set(rows) == {("torch", "student"), ("torch", MODULES), ("torch", "teacher")} | {(name, "student") for name in targets}
    teacher = rows["torch", "teacher"]
    for row in rows.values():
        assert row.measured and row.status == "measured" and row.unit == "CPU"
        assert len(row.samples_ms) == 3
        assert 0 < row.p50_ms <= row.p90_ms and row.load_s > 0 and row.first_ms > 0
        assert row.fps == pytest.approx(9 / row.p50_ms * 1e3) and row.realtime == pytest.approx(row.fps / 24)
        assert row.peak_mb > 0
        assert row.speedup == pytest.approx(teacher.p50_ms / row.p50_ms) and row.speedup_over == "fp32"
        assert 5 < row.source_psnr_db < 40
    assert all(row.psnr_db > 100 for row in rows.values() if row is not teacher)
    assert teacher.psnr_db is None and teacher.speedup == 1
    assert "Winograd" in rows["torch", "student"].told["speedups"]
    assert "threads" in measured.header and set(measured.load_average) == targets
    assert measured.latents.startswith("latents of")


def test_onnx_runtime_is_measured(one_block_folder, monkeypatch):
    (row,) = in_this_process(one_block_folder, BenchSettings(("onnx",), **SMALL), "onnx", monkeypatch)
    assert (row.target, row.network, row.layout) == ("onnx", "student", "4d-cat")
    assert row.measured and row.size_mb > 0 and row.psnr_db > 100 and 0 < row.p50_ms <= row.p90_ms


@pytest.mark.thorough
def test_memory_over_length_is_measured_in_processes_of_its_own(tmp_path):
    trio = write_trio(tmp_path)
    settings = BenchSettings(("torch",), memory_frames=(17,), teacher=False, **SMALL)
    memory = bench(str(trio.student), settings, teacher=str(trio.teacher)).memory
    assert [(row.form, row.frames) for row in memory] == [("whole clip", 17), ("streamed", 17)]
    assert all(row.peak_mb > 0 for row in memory)


def test_a_decoder_of_another_family_has_a_row_on_every_target(measured):
    rows = {row.target: row for row in measured.rows if row.is_beside}
    assert {(row.target, row.network) for row in measured.rows if row.is_beside} == {(name, "flash.safetensors") for name in rows}
    assert rows.keys() == set(measured.load_average)
    for row in rows.values():
        assert row.measured and row.p50_ms > 0 and row.peak_mb > 0 and row.psnr_db is None and row.speedup > 0
        assert 3 < row.source_psnr_db < 40
    if "onnx" in rows:
        assert rows["onnx"].size_mb > 0 and rows["onnx"].layout == ""
        assert rows["onnx"].source_psnr_db == pytest.approx(rows["torch"].source_psnr_db, abs=1e-3)  # the same video
    assert {row.network for row in measured.rows if not row.is_beside} >= {"student", "teacher"}


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


def test_its_document_is_read_again_and_holds_no_estimate_among_rows(measured, tmp_path):
    document = json.loads(json.dumps(results.bench_document(measured), default=str))
    assert document["schema_version"] == 1 and document["estimates"] == []
    assert {"target", "measured", "status"} <= set(document["rows"][0])
    (tmp_path / "old.json").write_text(json.dumps(document))
    earlier = results.read_document(tmp_path / "old.json")["rows"]
    assert earlier == measured.rows
    good = document["rows"][0]
    for number, wrong in enumerate(
        (
            {"clips": []},
            {**document, "rows": []},
            {**document, "rows": [1]},
            {**document, "rows": [{**good, "samples_ms": []}]},
            {**document, "rows": [{**good, "unit": ["CPU"]}]},
            {name: value for name, value in document.items() if name != "machine"},
        )
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(wrong))
        with pytest.raises(SettingsError, match=path.name):
            results.read_document(path)
    with pytest.raises(SettingsError, match="none"):
        results.read_document(tmp_path / "none.json")


def row_with(samples, **more):
    p50 = sorted(samples)[len(samples) // 2]
    row = BenchRow("onnx", "student", "ONNX Runtime 1", "CPU", "fp32", "4d-cat", True, "measured", 9, (64, 64))
    return replace(row, p50_ms=p50, p90_ms=max(samples), fps=9e3 / p50, samples_ms=list(samples), psnr_db=60.0, **more)


def test_an_earlier_run_is_compared_row_by_row_with_an_interval():
    old = [row_with([20.0, 21.0, 19.0, 20.5, 20.2]), replace(row_with([5.0]), precision="fp16")]
    (change,) = results.changes([replace(row_with([10.0, 10.1, 9.9, 10.2, 9.8]), runtime="ONNX Runtime 2")], old)
    assert change.ratio == pytest.approx(2.02, abs=0.05)
    assert change.low < change.ratio < change.high and change.low > 1.8 and change.high < 2.3
    (same,) = results.changes(old[:1], old)
    assert same.low <= 1.0 <= same.high
    assert results.changes([replace(old[0], unit="CUDA")], old) == []
    document = results.bench_document(BenchResult("tiny", "here", "random latents", 1, old), [change])
    assert document["compared"][0]["unit"] == "CPU" and document["compared"][0]["ratio"] == change.ratio


def test_machines_are_one_whatever_their_versions_and_threads():
    here = "AMD EPYC (cpu), 2 of 2 threads; torch 2.13.0"
    assert results.same_machine(here, "AMD EPYC (cpu), 1 of 2 threads; torch 2.14.0")
    assert not results.same_machine(here, "Apple M4 (cpu), 8 of 8 threads; torch 2.13.0")


def test_speed_ups_are_over_the_teacher_in_the_same_precision_on_the_same_device():
    from turbovaed_cli.benchmarking.bench import _with_speedups

    fp32 = replace(row_with([10.0]), target="torch", layout="")
    teacher = replace(fp32, network="teacher", p50_ms=100.0)
    bf16 = [replace(row, precision="bf16", p50_ms=row.p50_ms / 2) for row in (fp32, replace(teacher, p50_ms=60.0))]
    others = [replace(row_with([5.0]), precision="int8"), replace(row_with([5.0]), target="coreml", unit="CPU and Neural Engine")]
    found = _with_speedups([fp32, teacher, *bf16, *others], torch.device("cpu"))
    assert [(row.speedup, row.speedup_over) for row in found] == [
        (10.0, "fp32"), (1.0, "fp32"), (6.0, "bf16"), (1.0, "bf16"), (20.0, "fp32"), (None, ""),
    ]  # fmt: skip


def test_thresholds_hold_the_fastest_student_of_every_target():
    result = BenchResult("tiny", "here", "random latents", 1, [row_with([30.0], realtime=12.5), row_with([300.0], realtime=1.25)])
    results.raise_for_thresholds(result, {})
    results.raise_for_thresholds(result, results.thresholds(["fps=24", "psnr_db=50", "realtime=1"]))
    with pytest.raises(CheckFailedError, match="fps 300 is below 301") as error:
        results.raise_for_thresholds(result, {"fps": 301})
    assert error.value.exit_code == 4
    absent = replace(row_with([1.0]), target="coreml", measured=False, status="not measured: no Mac", fps=None)
    with pytest.raises(UnavailableError, match="coreml was not measured: no Mac") as missing:
        results.raise_for_thresholds(replace(result, rows=[*result.rows, absent]), {"fps": 1})
    assert missing.value.exit_code == 3
    with pytest.raises(UnavailableError, match="speedup"):
        results.raise_for_thresholds(result, {"speedup": 2})
    for wrong in ("fps", "fps=fast", "colour=3"):
        with pytest.raises(SettingsError, match=wrong):
            results.thresholds([wrong])


@pytest.mark.skipif(platform.system() == "Darwin", reason="there Core ML is measured")
def test_coreml_converts_describes_and_says_it_did_not_run(one_block_folder):
    result = bench(str(one_block_folder), BenchSettings(("coreml",), **SMALL))
    (row,) = result.rows
    assert not row.measured
    assert row.p50_ms is row.fps is row.speedup is row.psnr_db is None
    assert "did not run here" in row.status and "Mac" in row.status
    assert row.precision == "fp16" and row.size_mb > 0
    assert "operators" in row.remarks[0] and "GMAC" in row.remarks[0]
    shown = {table.title.partition(":")[0]: table.rows for table in bench_tables.tables(result)}
    assert "How fast" not in shown and shown["Not measured here"][0][0] == "coreml"
    assert "Estimated, not measured" not in shown and result.estimate is None
    assert re.fullmatch(
        r"no estimate for an iPhone: the graph has \S+ GMAC, the smallest with published figures 406", result.no_estimate
    )
    assert results.bench_document(result)["no_estimate"] == result.no_estimate


@pytest.mark.slow
@pytest.mark.parametrize("target", ["executorch", "litert"])
def test_runtimes_of_phones_are_measured_on_this_cpu(target, one_block_folder, monkeypatch):
    (row,) = in_this_process(one_block_folder, BenchSettings((installed(target),), threads=1, **SMALL), target, monkeypatch)
    assert row.measured and row.psnr_db > 100 and row.size_mb > 0
    assert row.unit == "CPU, XNNPACK"


def test_each_precision_that_a_target_has_is_a_row(ltx_student, monkeypatch):
    settings = BenchSettings(("torch",), precisions=("int8", "fp32", "bf16"), **SMALL)
    rows = {(row.network, row.precision): row for row in in_this_process(ltx_student, settings, "torch", monkeypatch)}
    assert set(rows) == {(name, precision) for name in ("student", MODULES) for precision in ("fp32", "bf16")}
    assert 20 < rows["student", "bf16"].psnr_db < 70 < rows["student", "fp32"].psnr_db


def test_a_row_that_is_slow_is_called_no_more_than_needed(ltx_student, monkeypatch):
    monkeypatch.setattr(sys.modules["turbovaed_cli.benchmarking.child"], "_ENOUGH_MS", 0.001)
    settings = BenchSettings(("torch",), **SMALL | {"repeats": 8})
    for row in in_this_process(ltx_student, settings, "torch", monkeypatch):
        assert len(row.samples_ms) == 3 and "3 calls" in row.remarks[0]


def test_a_target_whose_extra_is_missing_is_a_row_that_says_so(one_block_folder, monkeypatch, tmp_path):
    """In the child; the other targets go on."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'litert_torch' else find(name, *rest)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (litert,) = bench(str(one_block_folder), BenchSettings(("litert",), **SMALL)).rows
    assert not litert.measured
    assert "litert_torch" in litert.status and "turbovaed[litert]" in litert.status


def test_torch_compile_is_a_row_of_its_own(ltx_student, monkeypatch):
    """Its speed is not ours to test, and it takes a minute: what it would run is looked at in this process."""
    from turbovaed_cli.benchmarking.child import _work
    from turbovaed_cli.export.checked_on import latents_for
    from turbovaed_cli.models.loading import load_student
    from turbovaed_cli.settings import ExportSettings

    settings = BenchSettings(("torch",), compile=True, **SMALL)
    monkeypatch.setattr(torch, "compile", lambda module: lambda latents: module(latents) + 1)
    job, folder = job_of(ltx_student, settings, "torch")
    with folder:
        variants = {variant.network: variant for variant in _work(job, settings)}
        student = load_student(ltx_student)
        latents = latents_for(student, ExportSettings(9, ((64, 64),)))[0][64, 64][0]
        with torch.no_grad():
            assert torch.equal(variants[COMPILED].load().video(latents), student(latents) + 1)


def job_of(student, settings, target):
    """What a child is told, for running it in this process."""
    import tempfile
    from pathlib import Path

    from turbovaed_cli.benchmarking.bench import _Asked, _write_inputs
    from turbovaed_cli.benchmarking.child import decoder_in_job
    from turbovaed_cli.models.loading import load_student
    from turbovaed_cli.reporting import quiet

    folder = tempfile.TemporaryDirectory()
    _write_inputs(Path(folder.name), _Asked(str(student)), load_student(student), settings, quiet)
    decoders = [decoder_in_job(str(student), str(student), is_student=True)]
    job = {"decoders": decoders, "teacher": None, "folder": folder.name, "threads": 2}
    return {**job, "target": target, "settings": asdict(settings)}, folder


def in_this_process(student, settings, target, monkeypatch):
    """The rows of one target; what a process of its own would tell of the peak is not asked."""
    module = sys.modules["turbovaed_cli.benchmarking.child"]
    monkeypatch.setattr(module, "in_child", lambda job, settings: {"peak_mb": None})
    job, folder = job_of(student, settings, target)
    with folder:
        return [results.row_of(row) for row in module._measure(job, settings)["rows"]]


@pytest.mark.thorough
def test_on_a_mac_every_choice_of_compute_units_is_measured(one_block_folder, monkeypatch):
    fake_coreml.install(monkeypatch)
    rows = in_this_process(one_block_folder, BenchSettings(("coreml",), **SMALL), "coreml", monkeypatch)
    assert [row.unit for row in rows] == ["all units", "CPU and Neural Engine", "CPU and GPU", "CPU"]
    for row in rows:
        assert row.measured, row.status
        assert row.load_s == pytest.approx(0.12) and len(row.samples_ms) == 3 and 50 < row.psnr_db < 100
        counts = row.told["operators_by_unit"]
        assert (counts.get("Neural Engine", 0) > 10) == (row.unit in ("all units", "CPU and Neural Engine"))
        assert row.told["slowest_operators"][0]["operator"] == "conv"
    assert any("on Neural Engine" in line for line in bench_tables.said(rows[0]))


def test_an_attached_iphone_is_measured_by_name(one_block_folder, monkeypatch):
    fake_coreml.install(monkeypatch, [fake_coreml.phone("Anna's iPhone", 1), fake_coreml.phone("Lab", 2)])
    settings = BenchSettings(("coreml",), device="iphone:Lab", apple_team="TEAM", **SMALL)
    coreml._known.clear()
    rows = in_this_process(one_block_folder, settings, "coreml", monkeypatch)
    assert len(rows) == 4
    for row in rows:
        assert row.measured, row.status
        assert row.unit.startswith("Lab, 18.1: ") and row.load_s == pytest.approx(0.34) and 50 < row.psnr_db < 100
        assert "not_told" not in row.told and row.told["operators_by_unit"]


@pytest.mark.parametrize(
    ("device", "targets", "team", "said"),
    [
        ("iphone", ("coreml",), "TEAM", "2 are attached"),
        ("iphone:Lab", ("coreml",), "", "iphone:Lab needs `apple_team`"),
        ("iphone:Bob's", ("coreml",), "TEAM", "no such device"),
        ("ipad", ("coreml",), "TEAM", "attached: none"),
        ("iphone:Lab", ("torch", "onnx"), "TEAM", "is for Core ML"),
    ],
)
def test_a_phone_that_cannot_be_had_is_refused_before_anything_is_converted(
    device, targets, team, said, ltx_student, monkeypatch
):
    fake_coreml.install(monkeypatch, [fake_coreml.phone("Anna's iPhone", 1), fake_coreml.phone("Lab", 2)])
    with pytest.raises(TurboVaedError, match=said):
        bench(str(ltx_student), BenchSettings(targets, device=device, apple_team=team, **SMALL))


def test_an_app_that_cannot_be_built_is_built_once(one_block_folder, monkeypatch):
    fake_coreml.install(monkeypatch, [fake_coreml.phone("Lab", 2)])
    coreml._known.clear()
    built = []

    def fail(*arguments):
        built.append(arguments)
        raise RuntimeError("xcodebuild: no certificate")

    monkeypatch.setattr(
        "coremltools.models.ml_program.experimental.remote_device.Device._build_and_launch_model_runner_app", fail
    )
    settings = BenchSettings(("coreml",), device="iphone", apple_team="TEAM", **SMALL)
    rows = in_this_process(one_block_folder, settings, "coreml", monkeypatch)
    coreml._known.clear()
    assert len(built) == 1 and all("no certificate" in row.status and not row.measured for row in rows)


def test_a_runtime_that_fails_while_it_is_timed_leaves_the_other_rows(ltx_student, monkeypatch):
    from turbovaed_cli.benchmarking.targets import torch as target

    made = target._fast

    def failing(student):
        decode, about = made(student)
        calls = iter(range(3))

        def once(latents):
            if next(calls, None) is None:
                raise RuntimeError("out of memory")
            return decode(latents)

        return once, about

    monkeypatch.setattr(target, "_fast", failing)
    fast, plain = in_this_process(ltx_student, BenchSettings(("torch",), **SMALL), "torch", monkeypatch)
    assert not fast.measured and "out of memory" in fast.status and fast.first_ms is None
    assert plain.measured and len(plain.samples_ms) == 3


def test_a_target_that_fails_leaves_the_others_and_is_told_in_the_end(ltx_student, monkeypatch):
    def child(job, settings):
        if job["target"] == "onnx":
            raise CheckFailedError("onnx in fp16 is not what the student is")
        return {"rows": [asdict(replace(row_with([3.0]), target=job["target"]))], "load_average": [0.0, 0.0]}

    monkeypatch.setattr(sys.modules["turbovaed_cli.benchmarking.bench"], "in_child", child)
    result = bench(str(ltx_student), BenchSettings(("onnx", "torch"), teacher=False, **SMALL))
    assert [(row.target, row.measured) for row in result.rows] == [("onnx", False), ("torch", True)]
    assert "not what the student is" in result.rows[0].status and [error.exit_code for error in result.failures] == [4]


def test_without_the_teacher_its_row_says_why(ltx_student, monkeypatch):
    told = []

    def child(job, settings):
        told.append(job["teacher"])
        return {"rows": [asdict(replace(row_with([3.0]), target=job["target"]))], "load_average": [0.0, 0.0]}

    monkeypatch.setattr(sys.modules["turbovaed_cli.benchmarking.bench"], "in_child", child)
    onnx, student, teacher = bench(str(ltx_student), BenchSettings(("onnx", "torch"), **SMALL)).rows
    assert told == [None, None] and onnx.target == "onnx" and student.speedup is None
    assert (teacher.target, teacher.network) == ("torch", "teacher") and not teacher.measured
    assert "does not name its teacher" in teacher.status


def test_what_cannot_be_benched_is_refused_before_anything_runs(ltx_student, tmp_path):
    save_file({"latents": torch.zeros(6, 2, 2, 2)}, tmp_path / "latents.safetensors")
    for settings, said in (
        (BenchSettings(("tpu",)), "tpu"),
        (BenchSettings(("onnx",), precisions=("bf16",)), "bf16"),
        (BenchSettings(("torch", "onnx"), precisions=("fp32", "6bit")), "6bit"),
        (BenchSettings(("onnx",), precisions=("int8",)), "real latents"),
        (BenchSettings(("onnx",), layouts=("3d",)), "`layout` 3d"),
        (BenchSettings(("litert",), layouts=("4d-cat", "5d")), "litert does not take `layout` 5d"),
        (BenchSettings(("onnx",), layouts=()), "`layout`"),
        (BenchSettings(("torch",), repeats=0), "repeats"),
        (BenchSettings(("torch",), threads=-1), "`threads`"),
        (BenchSettings(("torch",), memory_frames=(18,)), "18"),
        (BenchSettings(("torch",), data=tmp_path, latents=tmp_path), "`latents`"),
        (BenchSettings(("torch",), latents=tmp_path / "latents.safetensors"), r"\(6, 2, 2, 2\)"),
    ):
        with pytest.raises(SettingsError, match=said):
            bench(str(ltx_student), settings)
    with pytest.raises(SettingsError, match="nowhere"):
        bench(str(ltx_student), BenchSettings(("torch",), **SMALL), teacher="nowhere")
    with pytest.raises(ShapeError):
        bench(str(ltx_student), BenchSettings(("torch",), frames=4))


@pytest.mark.thorough
def test_published_counts_of_operations_are_our_own():
    """GMACs grow with the number of pixels alone, so they are counted at a small size."""
    from turbovaed_cli.export.cost import cost
    from turbovaed_cli.export.export_form import export_form
    from turbovaed_cli.export.format import Graph
    from turbovaed_cli.models.loading import build_student
    from turbovaed_cli.registry.rows import MODELS

    for name in ("ltx", "hunyuan", "video-dc-ae"):
        with torch.device("meta"):
            student = build_student({**MODELS[name].student.config, "teacher": name}).eval()
        frames = SPEEDS[name][0].frames
        latents = torch.zeros(1, *student.latent_shape(frames, (64, 64)))
        spent = cost(Graph(export_form(student.to_empty(device="cpu")), {"latents": latents}), 2).gmacs
        for speed in SPEEDS[name]:
            height, width = speed.size
            pixels = -(-height // 32) * 32 * width
            assert speed.gmacs == pytest.approx(spent * pixels / 64**2, rel=1e-3)
    estimate = estimate_on_phone(406.32, 17)
    assert estimate.fps_low < 161.8 <= estimate.fps_high
    result = BenchResult(
        "ltx", "here", "random latents", 1, [row_with([30.0])], estimate=estimate, no_estimate=why_no_estimate(406.32)
    )
    (table,) = (table for table in bench_tables.tables(result) if table.title == "Estimated, not measured")
    widths = [max(len(row[column]) for row in table.rows) for column in (0, 1)]
    assert sum(widths) + 2 <= 80 and result.no_estimate == ""


def test_a_graph_below_the_smallest_published_one_has_no_estimate():
    """Small graphs are bound by latency: a roofline said 24,717 frames per second of one."""
    assert smallest_gmacs() == 406.32
    assert estimate_on_phone(406.0, 17) is None and "406 GMAC, the smallest" in why_no_estimate(405.9)


def test_off_the_cpu_the_layout_that_streaming_uses_has_a_row(one_block, monkeypatch):
    """Beside the modules, in every precision; on a device without numbers, whose shapes are those of all others."""
    from turbovaed_cli.benchmarking.target import Work
    from turbovaed_cli.benchmarking.targets import torch as target

    meta = torch.device("meta")
    monkeypatch.setattr(target, "torch_device", lambda asked: meta)

    def student(precision):
        return copy.deepcopy(one_block).to(meta, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])

    work = Work(BenchSettings(), ("fp32", "bf16"), student, None, None, with_teacher=False, threads=1)
    variants = target.variants(work)
    assert [(v.network, v.precision) for v in variants] == [
        (network, precision) for precision in ("fp32", "bf16") for network in ("student", "student, channels last")
    ]
    latents = torch.zeros(1, 8, 3, 4, 4)
    loaded = [variant.load() for variant in variants]
    assert len({running.decode(latents).shape for running in loaded}) == 1
    assert [running.about.get("speedups") for running in loaded] == [None, "channels last"] * 2


def test_on_cuda_every_form_has_a_row_and_the_chosen_one_is_named(one_block, monkeypatch, tmp_path):
    """On a CPU that passes for a GPU; CUDA graphs, which it has not, are left out of the choice with a note."""
    from turbovaed_cli.benchmarking.target import Work
    from turbovaed_cli.benchmarking.targets import torch as target
    from turbovaed_cli.models import gpu_form

    monkeypatch.setenv("TURBOVAED_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_form, "_IN_MEMORY", {})
    monkeypatch.setattr(gpu_form, "can_choose", lambda *_: True)
    monkeypatch.setattr(type(one_block), "decodes_fast", False)
    work = Work(BenchSettings(), ("fp32",), lambda _: copy.deepcopy(one_block), None, None, with_teacher=False, threads=1)
    rows = target._of_student(work, torch.device("cuda"))
    assert list(rows) == [
        "student", "student, plain", "student, channels last", "student, fused kernel", "student, CUDA graph",
    ]  # fmt: skip
    latents = torch.randn(1, 8, 3, 4, 4)
    with torch.no_grad():
        wanted, made = one_block(latents), {name: rows[name]("fp32") for name in rows if name != "student, CUDA graph"}
        for decode, _ in made.values():
            assert (decode(latents) - wanted).abs().max() <= 1e-4
    chosen = made["student"][1]["gpu_form"]
    assert chosen.split(" ")[0] in gpu_form.TRIED and re.search(r"\(modules [\d.]+ ms, channels-last [\d.]+ ms, fused ", chosen)
    assert "; graphs is left out: RuntimeError: " in chosen
    row = replace(
        results.row_of(asdict(BenchRow("torch", "student", "", "", "fp32", "", True, "", 9, (64, 64)))), told=made["student"][1]
    )
    assert bench_tables.said(row) == [f"student, fp32: decodes in the form {chosen}"]
