"""A causal student that starts from one that is not decodes what stands still to the same pixels."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from members import built, latents_of, members

from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.causal_start import causal_weights
from turbovaed_cli.training.distill import distill


@settings(max_examples=10, deadline=None)
@given(config=members(), seed=st.integers(0, 9))
def test_a_still_clip_keeps_its_pixels(config, seed):
    """Without doubled time, whose two frames differ even in a still clip."""
    in_space = {"decoder_spatio_only": config["spatio_temporal_scaling"], "decoder_temporal_only": None}
    seeing = built(config | in_space | {"decoder_causal": False}, seed)
    causal = built(config | in_space | {"decoder_causal": True}, seed + 1)
    causal.load_state_dict(causal_weights(seeing.state_dict(), causal))
    still = latents_of(seeing, 1, 2, 2, seed=seed).expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        assert torch.allclose(causal(still), seeing(still), atol=1e-9)


def test_distill_starts_a_causal_student_from_another_one(ltx_teacher, cache, small_student, tmp_path):
    """One step at a rate of nearly zero leaves the weights that it starts from."""
    torch.manual_seed(1)
    whole = build_student(small_student)
    whole.save_pretrained(tmp_path / "whole")
    stage = Stage("only", steps=1, accumulation=1, lr=1e-12, perceptual="none", feature_weight=0.0)
    distill(
        find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=DistillSettings((stage,), sample_every=0, dtype="fp32"),
        student_config=small_student | {"decoder_causal": True}, init=str(tmp_path / "whole"),
    )  # fmt: skip
    found = load_student(tmp_path / "run")
    wanted = causal_weights(whole.state_dict(), found)
    assert found.config.decoder_causal
    assert all(torch.allclose(weight, wanted[name], atol=1e-6) for name, weight in found.state_dict().items())
    assert not torch.allclose(wanted["conv_in.conv.weight"], whole.conv_in.conv.weight)
