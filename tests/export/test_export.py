"""An artefact is what the student is, proved by running the written file; what misses is not passed off as good."""

import json

import numpy as np
import pytest
import torch
from conftest import installed, swift_has_errors
from pages import blocks as code_blocks
from safetensors.torch import load_file, save_file

from turbovaed_cli.errors import CheckFailedError, FrameCountError, OutputExistsError, SettingsError, ShapeError, UnavailableError
from turbovaed_cli.export.export import export_student, raise_for_misses
from turbovaed_cli.export.export_form import export_form
from turbovaed_cli.export.format import Graph
from turbovaed_cli.export.formats.sensitivity import sensitive_weights
from turbovaed_cli.export.formats.table import exporters
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.settings import ExportSettings

SMALL = ExportSettings(frames=5, sizes=((48, 32),))


@pytest.fixture(scope="module")
def student():
    """The layout of the embedded student with fewer channels: its last norm is over 3 channels, and well behaved."""
    torch.manual_seed(0)
    config = {
        "latent_channels": 8, "decoder_block_out_channels": (48, 16), "decoder_layers_per_block": (1, 1, 1), "patch_size": 4,
        "decoder_is_dw_conv": (False, True, True), "spatio_temporal_scaling": (True, False), "teacher": "tiny",
    }  # fmt: skip
    return build_student(config).eval()


def decoded(artifact, latents):
    """By the written file."""
    return exporters()[artifact.format].load(artifact.path, Graph(torch.nn.Identity(), {"latents": latents}))(
        {"latents": latents}
    )["video"]


@pytest.fixture(scope="module", params=["fp32", pytest.param("fp16", marks=pytest.mark.thorough)])
def in_onnx(request, student, tmp_path_factory):
    """A precision, and the student's artefact in it."""
    settings = ExportSettings(frames=5, sizes=((48, 32),), precisions=(request.param,))
    path = tmp_path_factory.mktemp("onnx") / "a.onnx"
    (artifact,) = export_student(student, ("onnx",), path, settings).artifacts
    assert artifact.path == path
    return request.param, artifact


def test_onnx_is_verified_at_two_sizes_and_runs_at_a_third(student, in_onnx):
    precision, artifact = in_onnx
    assert len(set(artifact.shapes)) == 2
    assert artifact.max_abs < 1e-3 if precision == "fp32" else artifact.psnr_db > 55
    assert "ONNX Runtime" in artifact.status
    latents = torch.randn(1, 8, 7, 3, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = student(latents)
    found = decoded(artifact, latents)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < (1e-3 if precision == "fp32" else 0.1)


def test_the_onnx_file_says_what_it_is_and_has_no_conv3d(in_onnx):
    import onnx

    path = in_onnx[1].path
    model = onnx.load(path)
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
    assert sorted(beside.name for beside in path.parent.iterdir()) == [
        "a.onnx",
        "a.onnx.README.md",
        "a.onnx.latents.safetensors",
        "export.json",
    ]


@pytest.mark.thorough
def test_one_frame_makes_a_graph_of_its_own(student, tmp_path):
    (artifact,) = export_student(
        student, ("onnx",), tmp_path / "image.onnx", ExportSettings(frames=1, sizes=((32, 32),))
    ).artifacts
    assert decoded(artifact, torch.zeros(1, 8, 1, 4, 4)).shape == (1, 3, 1, 32, 32)


@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.thorough)])
def test_coreml_converts_and_its_saved_program_gives_the_students_numbers(student, precision, tmp_path):
    settings = ExportSettings(frames=5, sizes=((48, 32),), precisions=(precision,))
    (artifact,) = export_student(student, ("coreml",), tmp_path / "student.mlpackage", settings).artifacts
    assert artifact.max_abs < 1e-3 if precision == "fp32" else 55 < artifact.psnr_db < 90
    assert artifact.operators["conv"] > 0 and artifact.num_conv3d == 0
    assert artifact.gmacs > 0 and artifact.peak_activation_mb > 0
    assert artifact.max_rank <= 5
    assert declared(artifact.path) == {"latents": "FLOAT32", "video": "FLOAT32"}


