"""Cosmos: a deterministic encoder, the exact encode in pieces with attention, features, and a student for 8x8x8."""

import subprocess
import sys

import pytest
import torch
from small_teachers import close, small_student, write_small_teacher

from turbovaed_cli.errors import FrameCountError
from turbovaed_cli.models.design import cost_of
from turbovaed_cli.models.encoding import approximation_of, encoded
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.memory import encoding_bytes
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.distill import distill

ROW = MODELS["cosmos"]
TAPS = [pair.teacher_tap for pair in ROW.student.pairs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_teacher("cosmos", tmp_path_factory.mktemp("teachers") / "small-cosmos")


@pytest.fixture(scope="module")
def teacher(folder) -> Teacher:
    """In fp64, so that rounding is small."""
    return load_teacher(folder).double()


def video_of(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def latents_of(frames: int = 3) -> torch.Tensor:
    return torch.randn(2, 8, frames, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_folder_is_matched_by_its_class(folder):
    found = find_model(folder)
    assert found.teacher.family == ROW.teacher.family
    assert (found.teacher.time_ratio, found.teacher.space_ratio, found.teacher.latent_channels) == (8, 8, 8)
    assert found.student.pairs == ROW.student.pairs


@pytest.mark.thorough
def test_a_build_without_memory_spoils_no_later_one():
    """The class's module makes tensors when it is imported, which a new process does within the first build."""
    code = (
        "import torch; from turbovaed_cli.registry.teachers.cosmos import COSMOS\n"
        "with torch.device('meta'): vae = COSMOS.teacher.family.build({})\n"
        "assert vae.device.type == 'meta' and vae.encoder.patch_embed.wavelets.device.type == 'cpu'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_posterior_has_no_spread(teacher):
    encoded_once = teacher.encode(video_of(9))
    assert encoded_once.mean.shape == (1, 8, 2, 2, 3) and not encoded_once.std.any()


@pytest.mark.parametrize("frames", [8, 16])
def test_a_count_that_the_class_would_change_silently_is_refused(frames, teacher):
    with torch.no_grad():
        latents = teacher.vae.encode(video_of(frames)).latent_dist.mode()
        assert teacher.vae.decode(latents).sample.shape[2] == frames + 1
    with pytest.raises(FrameCountError, match=f"nearest|{frames}"):
        teacher.spec.check_frames(frames)


def test_features_of_a_stopped_decode_are_those_of_a_whole_one(teacher):
    latents = latents_of()
    video, whole = teacher.decode_with_features(latents, TAPS)
    stopped = teacher.features(latents, TAPS)
    assert video.shape == (2, 3, 17, 16, 24) and close(video, teacher.decode(latents))
    assert [tuple(whole[tap].shape[2:]) for tap in TAPS] == [(3, 2, 3), (3, 2, 3), (5, 4, 6)]
    assert all(close(whole[tap], stopped[tap]) for tap in TAPS)


@pytest.mark.parametrize("at_once", [8, 16])
def test_the_encode_in_pieces_is_the_encode_of_the_whole(at_once, teacher):
    video = video_of(33)
    whole = teacher.encode(video).mean
    made = torch.cat(list(encoded(teacher, video.split(5, dim=2), at_once)), dim=2)
    assert made.shape == whole.shape and (made - whole).abs().max() <= 1e-6 and whole.abs().max() > 1e-2
    assert close(teacher.encode(video).mean, whole)  # the network is as it was before


def test_one_frame_is_encoded_as_by_the_class(teacher):
    frame = video_of(1)
    assert torch.allclose(next(encoded(teacher, [frame])), teacher.encode(frame).mean, atol=1e-6)


def test_memory_of_the_encode_is_predicted_with_what_attention_keeps(folder):
    teacher = load_teacher(folder)
    kept = 2 * 16 * 8 * 8 * 16 * 4  # keys and values of 16 frames of 8x8 positions with 16 channels
    assert encoding_bytes(teacher, (64, 64), 8) > kept
    assert teacher.family.reach(teacher.vae) is None  # attention sees whole frames


def test_attention_sees_a_limited_past(teacher):
    """121 frames are exact. Latents of later frames differ, and a sentence states it."""
    video = video_of(137, 8, 8)
    whole = teacher.encode(video).mean
    difference = (torch.cat(list(encoded(teacher, [video])), dim=2) - whole).abs().amax(dim=(0, 1, 3, 4))
    assert len(difference) == 18
    assert difference[:16].max() <= 1e-6 < difference[16:].min()
    assert approximation_of(teacher, 8, 121) is None
    assert "first 121 frames exactly" in (approximation_of(teacher, 8, 137) or "")


def test_the_student_of_the_row_learns_every_feature(teacher, folder):
    student = build_student(small_student(folder)).double()
    heads = build_heads(student, teacher, ROW.student.pairs).double()
    latents = latents_of()
    video, learnt = student.features(latents, [pair.student_block for pair in ROW.student.pairs])
    losses = heads(learnt, teacher.features(latents, TAPS))
    assert video.shape == teacher.decode(latents).shape
    assert losses.keys() == {"mid_block", "up_blocks.0", "up_blocks.1"} and all(loss > 0 for loss in losses.values())


def test_a_student_learns_with_features_and_takes_raw_latents(folder, videos, tmp_path):
    stage = Stage("only", steps=1, accumulation=1, perceptual="none", feature_weight=1.0)
    settings = DistillSettings((stage,), frames=9, size=(64, 64), dtype="fp32", start="plain", save_every=1, sample_every=0)
    config = small_student(folder)
    result = distill(find_model(folder), tmp_path / "run", data=videos / "a.mp4", settings=settings, student_config=config)
    assert result.losses["feature_up_blocks.1"] > 0
    assert ROW.teacher.family.statistics(load_teacher(folder).vae) == {}


def test_the_student_costs_less_than_half_of_the_teachers_decoder():
    """695 GFLOPs for 17 frames of 256x256."""
    assert 300 < cost_of(ROW.student.config, (3, 32, 32)).gflops < 695 / 2
