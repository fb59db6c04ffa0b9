"""A student as the `vae` of pipelines of every class, alone and with its teacher's encoder."""

import copy
import json

import pytest
import torch
from tiny_pipelines import CAUSAL, PIPELINES, SELECTED, sequentially_offloaded, shown, student_of, tiny_pipeline, vae_of

from turbovaed_cli import StudentDecoder, StudentVae, load_student
from turbovaed_cli.errors import SettingsError, WeightFileError
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.network import DERIVED_KEYS
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS

TEXT_ALONE = ("ltx", "ltx-0.9.5", "ltx2", "hunyuan", "hunyuan1.5", "cogvideox", "wan2.1", "wan2.2")  # pipelines that never encode


def with_latents(tiny, monkeypatch):
    """Run a pipeline; return its frames and the latents of each decode."""
    latents, kind = [], type(tiny.pipe.vae)
    decode = kind.decode

    def recorded(self, z, *arguments, **options):
        latents.append(z.detach().clone())
        return decode(self, z, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "decode", recorded)
        return tiny.run(), latents


def check(name, tiny, reference, monkeypatch, tolerance=1e-5):
    frames, latents = with_latents(tiny, monkeypatch)
    with torch.no_grad():
        ours = shown(name, [reference.decode(z.to(reference.dtype)).sample for z in latents])
    assert frames.shape == ours.shape and (frames - ours).abs().max() <= tolerance
    return latents


@pytest.mark.parametrize("name", SELECTED)
def test_a_student_with_the_teachers_encoder_serves_every_pipeline(name, monkeypatch):
    """The frames are our own decode, and the latents those of the pipeline with its own VAE, which has the same encoder."""
    row = PIPELINES[name][0]
    student = student_of(row, vae_of(row))
    reference = copy.deepcopy(student)
    latents = check(name, tiny_pipeline(name, StudentVae.of(student, vae_of(row))), reference, monkeypatch)
    _, theirs = with_latents(tiny_pipeline(name), monkeypatch)
    assert torch.allclose(latents[0], theirs[0], atol=1e-5)


def tiling(pipe):
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()


def no_tiling(pipe):
    pipe.vae.disable_tiling()
    pipe.vae.disable_slicing()


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe):
    pipe.remove_all_hooks()
    sequentially_offloaded(pipe)


def group_offload(pipe):
    pipe.remove_all_hooks()
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in TEXT_ALONE), ("ltx", CAUSAL)])
def test_switches_of_the_pipeline_do_not_change_the_frames(name, changes, monkeypatch):
    """Switches add up, from first to last. Hooks of single weights need the published modules, whose sums have another order."""
    row = PIPELINES[name][0]
    student = student_of(row, vae_of(row), changes)
    reference, tiny = copy.deepcopy(student), tiny_pipeline(name, student)
    for switch in (tiling, no_tiling, model_offload, sequential_offload, group_offload):
        switch(tiny.pipe)
        reference.fast = False if switch in (sequential_offload, group_offload) else None
        check(name, tiny, reference, monkeypatch, 2e-5)


@pytest.mark.parametrize(("name", "changes"), [("ltx", {}), ("cogvideox", {}), ("wan2.1", {}), ("ltx", CAUSAL)])
def test_bf16_and_casting_decode_what_their_weights_are(name, changes, monkeypatch):
    row = PIPELINES[name][0]
    student = student_of(row, vae_of(row), changes)
    tiny = tiny_pipeline(name, student)
    student.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    reference = student_of(row, vae_of(row), changes)
    reference.load_state_dict({key: value.float() for key, value in student.state_dict().items()})
    check(name, tiny, reference, monkeypatch, 2e-5)

    tiny = tiny_pipeline(name, student_of(row, vae_of(row), changes))
    tiny.pipe.to(torch.bfloat16)
    check(name, tiny, copy.deepcopy(tiny.pipe.vae), monkeypatch)


def test_a_batch_is_decoded_clip_by_clip_with_slicing():
    student = student_of("ltx", vae_of("ltx"))
    latents = torch.randn(2, 8, 2, 2, 2)
    with torch.no_grad():
        together = student.decode(latents).sample
        student.enable_slicing()
        assert (student.decode(latents).sample - together).abs().max() < 1e-5
        assert student.decode(latents.bfloat16()).sample.dtype == torch.float32  # the student's precision