def declared(package):
    """Types of a Core ML package's inputs and outputs, as a caller finds them."""
    from coremltools.models import MLModel
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType

    description = MLModel(str(package), skip_model_load=True).get_spec().description
    kinds = {item.name: item.type.multiArrayType.dataType for item in (*description.input, *description.output)}
    return {name: ArrayFeatureType.ArrayDataType.Name(kind) for name, kind in kinds.items()}


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "suffix"), [("onnx", "onnx"), ("coreml", "mlpackage")])
def test_the_5d_layout_converts_too(name, suffix, student, tmp_path):
    settings = ExportSettings(frames=5, sizes=((32, 32),), precisions=("fp32",), layout="5d")
    result = export_student(student, (name,), tmp_path / f"a.{suffix}", settings)
    assert result.artifacts[0].max_abs < 1e-3


def test_what_misses_is_kept_as_unverified_and_fails(student, in_onnx, tmp_path, monkeypatch):
    """With weights changed behind its back the written file is another function: the check must see it."""
    import onnx

    from turbovaed_cli.export.formats import onnx as exporter

    def broken(graphs, path, *rest):
        model = onnx.load(in_onnx[1].path)
        weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
        weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(weight.dims), np.float32), weight.name))
        onnx.save(model, path)

    row = exporter.EXPORTER
    monkeypatch.setattr(exporter, "EXPORTER", type(row)(**{**row.__dict__, "write": broken}))
    result = export_student(student, ("onnx",), tmp_path / "a.onnx", SMALL)
    with pytest.raises(CheckFailedError, match="max abs") as error:
        raise_for_misses(result)
    assert error.value.exit_code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.onnx.README.md",
        "a.onnx.latents.safetensors",
        "a.onnx.unverified",
        "export.json",
    ]
    (record,) = json.loads((tmp_path / "export.json").read_text())["artifacts"]
    assert record["verified"] is False and record["path"] == "a.onnx.unverified"


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
    for settings, said in (
        (ExportSettings(chunk=-1), "`chunk`"),
        (ExportSettings(chunk=1, layout="5d"), "rank 4"),
        (ExportSettings(data=tmp_path, latents=tmp_path), "`latents`"),
        (ExportSettings(sizes=((32, 32), (32, 32))), "twice"),
        (ExportSettings(chunk=1), "2 artefacts"),
    ):
        with pytest.raises(SettingsError, match=said):
            export_student(student, ("onnx",), tmp_path / "a.onnx", settings)
    with pytest.raises(SettingsError, match="`format`"):
        export_student(student, (), tmp_path / "a.onnx", SMALL)
    with pytest.raises(SettingsError, match="5d"):
        export_student(student, (installed("litert"),), tmp_path / "a.tflite", ExportSettings(layout="5d"))
    with pytest.raises(SettingsError, match="bf16"):
        export_student(student, ("onnx",), tmp_path / "a.onnx", ExportSettings(precisions=("bf16",)))
    with pytest.raises(FrameCountError, match="not 4"):
        export_student(student, ("onnx",), tmp_path / "a.onnx", ExportSettings(frames=4))
    with pytest.raises(ShapeError, match="30x30"):
        export_student(student, ("onnx",), tmp_path / "a.onnx", ExportSettings(sizes=((30, 30),)))


