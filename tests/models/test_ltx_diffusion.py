"""LTX-2.5: a VAE's encoder and a diffusion decoder make one teacher, whose output is a function of the latents."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_teachers import close, small_student, write_small_teacher

from turbovaed_cli.errors import MissingWeightsError, SettingsError
from turbovaed_cli.models.encoding import encodes_exactly
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.teacher import Teacher, decoder_params, decoder_params_of, load_teacher
from turbovaed_cli.registry.download import missing_bytes, teacher_folder
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.distill import distill

TAPS = [pair.teacher_tap for pair in MODELS["ltx2.5"].student.pairs]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_small_teacher("ltx2.5", tmp_path_factory.mktemp("home") / "pipeline")


@pytest.fixture(scope="module")
def teacher(pipeline) -> Teacher:
    return load_teacher(pipeline)


def latents_of(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 8, frames, height, width, generator=torch.Generator().manual_seed(0))


def test_a_pipelines_folder_is_the_teacher_and_its_vae_alone_another(pipeline):
    spec, alone = find_model(pipeline), find_model(pipeline / "vae")
    assert (spec.name, spec.teacher.family) == ("pipeline", MODELS["ltx2.5"].teacher.family)
    assert alone.teacher.family == MODELS["ltx2.3"].teacher.family
    assert spec.teacher.num_bytes > alone.teacher.num_bytes
    assert find_model(spec.teacher.where).teacher == spec.teacher  # as a run finds it again
    with pytest.raises(SettingsError, match="without the encoder"):
        find_model(pipeline / "diffusion_decoder")


def test_the_encoder_is_the_vaes_and_the_decoder_the_other_ones(pipeline, teacher):
    import diffusers

    vae = diffusers.AutoencoderKLLTX2Video.from_pretrained(pipeline / "vae")
    decoder = diffusers.LTX2VideoDiffusionDecoderModel.from_pretrained(pipeline / "diffusion_decoder")
    video = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(teacher.encode(video).mean, vae.encode(video).latent_dist.mean, atol=1e-5)
    assert encodes_exactly(teacher)
    assert decoder_params(teacher) == sum(p.numel() for p in decoder.parameters()) == decoder_params_of(find_model(pipeline))


def test_attention_in_blocks_is_the_attention_of_the_class(pipeline, teacher):
    """Up to the noise, on grids that end within a block and are wider than one."""
    import diffusers

    decoder = diffusers.LTX2VideoDiffusionDecoderModel.from_pretrained(pipeline / "diffusion_decoder").decoder
    latents = latents_of(2, 3, 3)[:1]
    with torch.no_grad():
        theirs = decoder.forward_stage_4(decoder.forward_stages_1_to_3(latents))
        ours = teacher.decoder.forward_stage_4(teacher.decoder.forward_stages_1_to_3(latents))
    assert ours.shape == (1, 9, 24, 24, 8) and (ours - theirs).abs().max() <= 1e-5 < theirs.abs().max()


def test_the_output_is_a_function_of_the_latents(teacher):
    """The noise matters, and it is the same for every clip of a batch and in every call."""
    latents = latents_of(3, 2, 2)
    video = teacher.decode(latents)
    assert video.shape == (2, 3, 17, 64, 64)
    assert close(video, teacher.decode(latents))
    assert torch.allclose(video[1:], teacher.decode(latents[1:]), atol=1e-5)
    other = replace(teacher.spec, family=replace(teacher.family, noise_seed=1))
    assert (Teacher(teacher.vae, other).decode(latents) - video).abs().max() > 1e-3
    assert teacher.identity()["decoder_inputs"] == {"noise_seed": 0}


@pytest.mark.parametrize(("frames", "height", "width"), [(3, 2, 3), (1, 1, 2), (4, 3, 1)])
def test_features_of_a_stopped_decode_are_those_of_a_whole_one(frames, height, width, teacher):
    """Some of these clips are smaller than a window of attention."""
    latents = latents_of(frames, height, width)
    video, whole = teacher.decode_with_features(latents, TAPS)
    stopped = teacher.features(latents, TAPS)
    assert video.shape == (2, 3, 8 * (frames - 1) + 1, 32 * height, 32 * width)
    assert [tuple(whole[tap].shape) for tap in TAPS] == [
        (2, 32, frames, height, width), (2, 8, 2 * frames - 1, 2 * height, 2 * width)
    ]  # fmt: skip
    assert all(close(whole[tap], stopped[tap]) for tap in TAPS)


def test_a_clip_that_is_too_small_is_decoded_as_if_its_borders_went_on(teacher):
    small = latents_of(1, 1, 1)
    assert close(teacher.decode(small), teacher.decode(small.expand(-1, -1, 2, 3, 3))[:, :, :1, :32, :32])


def test_weights_of_both_folders_identify_the_teacher(pipeline, teacher, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy)
    same = load_teacher(copy).identity()
    assert same == teacher.identity() | {"licence": same["licence"]}
    file = copy / "diffusion_decoder" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(weights | {"decoder.conv_out.bias": weights["decoder.conv_out.bias"] + 1}, file, {"format": "pt"})
    assert load_teacher(copy).identity()["weights_sha256"] != same["weights_sha256"]


def test_a_pipeline_of_other_classes_is_refused(pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "other")
    config = tmp_path / "other" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "AutoencoderKLWan"}))
    with pytest.raises(SettingsError, match="one is a AutoencoderKLWan"):
        find_model(tmp_path / "other")


def test_the_download_lists_both_folders():
    spec = MODELS["ltx2.5"]
    with pytest.raises(MissingWeightsError) as error:
        teacher_folder(spec)
    assert "vae/diffusion_pytorch_model.safetensors" in error.value.what
    assert "diffusion_decoder/diffusion_pytorch_model.safetensors" in error.value.what
    assert "diffusion_decoder/config.json --local-dir DIR; then here: --teacher DIR" in error.value.hint
    assert spec.teacher.num_bytes < missing_bytes(spec) < spec.teacher.num_bytes + 10_000


def test_its_student_learns_with_features_and_states_the_noise(pipeline, videos, tmp_path):
    stage = Stage("only", steps=1, accumulation=1, perceptual="none", feature_weight=1.0, teacher_weight=1.0)
    settings = DistillSettings((stage,), frames=9, size=(64, 64), dtype="fp32", start="plain", save_every=1, sample_every=0)
    config = small_student(pipeline)
    result = distill(find_model(pipeline), tmp_path / "run", data=videos / "a.mp4", settings=settings, student_config=config)
    assert result.losses["feature_mid_block"] > 0 < result.losses["feature_up_blocks.1"]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "decoder of LTX2VideoDiffusionDecoderModel" in card and "`noise_seed` 0" in card
    heads = build_heads(build_student(config), load_teacher(pipeline), MODELS["ltx2.5"].student.pairs)
    assert len(heads.head_of) == 2
