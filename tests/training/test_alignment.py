"""Feature alignment is the published one: every loss, and the gradient it sends into the student."""

import pytest
import torch
from golden import NAMES, load_golden, write_student
from small_teachers import SMALL, small_student, write_small_teacher

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.latents.caching import cache_latents
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import CacheSettings, DistillSettings, Stage
from turbovaed_cli.training.alignment import AlignmentHeads
from turbovaed_cli.training.distill import distill


@pytest.mark.parametrize("name", [name for name in NAMES if name != "video-dc-ae"])
def test_every_feature_loss_and_the_gradient_match_the_published_implementation(name, tmp_path):
    golden = load_golden(name)
    student = load_student(*write_student(golden, tmp_path)).train()
    taught = {f"decoder.{block}": value for block, value in golden.features("teacher").items()}
    pairs = MODELS[name].student.pairs
    prefix = "aligned_feature_projection_heads."
    state = {key: value for key, value in golden.student.items() if key.startswith(prefix)}
    channels = student.config.decoder_block_out_channels
    of_block = {"mid_block": channels[-1]} | {f"up_blocks.{i}": channels[-1 - i] for i in range(len(channels))}
    heads = AlignmentHeads(pairs, [(of_block[pair.student_block], taught[pair.teacher_tap].shape[1]) for pair in pairs])
    heads.load_state_dict(state)

    _, learnt = student.features(golden.io["latents"], [pair.student_block for pair in pairs], with_sample=False)
    losses = heads(learnt, taught)
    total = sum(losses.values())
    for block, loss in losses.items():
        wanted = golden.io[f"feature_loss.{block.replace('up_blocks.', 'up_block_')}"]
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-5), block
    assert total.item() == pytest.approx(golden.io["feature_loss.total"].item(), abs=1e-5)
    total.backward()
    gradient = golden.io["grad.decoder.conv_in.conv.weight"]
    assert torch.allclose(student.conv_in.conv.weight.grad, gradient, atol=1e-5, rtol=0)


def test_a_head_is_added_where_channels_differ():
    heads = AlignmentHeads(MODELS["hunyuan"].student.pairs, [(8, 12), (8, 8)])
    assert heads.head_of == {"mid_block": 0, "up_blocks.0": 1}


def test_features_of_different_shapes_are_an_error_and_are_not_broadcast():
    heads = AlignmentHeads(MODELS["ltx"].student.pairs[:1], [(8, 8)])
    learnt, taught = torch.zeros(1, 8, 3, 2, 2), torch.zeros(1, 8, 1, 2, 2)  # one frame of three
    with pytest.raises(ShapeError, match=r"mid_block makes \(1, 8, 3, 2, 2\)"):
        heads({"mid_block": learnt}, {"decoder.mid_block": taught})


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2", "hunyuan1.5"])
def test_a_step_aligns_features_from_videos_and_from_a_cache(name, videos, tmp_path):
    folder = write_small_teacher(name, tmp_path / "vae")
    spec, student = find_model(folder), small_student(folder)
    stage = Stage("only", steps=1, accumulation=1, perceptual="none", lr=1e-3)
    settings = DistillSettings((stage,), frames=9, size=(64, 64), dtype="fp32", save_every=1, sample_every=1)
    cache_latents(spec, videos, tmp_path / "latents", CacheSettings(frames=9, size=(64, 64)))
    for source in ({"data": videos}, {"latents": tmp_path / "latents"}):
        run = tmp_path / "runs" / "-".join(source)
        losses = distill(spec, run, **source, settings=settings, student_config=student).losses
        blocks = [pair.student_block for pair in MODELS[name].student.pairs]
        assert all(losses[f"feature_{block}"] > 0 for block in blocks)
        config = load_student(run).config
        assert {key: config[key] for key in SMALL[name] if key.startswith("latents_")} == statistics_of(name)


def statistics_of(name):
    return {key: value for key, value in SMALL[name].items() if key.startswith("latents_")}