@pytest.mark.thorough
def test_a_folder_gathers_artefacts_and_says_what_each_is(one_block, tmp_path):
    """Whole clips and chunks, two sizes, four formats; a later export joins the earlier ones."""
    settings = ExportSettings(frames=5, sizes=((48, 32), (32, 32)), chunk=2)
    first = export_student(one_block, ("onnx",), tmp_path / "out", settings)
    joined = export_student(one_block, ("coreml",), tmp_path / "out", ExportSettings(frames=5, sizes=settings.sizes))
    names = {item.path.name for item in first.artifacts + joined.artifacts}
    chunks = {f"student-chunk2-{size}.onnx" for size in ("32x48", "32x32")}
    assert names == {"student.onnx", "student.mlpackage"} | chunks
    assert all(item.verified is True for item in first.artifacts + joined.artifacts)
    export_student(one_block, ("torch-export", "safetensors"), tmp_path / "out", ExportSettings(frames=5, sizes=((48, 32),)))
    document = json.loads((tmp_path / "out" / "export.json").read_text())
    records = {item["path"]: item for item in document["artifacts"]}
    assert set(records) == names | {"student.pt2", "student.safetensors"}
    assert document["licence"] == "Apache-2.0" and "torch" in document["versions"]
    for record in records.values():
        assert record["verified"] is True and len(record["sha256"]) == 64 and record["psnr_db"] > 55
        assert record["gmacs"] > 0 and record["peak_activation_mb"] > 0 and record["num_conv3d"] == 0
    assert records["student.mlpackage"]["functions"] == ["t3_h4_w4", "t3_h6_w4"]  # a map in the file: it has no order
    readme = (tmp_path / "out" / "README.md").read_text()
    assert all(f"## {name}" in readme for name in records)
    swift = code_blocks(tmp_path / "out" / "README.md", "swift")
    assert len(swift) == 1 and not any(map(swift_has_errors, swift))


def check_python_lines(readme, latents, student, monkeypatch, blocks):
    """Each block, copied as it stands and run in the folder, gives the student's video; the first makes a pipeline's latents raw."""
    from diffusers import LTXPipeline

    monkeypatch.chdir(readme.parent)
    beside = load_file(latents)
    with torch.no_grad():
        wanted = student(beside["latents"])
    about, *found = code_blocks(readme, "python")
    assert len(found) == blocks
    names = {}
    exec(about, names)
    mean, std = student.latents_mean, student.latents_std
    normalised = LTXPipeline._normalize_latents(beside["latents"], mean, std, student.config.scaling_factor)
    packed, shape = LTXPipeline._pack_latents(normalised), beside["latents"].shape[2:]
    for given in ((normalised.numpy(),), (packed.numpy(), tuple(shape))):
        assert torch.allclose(torch.as_tensor(names["raw_latents"](*given)), beside["latents"], atol=1e-5)
    for block in found:
        names = {}
        exec(block, names)
        found = torch.as_tensor(names["video"])
        assert (found.reshape(wanted.shape) - wanted).abs().max() < 1e-3


# A causal student, whose chunks make their own frames at once.
CAUSAL = {"decoder_causal": True, "decoder_conv_types": ("2+1d", "depthwise"), "decoder_tail": "patches"}


@pytest.mark.parametrize("changes", [{}, pytest.param(CAUSAL, marks=pytest.mark.thorough)], ids=["published", "causal"])
def test_the_python_lines_of_the_readme_decode(changes, one_block, tmp_path, monkeypatch):
    student = build_student(dict(one_block.config) | changes).eval() if changes else one_block
    settings = ExportSettings(frames=5, sizes=((48, 32),), precisions=("fp32",), chunk=2)
    artifacts = export_student(student, ("onnx", "torch-export", "safetensors"), tmp_path / "out", settings).artifacts
    out, chunks = tmp_path / "out", [one.chunk for one in artifacts if one.chunk]
    assert chunks and all((chunk.delay == chunk.dropped) is bool(changes) for chunk in chunks)
    check_python_lines(out / "README.md", out / "latents.safetensors", student, monkeypatch, blocks=4)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param("onnx", "a.onnx", marks=pytest.mark.thorough),
        pytest.param("torch-export", "a.pt2", marks=pytest.mark.thorough),
        ("safetensors", "a.safetensors"),
        pytest.param("executorch", "a.pte", marks=pytest.mark.slow),
        pytest.param("litert", "a.tflite", marks=pytest.mark.slow),
    ],
)
def test_the_python_lines_beside_a_single_file_decode_too(name, file, one_block, tmp_path, monkeypatch):
    """In the folder of the file, without anything else in it; of a student with statistics of its own."""
    student = build_student(dict(one_block.config) | {"latents_mean": [0.5] * 8, "latents_std": [2.0] * 8, "scaling_factor": 0.7})
    student.load_state_dict(one_block.state_dict())
    settings = ExportSettings(frames=5, sizes=((48, 32),), precisions=("fp32",))
    export_student(student.eval(), (installed(name),), tmp_path / file, settings)
    check_python_lines(tmp_path / f"{file}.README.md", tmp_path / f"{file}.latents.safetensors", student, monkeypatch, blocks=1)


