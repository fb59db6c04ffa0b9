"""A decoder of another family is exported as its modules are: in fixed shapes, checked, and with a README that fits."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from trio import write_trio

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.export.export import export_student
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.settings import ExportSettings

SMALL = ExportSettings(frames=9, sizes=((32, 64),))


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    return write_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture(scope="module")
def flash(trio):
    return load_decoder(trio.flash, teacher=trio.teacher)


@pytest.fixture(scope="module")
def exported(flash, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, export_student(flash, ("onnx",), out, SMALL)


def test_onnx_of_another_family_equals_its_decoder_in_the_shape_it_was_made_with(exported, flash):
    out, result = exported
    (artifact,) = result.artifacts
    assert artifact.path.name == "flash-vaed-ltx.onnx" and artifact.verified is True
    assert artifact.psnr_db > 90 and artifact.fixed_size and artifact.shapes == [(1, 16, 2, 1, 2)]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(artifact.path))
    latents = load_file(out / "latents.safetensors")["latents"]
    (video,) = session.run(None, {"latents": latents.numpy()})
    assert torch.allclose(torch.from_numpy(video), flash.decode(latents).sample, atol=1e-4)
    assert [item.dim_value for item in _shape_of(artifact.path)] == [1, 16, 2, 1, 2]


def _shape_of(path):
    import onnx

    return onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim


def test_the_readme_names_family_and_licence_and_its_code_runs(exported, monkeypatch, flash):
    out, _ = exported
    text = (out / "README.md").read_text()
    assert "flash-vaed-ltx" in text and flash.licence in text and "teacher's** licence" not in text
    assert "exactly (1, 16, 2, 1, 2)" in text and "any t, h and w" not in text and "fp32 decoder" in text
    monkeypatch.chdir(out)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    assert names["video"].shape == (1, 3, 9, 32, 64)
    assert names["raw_latents"](names["latents"]).shape == names["latents"].shape
    document = json.loads((out / "export.json").read_text())
    assert document["family"] == "flash-vaed-ltx" and document["licence"] == flash.licence and "raw" in document["latents"]


def test_without_a_teacher_the_readme_asks_for_normalised_latents(trio, tmp_path):
    """A TAEHV file takes what diffusion models compute with, until its teacher is named."""
    from trio import write_wan

    _, path = write_wan(tmp_path)
    decoder = load_decoder(path)
    settings = ExportSettings(frames=5, sizes=((16, 16),))
    result = export_student(decoder, ("torch-export",), tmp_path / "a.pt2", settings)
    text = (tmp_path / "a.pt2.README.md").read_text()
    assert result.artifacts[0].verified is True and result.artifacts[0].max_abs < 1e-5
    assert "**normalised** latents" in text and "def raw_latents" not in text and "licence: MIT" in text


@pytest.mark.parametrize(
    ("formats", "changes", "says"),
    [
        (("coreml",), {}, "cannot be written as coreml"),
        (("safetensors",), {}, "cannot be written as safetensors"),
        (("onnx",), {"chunk": 2}, "has no chunk graph"),
        (("onnx",), {"layout": "4d-sum"}, "has no `layout` 4d-sum"),
        (("onnx",), {"precisions": ("int8",)}, "cannot be written in int8"),
        (("onnx",), {"frames": 8}, "does not make 8 frames"),
    ],
)
def test_what_only_a_student_can_be_written_as_is_refused(flash, tmp_path, formats, changes, says):
    settings = ExportSettings(**({"frames": 9, "sizes": ((32, 64),)} | changes))
    with pytest.raises(SettingsError, match=re.escape(says)):
        export_student(flash, formats, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
