"""Benchmarks print what they could measure, whatever else does not fit in memory; those for a GPU need no installation."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from turbovaed_cli.registry.rows import MODELS

ROOT = Path(__file__).resolve().parents[1]
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 22.00 GiB"


@pytest.fixture
def benchmark(monkeypatch):
    """A script of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        return __import__(name)

    yield load
    for name in (
        "decode",
        "training_step",
        "plain_vs_fast",
        "truncated_features",
        "cache_latents",
        "tf32",
        "decode_memory",
        "students",
        "recipes",
    ):
        sys.modules.pop(name, None)


def test_a_teacher_that_does_not_fit_costs_no_other_row(benchmark, monkeypatch, capsys):
    decode = benchmark("decode")

    def does_not_fit(name, latents):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(decode, "teacher_decode", does_not_fit)
    monkeypatch.setattr(decode, "matmul_rate", lambda dtype, device: 1e9)
    small = ["decode.py", "--model", "tiny", "--frames", "3", "--size", "32", "--rounds", "1", "--teacher"]
    monkeypatch.setattr(sys, "argv", [*small, "--json"])
    decode.main()
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["variants"]}
    assert rows.pop("teacher's decoder") == {"name": "teacher's decoder", "dtype": "fp32", "error": OUT_OF_MEMORY}
    assert len(rows) == 9 and all(row["ratio_to_plain"] > 0 and row["psnr_db"] > 30 for row in rows.values())
    assert rows["plain"]["max_abs"] == 0 < rows["plain bf16"]["max_abs"]

    plain_form = decode.plain_form
    on_meta = {"meta": plain_form}  # whose FLOPs are counted
    monkeypatch.setattr(
        decode, "plain_form", lambda student: on_meta.get(student.device.type, partial(does_not_fit, "tiny"))(student)
    )
    monkeypatch.setattr(sys, "argv", small)
    decode.main()
    lines = {line[:55].strip(): line[55:] for line in capsys.readouterr().out.splitlines()}
    assert all(f"not measured: {OUT_OF_MEMORY}" in lines[name] for name in ("plain", "plain bf16", "teacher's decoder"))
    assert "not measured" not in lines["modules"] and lines["modules"].split()[0] == "-"  # nothing to be a ratio of


@pytest.fixture
def step(benchmark):
    """training_step.py, and options of a tiny step on a CPU."""
    module = benchmark("training_step")
    options = argparse.Namespace(
        frames=9,
        size=64,
        channels_divisor=4,
        device="cpu",
        perceptual="none",
        compile=False,
        rounds=1,
        json=True,
        one=None,
        of=None,
    )
    return module, options


def test_a_way_to_train_that_does_not_fit_costs_no_other_one(step, monkeypatch, capsys):
    module, options = step

    def does_not_fit(self, batches):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    ways = {name: way for name, way in module.ways_of(options).items() if name in ("published, fp32", "cached, fp32")}
    monkeypatch.setattr(module, "ways_of", lambda options: ways)
    monkeypatch.setattr(module.PublishedLoop, "learn", does_not_fit)
    found = module.report_time(module.MODELS["ltx"], options)
    assert {name: len(times) for name, times in found["seconds"].items()} == {"cached, fp32": 1}
    said = capsys.readouterr().err
    assert said.count("not measured") == 1 and "CUDNN_STATUS_ALLOC_FAILED" in said


def test_memory_on_cuda_is_measured_once_and_in_this_process(step, monkeypatch):
    module, options = step
    asked = []
    monkeypatch.setattr(module, "ways_of", lambda options: {"published, fp32": None, "cached, fp32": None})
    monkeypatch.setattr(module, "peak_of", lambda spec, way, options: asked.append(way) or 100.0)
    monkeypatch.setattr(module, "in_a_child", lambda name, way: asked.append(f"{way} in a child") or 100.0)
    monkeypatch.setattr(module, "empty_cache", lambda device: None)
    options.rounds = 3
    options.device = "cuda"
    module.report_memory(module.MODELS["ltx"], options)
    assert asked == ["published, fp32", "cached, fp32"]
    options.device = "cpu"
    module.report_memory(module.MODELS["ltx"], options)
    assert asked[2:] == ["published, fp32 in a child"] * 3 + ["cached, fp32 in a child"] * 3


