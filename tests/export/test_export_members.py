"""Students of every kind export to the same numbers: tails of 1, 2 and 4, blocks of time alone, images."""

import pytest
import torch
from conftest import installed
from hypothesis import given, settings
from hypothesis import strategies as st
from members import NAMED, built, latents_of, member, members
from safetensors.torch import save_file

from turbovaed_cli.export.chunks import ChunkDecoder
from turbovaed_cli.export.export import export_student
from turbovaed_cli.export.export_form import export_form
from turbovaed_cli.export.format import Graph
from turbovaed_cli.export.formats.table import exporters
from turbovaed_cli.export.fp16_range import keep_in_range
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.settings import ExportSettings


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(config=members(), layout=st.sampled_from(("4d-cat", "4d-sum", "5d")), frames=st.integers(1, 3), height=st.integers(1, 2))
def test_the_export_form_is_the_same_function(config, layout, frames, height):
    """In double precision; powers of two for fp16 change only what a larger eps does."""
    student = built(config)
    latents = latents_of(student, frames, height, 2)
    wanted, form = student(latents), export_form(student, layout)
    assert torch.allclose(form(latents), wanted, atol=1e-8, rtol=0)
    if layout != "5d":
        keep_in_range(form, [latents])
        assert torch.allclose(form(latents), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(config=members(), frames=st.integers(1, 5), count=st.integers(1, 3))
def test_chunks_are_the_whole_clip(config, frames, count):
    student = built(config)
    latents = latents_of(student, frames, 2, 1)
    decoder = ChunkDecoder(export_form(student), (4, count, 2, 1))
    plan = decoder.plan
    assert plan.frames_per_latent == student.temporal_compression_ratio

    def run(inputs):
        given_ = [inputs[name].double() if inputs[name].is_floating_point() else inputs[name] for name in plan.input_names]
        return dict(zip(plan.output_names, decoder(*given_), strict=True))

    if config["decoder_causal"]:  # each chunk makes its own frames; those missing at the beginning are no lag
        assert plan.delay == plan.dropped
    found, wanted = plan.decode(run, latents), student(latents)
    assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-8, rtol=0)


def decoded(artifact, latents):
    graph = Graph(torch.nn.Identity(), {"latents": latents})
    return exporters()[artifact.format].load(artifact.path, graph)({"latents": latents})["video"]


QUICK = ("channels change in an upsampler",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.thorough] * (name not in QUICK)) for name in NAMED])
def test_onnx_runs_at_another_length_and_size_to_the_same_numbers(name, tmp_path):
    student = built(NAMED[name], dtype=torch.float32)
    space = int(student.spatial_compression_ratio)
    chosen = ExportSettings(frames=student.pixel_frames(2), sizes=((2 * space, space),))
    (artifact,) = export_student(student, ("onnx",), tmp_path / "a.onnx", chosen).artifacts
    assert artifact.verified
    latents = latents_of(student, 4, 1, 3)
    with torch.no_grad():
        wanted = student(latents)
    found = decoded(artifact, latents)
    assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-3


@pytest.mark.thorough
def test_every_format_takes_a_tail_of_2_and_a_block_of_time_alone(tmp_path):
    """Each file is run and compared as it is written: clips, a chunk, half precision, and weights with their config."""
    student = built(member("time", "space", patch_size=2), dtype=torch.float32)
    chosen = ExportSettings(frames=3, sizes=((8, 12),), chunk=1, precisions=("fp16",))
    formats = ("onnx", installed("coreml"), "torch-export", "safetensors")
    artifacts = export_student(student, formats, tmp_path, chosen).artifacts
    assert len(artifacts) == 7 and all(artifact.verified and artifact.num_conv3d == 0 for artifact in artifacts)
    again, latents = load_student(tmp_path / "student.safetensors"), latents_of(student, 2, 2, 1)
    assert dict(again.config)["decoder_temporal_only"] == [True, False]
    with torch.no_grad():
        assert (again(latents) - student(latents)).abs().mean() < 0.05


def test_weights_are_rounded_to_eight_bits(tmp_path):
    student = built(member("time", "space", patch_size=2), dtype=torch.float32)
    save_file({"latents": latents_of(student, 2, 2, 3).contiguous()}, tmp_path / "latents.safetensors")
    chosen = ExportSettings(frames=3, sizes=((8, 12),), precisions=("int8",), latents=tmp_path / "latents.safetensors")
    (artifact,) = export_student(student, (installed("coreml"),), tmp_path / "a.mlpackage", chosen).artifacts
    assert artifact.verified


def test_an_image_decoder_is_exported_for_one_frame(tmp_path):
    student = built(NAMED["images"], dtype=torch.float32)
    chosen = ExportSettings(frames=1, sizes=((16, 16),))
    (artifact,) = export_student(student, ("onnx",), tmp_path / "image.onnx", chosen).artifacts
    latents = latents_of(student, 1, 2, 2)
    with torch.no_grad():
        assert (decoded(artifact, latents) - student(latents)).abs().max() < 1e-3
