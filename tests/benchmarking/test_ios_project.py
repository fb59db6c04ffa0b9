"""The Swift package holds what it says, its Swift parses, and what it prints is a result that bench reads."""

import json
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import swift_has_errors
from pages import blocks

from turbovaed_cli.benchmarking import results
from turbovaed_cli.benchmarking.bench import write_ios_project
from turbovaed_cli.errors import OutputExistsError
from turbovaed_cli.export.format import Graph
from turbovaed_cli.export.formats.coreml import load
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.settings import BenchSettings

SETTINGS = BenchSettings(frames=9, size=(64, 64))


@pytest.fixture(scope="module")
def project(one_block_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("ios") / "project"
    write_ios_project(out, str(one_block_folder), SETTINGS)
    return out


def test_its_resources_are_the_model_its_inputs_and_what_it_has_to_give(project, one_block_folder):
    resources = project / "Sources" / "TurboVAEDBench" / "Resources"
    case = json.loads((resources / "case.json").read_text())
    latents, expected = (
        torch.from_numpy(np.fromfile(resources / f"{name}.bin", "<f4").reshape(case[key]).copy())
        for name, key in (("latents", "latents"), ("expected", "video"))
    )
    with torch.no_grad():
        assert (load_student(one_block_folder)(latents) - expected).abs().max() < 1e-5
    found = load(resources / "student.mlpackage", Graph(torch.nn.Identity(), {"latents": latents}))({"latents": latents})["video"]
    error = (found - expected).square().mean()
    assert -10 * torch.log10(error / 4) > case["least_psnr_db"]
    assert case["precision"] == "fp16" and case["params"] > 0 and case["size_mb"] > 0
    assert "fp16" in (project / "README.md").read_text()


def test_its_swift_parses(project):
    sources = {path.name: path.read_text() for path in project.rglob("*.swift")}
    assert set(sources) == {"Package.swift", "DecoderBenchmark.swift", "DecoderBenchmarkTests.swift"}
    (block,) = blocks(project / "README.md", "swift")
    for name, text in (sources | {"README": block}).items():
        assert not swift_has_errors(text), name
    assert swift_has_errors(sources["DecoderBenchmark.swift"].replace("guard let", "guard let let", 1))


def test_what_it_prints_is_read_as_a_result(project, tmp_path):
    """Keys as JSONEncoder.convertToSnakeCase writes the properties of its two structures."""
    text = (project / "Sources" / "TurboVAEDBench" / "DecoderBenchmark.swift").read_text()
    row, document, case = (properties(text, name) for name in ("BenchmarkRow", "BenchmarkDocument", "BenchmarkCase"))
    written = json.loads((project / "Sources" / "TurboVAEDBench" / "Resources" / "case.json").read_text())
    kinds = {"String": str, "Int": int, "Double": float, "[Int]": list}
    assert {name: kinds[kind] for name, kind in case.items()} == {name: type(value) for name, value in written.items()}
    assert set(row) <= {field.name for field in fields(results.BenchRow)}
    values = {"String": "x", "Int": 9, "Bool": True, "Double": 2.0, "[Int]": [64, 64], "[Double]": [2.0, 3.0], "[String]": ["x"]}
    written = {name: values.get(kind, kind) for name, kind in document.items()}
    written["rows"] = [{name: values.get(kind, kind) for name, kind in row.items()}]
    (tmp_path / "phone.json").write_text(json.dumps(written))
    read = results.read_document(tmp_path / "phone.json")
    (found,) = read["rows"]
    assert {"model", "params", "machine", "latents"} <= set(read)
    assert found.target == "coreml" and found.network == "student" and found.measured is True and found.samples_ms == [2.0, 3.0]


def properties(text, structure):
    """Of a Swift structure: snake_case name to type, or to the constant that it is."""
    body = text.partition(f"public struct {structure}")[2].partition("\n}")[0]
    found = {}
    for name, kind, constant in re.findall(r"^    public let (\w+)(?:: (\S+))?(?: = (.+?))?(?:  //.*)?$", body, re.MULTILINE):
        key = re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match[1].lower(), name)
        found[key] = json.loads(constant) if constant else kind
    return found


def test_an_existing_folder_stays_without_overwrite(project, one_block_folder):
    before = sorted(project.rglob("*"))
    with pytest.raises(OutputExistsError):
        write_ios_project(project, str(one_block_folder), SETTINGS)
    assert sorted(project.rglob("*")) == before
