"""Latents in memory are decoded within a memory limit, to the same frames."""

import pytest
import torch

from turbovaed_cli.errors import SettingsError, ShapeError
from turbovaed_cli.models.bounded import decode_within, pieces_within
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.memory import decoding_bytes, with_margin


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    config = {
        "latent_channels": 4, "decoder_block_out_channels": (16, 32), "decoder_layers_per_block": (1, 1, 1),
        "decoder_is_dw_conv": (False, True, True), "spatio_temporal_scaling": (True, False), "patch_size": 4,
    }  # fmt: skip
    return build_student(config).eval()


def test_less_memory_takes_smaller_pieces_and_makes_the_same_frames(student):
    latents = torch.randn(1, 4, 6, 12, 12)
    with torch.no_grad():
        wanted = student.decode(latents).sample
    large = pieces_within(student, (12, 12), 10**9, 6)
    leanest = with_margin(decoding_bytes(student, (12, 12), 1, 1, spill=True))
    assert large == (6, 0, False)
    frames, rows, spill = pieces_within(student, (12, 12), leanest, 6)
    assert frames == 1 and with_margin(decoding_bytes(student, (12, 12), frames, rows, spill=spill)) <= leanest
    for memory in (10**9, leanest):
        made = list(decode_within(student, latents, memory))
        assert (torch.cat(made, dim=2) - wanted).abs().max() <= 1e-5
        assert (max(video.shape[2] for video in made) <= 2) is (memory == leanest)


def test_pieces_in_between_need_no_more_than_the_memory(student):
    needed = with_margin(decoding_bytes(student, (12, 12), 1))
    frames, rows, spill = pieces_within(student, (12, 12), needed, 6)
    assert (frames, rows, spill) == (1, 0, False)  # more frames or rows at once would need more


def test_too_little_memory_is_refused_with_what_is_needed(student):
    with pytest.raises(SettingsError, match=r"0\.00 GB is too little for 96x96: the smallest pieces need 0\.\d\d GB") as caught:
        next(decode_within(student, torch.zeros(1, 4, 2, 12, 12), 10**6))
    assert "at least `memory` 0." in caught.value.hint


def test_latents_of_another_shape_are_refused(student):
    with pytest.raises(ShapeError, match="this student decodes"):
        next(decode_within(student, torch.zeros(1, 5, 2, 12, 12)))