def test_the_emulated_tf32_has_ten_mantissa_bits_of_whatever_is_multiplied(benchmark):
    tf32 = benchmark("tf32")
    step = 2.0**-10
    values = torch.tensor(
        [1.0, 1 + step, 1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, 1 + 0.49 * step, -1 - 1.5 * step, 0.0, 3e38, 2.0**-130]
    )
    expected = torch.tensor([1.0, 1 + step, 1.0, 1 + 2 * step, 1 + step, 1.0, -1 - 2 * step, 0.0, 3e38, 2.0**-130])
    rounded = tf32.to_tf32(values)
    assert torch.equal(rounded[:-2], expected[:-2]) and torch.allclose(rounded[-2:], expected[-2:], rtol=step, atol=0)
    assert torch.equal(tf32.to_tf32(rounded), rounded)
    cut = tf32.cut_to_tf32(values)
    assert cut[4] == 1 and cut[6] == -1 - step and (values - cut).abs().max() >= (values - rounded).abs().max()

    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 4, 5, 5, 5), torch.randn(6, 4, 3, 3, 3), torch.randn(6)
    a, b = torch.randn(2, 8, 8), torch.randn(2, 8, 8)

    def products(x, weight, a, b):
        return [
            functional.conv3d(x, weight, bias, padding=1),
            a @ b,
            functional.linear(a[0], b[0], b[1, 0]),
            functional.scaled_dot_product_attention(a[None], b[None], a[None]),
        ]

    with tf32.emulated() as seen:
        found = products(x, weight, a, b)
    assert seen.count == 5  # attention is two
    rounded = [functional.conv3d(tf32.to_tf32(x), tf32.to_tf32(weight), bias, padding=1), tf32.to_tf32(a) @ tf32.to_tf32(b)]
    rounded.append(functional.linear(tf32.to_tf32(a[0]), tf32.to_tf32(b[0]), b[1, 0]))
    for one, other, exact in zip(found, rounded, products(x, weight, a, b), strict=False):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6) and not torch.allclose(one, exact, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found[3], products(x, weight, a, b)[3])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_gpu_benchmarks_install_nothing():
    words = ["make", "--dry-run", "bench-gpu", "PYTHON=/usr/bin/some-python"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # as `make test` is a make too
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=clean)
    lines = done.stdout.strip().splitlines()
    start = "OUT=gpu-out PYTHONPATH=carry:. /usr/bin/some-python tools/gpu_first.py"
    assert lines and all(line.startswith(start) for line in lines)
    assert all("--device cuda" in line for line in lines)


def test_the_promised_memory_of_a_decode_is_what_the_page_states(benchmark, capsys):
    """The row of `tiny` is rehearsed again. The CPU form depends on whether this CPU computes in bf16, so its cells may differ."""
    page = (ROOT / "docs" / "decode-memory.md").read_text().splitlines()
    stated = {line.split("`")[1]: line.split(" | ") for line in page if line.startswith("| `") and line.count("|") == 9}
    assert stated.keys() == MODELS.keys()
    rehearsed = benchmark("decode_memory").table(["tiny"]).splitlines()[-1].split(" | ")
    assert rehearsed[:5] == stated["tiny"][:5]
    capsys.readouterr()


@pytest.mark.parametrize("record", sorted(ROOT.glob("benchmarks/studies/*/students.json")), ids=lambda path: path.parent.name)
def test_the_page_of_measurements_has_the_table_of_a_study(record, benchmark):
    teacher = record.parent.name.removeprefix("students-")
    table = benchmark("students").table(teacher, json.loads(record.read_text(encoding="utf-8")))
    assert table in (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")


def test_the_pages_have_the_tables_of_the_studies_of_recipes(benchmark):
    recipes, folders = benchmark("recipes"), [ROOT / "benchmarks" / "studies" / f"recipes-{name}" for name in ("tiny", "wan-48")]
    assert recipes.together(folders) in (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    page = (ROOT / "benchmarks" / "recipes.md").read_text(encoding="utf-8")
    assert all(recipes.table_of(recipes.runs_of(folder)) in page for folder in folders)


@pytest.mark.thorough
def test_a_study_times_and_trains_arms_of_every_kind_and_goes_on(tmp_path, benchmark, videos, monkeypatch, capsys):
    """One stage and two, a start that makes its own network, another cache; a second call makes nothing again."""
    from turbovaed_cli.latents.caching import cache_latents
    from turbovaed_cli.registry.find import find_model
    from turbovaed_cli.settings import CacheSettings

    caches = {}
    for name in ("latents", "mixed", "val"):
        caches[name] = tmp_path / name
        cache_latents(find_model("tiny"), videos, caches[name], CacheSettings(frames=9, size=(64, 64)))
    arms = ["base", "pruned start", "adversarial 0.05 in the last 30 %", "other colours, drawn clips"]
    words = [f"--{name}={path}" for name, path in caches.items()]
    words += ["--student=lite", "--minutes=0.05", "--timed=7", f"--out={tmp_path / 'out'}", "--arms", *arms]
    recipes = benchmark("recipes")
    monkeypatch.setattr(recipes, "BASE", recipes.replace(recipes.BASE, crop_latents=0, crop_margin=0, batch_size=1))
    monkeypatch.setattr(sys, "argv", ["recipes.py", *words])
    recipes.main()
    made = (tmp_path / "out" / "runs.jsonl").read_text()
    runs = [json.loads(line) for line in made.splitlines()]
    assert {run["arm"] for run in runs} == set(arms) and all(run["steps"] > 0 and run["last"]["psnr"] > 5 for run in runs)
    assert json.loads((tmp_path / "out" / "seconds.json").read_text()).keys() == set(arms)
    recipes.main()
    assert (tmp_path / "out" / "runs.jsonl").read_text() == made
    assert "| pruned start | " in capsys.readouterr().out