def test_what_follows_from_a_config_is_written_and_not_read(tmp_path):
    """An edited or older config.json cannot contradict the network."""
    student = student_of("wan2.1", vae_of("wan2.1"))
    assert student.temperal_downsample == [False, True, True]
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {config[key] for key in ("temporal_compression_ratio", "scale_factor_temporal", "z_dim")} == {4}
    assert {config[key] for key in ("spatial_compression_ratio", "scale_factor_spatial")} == {8}
    assert len(config["block_out_channels"]) == 4
    for change in (dict.fromkeys(DERIVED_KEYS, 77), None):
        written = {**config, **change} if change else {key: value for key, value in config.items() if key not in DERIVED_KEYS}
        (tmp_path / "config.json").write_text(json.dumps(written))
        for loaded in (load_student(tmp_path), StudentDecoder.from_pretrained(tmp_path), build_student(written)):
            assert {key: loaded.config[key] for key in DERIVED_KEYS} == {key: config[key] for key in DERIVED_KEYS}


def test_students_of_the_registry_have_the_scaling_and_statistics_of_their_pipelines():
    assert [MODELS[name].student.config["scaling_factor"] for name in ("hunyuan", "hunyuan1.5", "cogvideox")] == [
        0.476986,
        1.03682,
        0.7,
    ]
    for name, channels in (("wan2.1", 16), ("qwen-image", 16), ("wan2.2", 48)):
        with torch.device("meta"):
            config = build_student(MODELS[name].student.config).config
        assert len(config.latents_mean) == len(config.latents_std) == channels
    vae = MODELS["wan2.1"].teacher.family.build({})
    with torch.device("meta"):
        student = build_student(MODELS["wan2.1"].student.config)
    assert (
        list(student.config.latents_mean) == vae.config.latents_mean
        and list(student.config.latents_std) == vae.config.latents_std
    )


def test_the_statistics_of_a_row_are_not_those_of_a_local_vae(tmp_path):
    vae_of("wan2.1").save_pretrained(tmp_path)
    assert "latents_mean" not in find_model(tmp_path).student.config


def test_load_student_brings_the_encoder_of_the_teacher():
    vae = load_student("tiny", with_encoder=True)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert isinstance(vae, StudentVae) and vae.encode(video).latent_dist.mean.shape == (1, 32, 3, 2, 2)
    assert vae.encode(video, return_dict=False)[0].mean.shape == (1, 32, 3, 2, 2)


def test_an_encoder_needs_a_known_teacher_of_the_same_latents(tmp_path):
    student = student_of("ltx", vae_of("ltx"))
    student.register_to_config(teacher=None)
    student.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="does not name its teacher"):
        load_student(tmp_path, with_encoder=True)
    with pytest.raises(SettingsError, match="32 channels"):
        load_student(tmp_path, with_encoder=True, teacher="tiny")
    with pytest.raises(SettingsError, match="no encoder") as error:
        student.encode(torch.zeros(1, 3, 1, 32, 32))
    assert "with_encoder=True" in error.value.hint and "attach_student" in error.value.hint


def test_a_saved_student_has_its_encoder_again(tmp_path):
    teacher = vae_of("cogvideox")
    teacher.register_to_config(invert_scale_latents=True)
    vae = StudentVae.of(student_of("cogvideox", vae_of("cogvideox")), teacher)
    vae.save_pretrained(tmp_path)
    assert vae.teacher_vae is teacher and vae.config.invert_scale_latents
    video, latents = torch.rand(1, 3, 9, 16, 16), torch.randn(1, 4, 2, 2, 2)
    again = StudentVae.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.encode(video).latent_dist.mean, vae.encode(video).latent_dist.mean)
        assert torch.equal(again.decode(latents).sample, vae.decode(latents).sample)
        assert torch.equal(load_student(tmp_path).decode(latents).sample, vae.decode(latents).sample)
    assert again.config.invert_scale_latents
    by_name, _info = StudentVae.from_pretrained(pretrained_model_name_or_path=tmp_path, output_loading_info=True)
    inside = load_student(tmp_path, with_encoder=True)  # not that of the teacher that its config names
    with torch.no_grad():
        for one in (by_name, inside):
            assert torch.equal(one.encode(video).latent_dist.mean, vae.encode(video).latent_dist.mean)
    student_of("cogvideox", vae_of("cogvideox")).save_pretrained(tmp_path / "alone")
    with pytest.raises(WeightFileError, match="without its encoder"):
        StudentVae.from_pretrained(tmp_path / "alone")
