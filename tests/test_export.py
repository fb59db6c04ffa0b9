"""An artefact is what the student is, proved by running the written file; what misses is not passed off as good."""

import json

import numpy as np
import pytest
import torch
from golden import load_golden, write_student

from turbovaed_cli.errors import CheckFailedError, FrameCountError, OutputExistsError, SettingsError, ShapeError
from turbovaed_cli.export import export_student
from turbovaed_cli.exporters import exporters
from turbovaed_cli.exporters.coreml import anatomy
from turbovaed_cli.models.student import build_student, load_student
from turbovaed_cli.settings import ExportSettings

SMALL = ExportSettings(frames=5, size=(48, 32))


@pytest.fixture(scope="module")
def student():
    """The layout of the embedded student with fewer channels: its last norm is over 3 channels, and well behaved."""
    torch.manual_seed(0)
    config = {
        "latent_channels": 8, "decoder_block_out_channels": (48, 16), "decoder_layers_per_block": (1, 1, 1), "patch_size": 4,
        "decoder_is_dw_conv": (False, True, True), "spatio_temporal_scaling": (True, False), "teacher": "tiny",
    }  # fmt: skip
    return build_student(config).eval()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_is_verified_at_two_sizes_and_runs_at_a_third(student, precision, tmp_path):
    settings = ExportSettings(frames=5, size=(48, 32), precision=precision)
    (artifact,) = export_student(student, ("onnx",), tmp_path / "student.onnx", settings).artifacts
    assert artifact.path == tmp_path / "student.onnx"
    assert len(set(artifact.shapes)) == 2
    assert artifact.max_abs < 1e-3 if precision == "fp32" else artifact.psnr_db > 55
    assert "ONNX Runtime" in artifact.status
    latents = torch.randn(1, 8, 7, 3, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = student(latents)
    found = exporters()["onnx"].run(artifact.path, latents)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < (1e-3 if precision == "fp32" else 0.1)


def test_the_onnx_file_says_what_it_is_and_has_no_conv3d(student, tmp_path):
    import onnx

    export_student(student, ("onnx",), tmp_path / "a.onnx", SMALL)
    model = onnx.load(tmp_path / "a.onnx")
    told = {item.key: item.value for item in model.metadata_props}
    assert json.loads(told["config"])["latent_channels"] == 8
    assert told["licence"] == "Apache-2.0"
    assert [dimension.dim_param or dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim] == [
        1,
        8,
        "t",
        "h",
        "w",
    ]
    weights = {item.name: item.dims for item in model.graph.initializer}
    assert all(len(weights[node.input[1]]) == 4 for node in model.graph.node if node.op_type == "Conv")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_one_frame_makes_a_graph_of_its_own(student, tmp_path):
    (artifact,) = export_student(student, ("onnx",), tmp_path / "image.onnx", ExportSettings(frames=1, size=(32, 32))).artifacts
    assert exporters()["onnx"].run(artifact.path, torch.zeros(1, 8, 1, 4, 4)).shape == (1, 3, 1, 32, 32)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_coreml_converts_and_its_saved_program_gives_the_students_numbers(student, precision, tmp_path):
    settings = ExportSettings(frames=5, size=(48, 32), precision=precision)
    (artifact,) = export_student(student, ("coreml",), tmp_path / "student.mlpackage", settings).artifacts
    assert artifact.max_abs < 1e-3 if precision == "fp32" else 55 < artifact.psnr_db < 90
    inside = anatomy(artifact.path)
    assert inside.operators["conv"] > 0
    assert inside.gmacs > 0
    assert inside.max_rank <= 5


@pytest.mark.parametrize(("name", "suffix"), [("onnx", "onnx"), ("coreml", "mlpackage")])
def test_the_5d_layout_converts_too(name, suffix, student, tmp_path):
    settings = ExportSettings(frames=5, size=(32, 32), layout="5d")
    result = export_student(student, (name,), tmp_path / f"a.{suffix}", settings)
    assert result.artifacts[0].max_abs < 1e-3


def test_what_misses_is_kept_as_unverified_and_fails(student, tmp_path, monkeypatch):
    """With weights changed behind its back the written file is another function: the check must see it."""
    import onnx

    from turbovaed_cli.exporters import onnx as exporter

    def broken(module, latents, path, precision, metadata):
        exporter.write(module, latents, path, precision, metadata)
        model = onnx.load(path)
        weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
        weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(weight.dims), np.float32), weight.name))
        onnx.save(model, path)

    row = exporter.EXPORTER
    monkeypatch.setattr(exporter, "EXPORTER", type(row)(**{**row.__dict__, "write": broken}))
    with pytest.raises(CheckFailedError, match="max abs") as error:
        export_student(student, ("onnx",), tmp_path / "a.onnx", SMALL)
    assert error.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx.unverified"]


def test_existing_files_stay_without_overwrite(student, tmp_path):
    (tmp_path / "a.onnx").write_text("precious")
    with pytest.raises(OutputExistsError):
        export_student(student, ("onnx",), tmp_path / "a.onnx", SMALL)
    assert (tmp_path / "a.onnx").read_text() == "precious"


def test_wrong_names_formats_and_shapes_are_refused(student, tmp_path):
    with pytest.raises(SettingsError, match="tflite"):
        export_student(student, ("tflite",), tmp_path / "a", SMALL)
    with pytest.raises(SettingsError, match=r"a\.onnx"):
        export_student(student, ("coreml",), tmp_path / "a.onnx", SMALL)
    with pytest.raises(SettingsError, match="bf16"):
        export_student(student, ("onnx",), tmp_path / "a.onnx", ExportSettings(precision="bf16"))
    with pytest.raises(FrameCountError, match="not 4"):
        export_student(student, ("onnx",), tmp_path / "a.onnx", ExportSettings(frames=4))
    with pytest.raises(ShapeError, match="30x30"):
        export_student(student, ("onnx",), tmp_path / "a.onnx", ExportSettings(size=(30, 30)))


def test_given_latents_are_what_it_is_checked_on(tmp_path):
    from safetensors.torch import save_file

    golden = load_golden("hunyuan")
    student = load_student(*write_student(golden, tmp_path))
    save_file({"latents": golden.io["latents"].contiguous()}, tmp_path / "latents.safetensors")
    frames, size = student.pixel_frames(golden.io["latents"].shape[2]), tuple(8 * n for n in golden.io["latents"].shape[3:])
    settings = ExportSettings(frames=frames, size=size, latents=tmp_path / "latents.safetensors")
    (artifact,) = export_student(student, ("onnx",), tmp_path / "a.onnx", settings).artifacts
    assert artifact.shapes[0] == tuple(golden.io["latents"].shape)
