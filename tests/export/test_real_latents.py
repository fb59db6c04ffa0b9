"""A latent that a Wan 2.1 model generated: it fits the row `wan2.1`, and exports are calibrated and checked on it."""

from pathlib import Path

import pytest
import torch
from small_teachers import small_student, write_small_teacher

from turbovaed_cli.export.export import export_student
from turbovaed_cli.latents.latent_files import read_latents
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import ExportSettings

GENERATED = Path(__file__).parents[1] / "data" / "wan2.1-generated.safetensors"  # (1, 16, 5, 16, 16), normalised


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> StudentDecoder:
    """A small student of the row, with the statistics that students inherit from the class."""
    spec = MODELS["wan2.1"]
    config = small_student(write_small_teacher("wan2.1", tmp_path_factory.mktemp("wan") / "vae"))
    statistics = spec.teacher.family.statistics(spec.teacher.family.build(spec.teacher.config))
    torch.manual_seed(0)
    return build_student(config | {"latent_channels": spec.teacher.latent_channels} | statistics).eval()


def test_it_fits_the_row(student):
    spec = MODELS["wan2.1"].teacher
    space = student.space
    raw = read_latents(GENERATED, space, latents_are="normalised").latents[None]
    batch, channels, frames, height, width = raw.shape
    assert channels == spec.latent_channels and len(student.config.latents_mean) == channels
    with torch.no_grad():
        video = student.decode(raw).sample
    assert video.shape == (batch, 3, spec.pixel_frames(frames), spec.space_ratio * height, spec.space_ratio * width)
    mean, std = (torch.tensor(student.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert 0.7 < ((raw - mean) / std).std() < 1.2 and raw.std() > 1.5  # of the whole clip 0.94


@pytest.mark.thorough
def test_exports_are_calibrated_and_checked_on_it(student, tmp_path):
    settings = ExportSettings(frames=17, sizes=((128, 128),), precisions=("fp16",), latents=GENERATED, latents_are="normalised")
    (artifact,) = export_student(student, ("onnx",), tmp_path / "student.onnx", settings).artifacts
    assert artifact.verified is True and artifact.checked_on == "latents of wan2.1-generated.safetensors"
    assert artifact.shapes[0] == (1, 16, 5, 16, 16)
