"""A graph of fixed size, handed what it kept, decodes any length to the frames of the whole clip."""

import pytest
import torch
from golden import NAMES, load_golden, write_student
from hypothesis import given, settings
from hypothesis import strategies as st

from turbovaed_cli.export.chunks import UNKNOWN_END, ChunkDecoder
from turbovaed_cli.export.export_form import export_form
from turbovaed_cli.models.loading import load_student


@pytest.fixture(scope="module", params=[*NAMES, "tiny"])
def student(request, tmp_path_factory):
    if request.param == "tiny":
        return load_student("tiny").double()
    return load_student(*write_student(load_golden(request.param), tmp_path_factory.mktemp(request.param))).double()


@torch.no_grad()
def in_chunks(student, latents, count):
    decoder = ChunkDecoder(export_form(student), (latents.shape[1], count, *latents.shape[3:]))
    plan, ends = decoder.plan, []

    def run(inputs):
        ends.append(int(inputs["window"][1]))
        given = [inputs[name].double() if inputs[name].is_floating_point() else inputs[name] for name in plan.input_names]
        found = decoder(*given)
        assert [tuple(keeps.shape) for keeps in found[1:]] == list(plan.kept)
        return dict(zip(plan.output_names, found, strict=True))

    return plan.decode(run, latents), ends


@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 7), count=st.integers(1, 4), seed=st.integers(0, 99))
def test_chunks_are_the_whole_clip(student, frames, count, seed):
    """Whatever the length and the chunk: also where the clip is shorter than one, and where its end comes late."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, student.config.latent_channels, frames, 2, 3, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        wanted = student(latents)
    found, ends = in_chunks(student, latents, count)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-6, rtol=0)
    assert ends[0] == (frames if frames <= count else UNKNOWN_END)


def test_what_is_kept_does_not_grow_with_the_clip(student):
    decoder = ChunkDecoder(export_form(student), (student.config.latent_channels, 2, 4, 4))
    assert decoder.plan.latents == (1, student.config.latent_channels, 2, 4, 4)
    assert decoder.plan.frames_per_latent == student.temporal_compression_ratio
