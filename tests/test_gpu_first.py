"""tools/gpu_first.py, which only a GPU can answer, runs here at tiny sizes: every part gives its rows, and no part an error."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from turbovaed_cli.registry.find import find_model

TOOL = Path(__file__).parents[1] / "tools" / "gpu_first.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("gpu_first", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_first"] = module
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    del sys.modules["gpu_first"]


def rows_of(tool, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    words = ["--small", "--device", "cpu", "--carry", tmp_path, "--parts", *parts]
    monkeypatch.setattr("sys.argv", ["gpu_first.py", *map(str, words)])
    tool.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    return {part: [row for row in rows if row["part"] == part] for part in parts}


def test_every_part_gives_its_rows(tool, tmp_path, monkeypatch, capsys):
    rows = rows_of(tool, [part for part in tool.PARTS if part != "commands"], tmp_path, monkeypatch, capsys)
    assert rows["versions"][0]["environment"]["packages"]["torch"]
    assert len(rows["convolutions"]) == 2 * 3 * 2 * 2 and all(row["forward_backward_ms"] > 0 for row in rows["convolutions"])
    made = [row for row in rows["decodes"] if row.get("dtype") == "fp32" and row.get("form", "auto") != "auto"]
    assert {(row["model"], row["form"]) for row in made} == {
        (model, form) for model in ("tiny", "tiny-lite") for form in ("modules", "channels-last", "fused")
    }
    for row in made:
        if row["form"] != "auto":
            assert row["psnr_to_cpu_db"] > 100 and row["peak_share"] > 0 and row["ms"] > 0
            assert row["frames_per_s"] == pytest.approx(9e3 / row["ms"])
    assert all(row["ms_per_frame"] > 0 and row["steady_ms_per_frame"] > 0 for row in rows["streams"])
    assert [(row["model"], row["form"]) for row in rows["streams"]] == [
        (model, form) for model in ("tiny", "tiny-lite") for form in ("channels-last", "fused")
    ]
    assert {row["part_of"] for row in rows["teachers"]} == {"encode", "decode"} and all(row["ms"] > 0 for row in rows["teachers"])
    assert len([row for row in rows["streaming"] if row.get("ms_per_frame", 0) > 0]) == 4
    assert len([row for row in rows["steps"] if row.get("ms", 0) > 0]) == 4 and rows["steps"][-1]["top"]
    assert [row["same_bits"] for row in rows["bits"]] == [True, True]
    assert [row["fits"] for row in rows["small_card"]] == [True]
    assert rows["metrics"][-1]["wrong"] == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == [
        json.loads(line) for line in (tmp_path / "gpu.jsonl").open()
    ]
    page = (tmp_path / "gpu.html").read_text()
    assert all(f"<h2>{part}</h2>" in page for part in rows) and "<td>channels-last</td>" in page and "http" not in page


def test_all_parts_fit_into_eight_minutes(tool):
    assert sum(seconds for _, seconds in tool.PARTS.values()) <= 60 * 7.5


def test_a_run_that_was_cut_short_has_a_page(tmp_path):
    import gpu_page

    lines = tmp_path / "gpu.jsonl"
    lines.write_text('{"part": "decodes", "form": "<b>", "ms": 1.23456}\n{"part": "decodes", "fo')
    gpu_page.write(lines)
    page = (tmp_path / "gpu.html").read_text()
    assert "<tr><td>&lt;b&gt;</td><td>1.235</td></tr>" in page and page.count("<tr>") == 2


def test_four_teachers_and_their_students_are_measured_on_a_gpu(tool, tmp_path):
    import gpu_decodes

    machine = tool.Machine(torch.device("cuda"), False, tmp_path, tmp_path)
    names = gpu_decodes.students_of(machine)
    assert names == ["ltx", "hunyuan", "wan2.1", "wan2.2", "ltx-lite", "hunyuan-lite", "wan2.1-lite", "wan2.2-lite"]
    assert {find_model(name).name for name in names} == set(names)
    assert [*gpu_decodes.forms_of(machine, None)] == ["modules", "channels-last", "fused", "graphs"]


def test_a_part_that_fails_is_a_row_and_takes_no_other_along(tool, tmp_path, monkeypatch, capsys):
    def broken(machine):
        yield {"first": 1}
        raise RuntimeError("unable to find an engine")

    monkeypatch.setitem(tool.PARTS, "bits", (broken, 1))
    monkeypatch.setattr("sys.argv", ["gpu_first.py", "--small", "--device", "cpu", "--parts", "bits", "versions"])
    tool.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["first"] == 1 and "unable to find an engine" in rows[1]["error"] and "broken" in rows[1]["where"]
    assert rows[2]["part"] == "versions" and "environment" in rows[2]


@pytest.mark.faults
def test_a_killed_distillation_ends_in_the_same_bits(tool, tmp_path, monkeypatch, capsys, request):
    if not request.config.getoption("--all-faults"):
        pytest.skip("three runs of the command: make faults")
    tool.write_cache(tmp_path / "cache")
    rows = rows_of(tool, ["commands"], tmp_path, monkeypatch, capsys)["commands"]
    assert [row["code"] for row in rows] == [0, 0] and rows[1]["same_bits"] is True