def test_latents_of_somebody_else_stay(student, tmp_path):
    """In a folder and beside a single file; those of an export are replaced."""
    mine = tmp_path / "out" / "latents.safetensors"
    mine.parent.mkdir()
    for path, out in ((mine, mine.parent), (tmp_path / "a.onnx.latents.safetensors", tmp_path / "a.onnx")):
        save_file({"latents": torch.zeros(1)}, path)
        with pytest.raises(OutputExistsError, match=r"latents\.safetensors is there and not of an export"):
            export_student(student, ("safetensors" if out.is_dir() else "onnx",), out, SMALL)
        assert load_file(path)["latents"].shape == (1,)
        path.unlink()
    for _ in range(2):
        export_student(student, ("safetensors",), mine.parent, ExportSettings(frames=5, sizes=((48, 32),), overwrite=True))
    assert load_file(mine)["latents"].shape == (1, 8, 3, 6, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_mobile_runtimes_run_what_was_written(name, one_block, tmp_path, monkeypatch):
    """Whole clips and chunks, in the runtime itself; and the README's lines."""
    settings = ExportSettings(frames=5, sizes=((48, 32),), chunk=2, precisions=("fp32",))
    clip, chunk = export_student(one_block, (installed(name),), tmp_path / "out", settings).artifacts
    for artifact in (clip, chunk):
        assert artifact.verified is True and artifact.max_abs < 1e-3 and "ran in" in artifact.status
        assert artifact.num_conv3d == 0 and artifact.operators
    latents = torch.randn(1, 8, 3, 6, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert (decoded(clip, latents) - one_block(latents)).abs().max() < 1e-3
    out = tmp_path / "out"
    check_python_lines(out / "README.md", out / "latents.safetensors", one_block, monkeypatch, blocks=1)


@pytest.mark.slow
def test_the_core_ml_program_inside_an_executorch_file_is_what_is_checked(one_block, tmp_path):
    """Its delegate has an order of inputs and outputs of its own; a chunk has many of both."""
    settings = ExportSettings(frames=5, sizes=((48, 32),), chunk=2)
    for artifact in export_student(one_block, (installed("executorch-coreml"),), tmp_path / "out", settings).artifacts:
        assert artifact.path.name.endswith(".coreml.pte") and artifact.verified is True
        assert 55 < artifact.psnr_db < 90 and artifact.operators["conv"] > 0


@pytest.mark.slow
def test_what_nothing_here_can_run_is_called_converted_only(one_block, tmp_path):
    export_student(one_block, (installed("coreai"),), tmp_path / "out", SMALL)
    (record,) = json.loads((tmp_path / "out" / "export.json").read_text())["artifacts"]
    assert record["verified"] == "converted only" and record["psnr_db"] is None and record["max_abs"] is None
    assert json.loads((tmp_path / "out" / record["path"] / "turbovaed.json").read_text())["licence"] == "Apache-2.0"
    assert "converted only" in (tmp_path / "out" / "README.md").read_text()


def test_core_ml_keeps_a_chunk_graphs_frames_itself(one_block, tmp_path):
    """As states of iOS 18; the same video, with latents and window alone going in. The other formats hand them in and out."""
    settings = ExportSettings(frames=9, sizes=((48, 32),), chunk=2, states=True)
    _, artifact = export_student(one_block, ("coreml",), tmp_path / "out", settings).artifacts
    assert artifact.path.name == "student-chunk2-states.mlpackage" and artifact.verified is True and artifact.psnr_db > 55
    assert declared(artifact.path) == {"latents": "FLOAT32", "window": "INT32", "video": "FLOAT32"}  # in halves 2**20 is infinite
    assert artifact.operators["read_state"] == artifact.operators["coreml_update_state"] == len(artifact.chunk.kept)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "model.makeState()" in readme and "using: state" in readme
    assert not any(map(swift_has_errors, code_blocks(tmp_path / "out" / "README.md", "swift")))
    for wrong, said in (
        (ExportSettings(states=True), "`states` is for chunk"),
        (ExportSettings(states=True, chunk=2, precisions=("fp32",)), "fp16"),
    ):
        with pytest.raises(SettingsError, match=said):
            export_student(one_block, ("coreml",), tmp_path / "other", wrong)
    with pytest.raises(SettingsError, match="`states`"):
        export_student(one_block, ("onnx",), tmp_path / "other", ExportSettings(states=True, chunk=2))


@pytest.mark.thorough
def test_a_core_ml_chunk_in_fp32_is_checked_too(one_block, tmp_path):
    """The converter guards its indices otherwise than in fp16: with comparisons and choices."""
    settings = ExportSettings(frames=5, sizes=((48, 32),), precisions=("fp32",), chunk=2)
    _, chunk = export_student(one_block, ("coreml",), tmp_path / "out", settings).artifacts
    assert chunk.verified is True and chunk.psnr_db > 100 and chunk.operators["select"] > 0


def test_a_format_whose_extra_is_missing_is_refused_before_anything_is_written(student, tmp_path, monkeypatch):
    from turbovaed_cli.export import format as table

    monkeypatch.setattr(table, "find_spec", lambda name: None if name == "ai_edge_litert" else True)
    with pytest.raises(UnavailableError, match="ai_edge_litert") as error:
        export_student(student, ("onnx", "litert"), tmp_path / "out", SMALL)
    assert error.value.exit_code == 3 and "turbovaed[litert]" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_weight_file_needs_nothing_beside_it(student, tmp_path):
    export_student(student, ("safetensors",), tmp_path / "student.safetensors", SMALL)
    loaded = load_student(tmp_path / "student.safetensors")
    assert loaded.config.latent_channels == 8 and loaded.config.teacher == "tiny"


@pytest.mark.parametrize("precision", ["int8", pytest.param("6bit", marks=pytest.mark.thorough)])
def test_core_ml_weights_in_few_bits_leave_what_would_show(precision, tmp_path):
    """Of the embedded student: without the convolutions that stay wide, int8 would come to 24 dB."""
    settings = ExportSettings(frames=5, sizes=((48, 32),), precisions=(precision,))
    (artifact,) = export_student(load_student("tiny"), ("coreml",), tmp_path / "a.mlpackage", settings).artifacts
    assert artifact.verified is True and artifact.psnr_db > 35
    assert 0 < sum(n for kind, n in artifact.operators.items() if kind.startswith("constexpr")) < artifact.operators["conv"]


def test_sensitive_weights_are_those_that_show(student):
    latents = [torch.randn(1, 8, 3, 4, 4, generator=torch.Generator().manual_seed(3))]
    form = export_form(student)
    before = {name: value.clone() for name, value in form.state_dict().items()}
    few, many = sensitive_weights(form, latents, bits=8, enough_db=70.0), sensitive_weights(form, latents, bits=4, enough_db=70.0)
    assert few <= many and many
    assert sensitive_weights(form, latents, bits=24, enough_db=70.0) == set()
    assert all(torch.equal(value, before[name]) for name, value in form.state_dict().items())


def test_chunks_in_few_bits_are_refused(student, tmp_path):
    with pytest.raises(SettingsError, match="int8"):
        export_student(student, ("coreml",), tmp_path / "out", ExportSettings(precisions=("int8",), chunk=2))


def test_int8_is_calibrated_on_given_latents_or_refused(student, tmp_path):
    with pytest.raises(SettingsError, match="real latents"):
        export_student(student, ("onnx",), tmp_path / "a.onnx", ExportSettings(precisions=("int8",)))
    latents = torch.randn(1, 8, 3, 6, 4, generator=torch.Generator().manual_seed(2))
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    settings = ExportSettings(frames=5, sizes=((48, 32),), precisions=("int8",), latents=tmp_path / "latents.safetensors")
    (artifact,) = export_student(student, ("onnx",), tmp_path / "a.onnx", settings).artifacts
    assert artifact.operators["QuantizeLinear"] > 5 and 20 < artifact.psnr_db < 70
    assert artifact.shapes[0] == tuple(latents.shape) and artifact.checked_on == "latents of latents.safetensors"


def test_a_readme_of_somebody_else_stays(student, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"README\.md"):
        export_student(student, ("onnx", "torch-export"), tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
