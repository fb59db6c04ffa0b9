"""A decoder of TAEHV's architecture is trained, resumed, loaded and measured as a student is."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import Notes, is_two_lines
from others import load_numbers
from safetensors.torch import load_file
from torch.nn import functional

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.models.others import taehv
from turbovaed_cli.models.others.taehv_student import TaehvStudent
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.models.trainable import build_trainable, config_for, lacks_statistics
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training.distill import distill, estimate_distill
from turbovaed_cli.training.first_clips import first_clips, measured_statistics

STUDENT = {"family": "taehv", "width": [16, 8, 8]}
STAGE = Stage(
    "only", steps=6, batch_size=2, accumulation=1, perceptual="ssim", lr=1e-3, feature_weight=0.0, adversarial_weight=0.1
)
SETTINGS = DistillSettings(
    (STAGE,), frames=9, size=(64, 64), dtype="fp32", start="fitted", save_every=3, sample_every=6, discriminator_channels=4
)


def bits(folder, step=6):
    return {path.name: path.read_bytes() for path in (folder / "checkpoints" / f"step_{step:07d}").glob("*.safetensors")}


def small(name: str, **changes) -> TaehvStudent:
    """A student of a registry's teacher with few channels."""
    torch.manual_seed(0)
    config = config_for(STUDENT, MODELS[name]) | {"teacher": name} | changes
    return build_trainable(config)


@pytest.fixture(scope="module")
def trained(ltx_teacher, cache, tmp_path_factory):
    notes, folder = Notes(), tmp_path_factory.mktemp("taehv") / "run"
    distill(find_model(ltx_teacher), folder, latents=cache, settings=SETTINGS, student_config=STUDENT, report=notes)
    return folder, notes.notes


def test_resuming_equals_never_stopping(trained, ltx_teacher, cache, tmp_path):
    spec, arguments = find_model(ltx_teacher), {"latents": cache, "student_config": STUDENT}
    distill(spec, tmp_path / "run", settings=SETTINGS.with_changes(steps=3), **arguments)
    result = distill(spec, tmp_path / "run", settings=SETTINGS, **arguments)
    assert (result.resumed_from, result.step) == (3, 6)
    assert bits(tmp_path / "run") == bits(trained[0])
    estimate = estimate_distill(spec, tmp_path / "run", settings=SETTINGS.with_changes(steps=8), **arguments)
    assert (estimate.steps_done, estimate.steps) == (6, 8)


def test_a_run_loads_with_its_averaged_weights_and_takes_raw_latents(trained, cache):
    decoder = load_decoder(trained[0])
    ema = load_file(trained[0] / "checkpoints" / "step_0000006" / "ema.safetensors")
    assert all(torch.equal(value, ema[name]) for name, value in decoder.state_dict().items())
    assert (decoder.family, decoder.latents, decoder.layout.strides) == ("taehv", "raw", (2, 2, 2))
    batch = LatentCache(cache).batch_at(0, 0, 1)
    video = decoder.decode(batch.mean).sample
    assert video.shape == batch.video.shape
    assert torch.equal(video, decoder.decode(batch.mean).sample)


def test_the_weight_file_is_one_of_taehv(trained, ltx_teacher, cache):
    """With the keys of a published file; the statistics of the latents, which TAEHV leaves to its caller, are in its header."""
    path = trained[0] / "model" / "diffusion_pytorch_model.safetensors"
    published = [key for key, *_ in load_numbers("taehv-128ch").meta["keys"] if key.startswith("decoder.")]
    assert sorted(load_file(path)) == sorted(published)
    latents = LatentCache(cache).batch_at(0, 0, 1).mean
    whole = load_decoder(trained[0]).decode(latents).sample
    for options in ({}, {"family": "taehv"}, {"family": "taehv", "teacher": ltx_teacher}):
        assert torch.equal(load_decoder(path, **options).decode(latents).sample, whole)
    assert torch.equal(load_decoder(trained[0] / "model", family="taehv").decode(latents).sample, whole)


def test_latents_of_a_teacher_without_statistics_are_measured(trained, ltx_teacher, cache):
    """TAEHV limits latents to -3 to 3: raw ones of a larger spread would be cut off."""
    teacher, config = load_teacher(find_model(ltx_teacher)), json.loads((trained[0] / "config.json").read_text())
    found = measured_statistics(teacher, LatentCache(cache), SETTINGS.seed)
    assert found == {name: config["student_config"][name] for name in found}
    latents = torch.cat([mean for mean, _ in first_clips(teacher, LatentCache(cache), SETTINGS.seed)])
    normalised = load_decoder(trained[0]).space.normalised(latents).transpose(0, 1).flatten(1)
    assert torch.allclose(normalised.mean(1), torch.zeros(6), atol=1e-3)
    assert torch.allclose(normalised.std(1), torch.ones(6), atol=1e-3)


@pytest.mark.parametrize(("name", "lacks"), [("ltx", True), ("wan2.1", False), ("hunyuan", False)])
def test_statistics_that_a_teacher_has_are_used(name, lacks):
    """LTX has its own in the weights, from which `distill` takes them."""
    config = config_for(STUDENT, MODELS[name])
    known = {
        key: value
        for key, value in MODELS[name].student.config.items()
        if key in ("latents_mean", "latents_std", "scaling_factor")
    }
    assert lacks_statistics(config) and lacks_statistics(config | known) is lacks


def test_the_pages_of_a_run_name_the_family(trained):
    folder, notes = trained
    card = (folder / "model" / "README.md").read_text()
    assert "A decoder of the family taehv" in card and "load_decoder(" in card and "Turbo-VAED decoder" not in card
    assert "Decoder (taehv)" in (folder / "report.html").read_text()
    assert any("the family taehv" in note for note in notes)


def test_eval_reconstruct_and_bench_take_a_run(trained, videos, tmp_path, turbovaed):
    run = str(trained[0])
    code, out, _ = turbovaed(
        "eval", "--model", run, "--data", videos, "--frames", 9, "--size", "64x64", "--metrics", "psnr", "--json"
    )
    assert code == 0 and json.loads(out)["means"]["student"]["psnr"] > 0
    code, _, err = turbovaed("reconstruct", videos / "a.mp4", "--model", run, "--out", tmp_path / "a.mp4")
    assert code == 0, err
    pair = load_pair(run, against=[str(trained[0] / "model")], with_teacher=False)
    assert [one.decoder.family for one in pair.beside] == ["taehv"]


def test_push_refuses_it_with_a_hint(trained, tmp_path, turbovaed):
    code, _, err = turbovaed("push", trained[0], "a/b", "--dry-run", "--out", tmp_path / "out")
    assert code == 2 and is_two_lines(err) and "of the family 'taehv'" in err


def test_a_run_starts_from_another_one(trained, ltx_teacher, cache, tmp_path):
    again = SETTINGS.with_changes(steps=1, lr=1e-12)
    distill(
        find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=again, student_config=STUDENT, init=str(trained[0])
    )
    first, second = load_decoder(trained[0]), load_decoder(tmp_path / "run")
    assert all(torch.allclose(value, second.state_dict()[name], atol=1e-6) for name, value in first.state_dict().items())


# --- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strides", "patch", "frames"),
    [
        ("wan2.1", (1, 2, 2), 1, 9),
        ("wan2.2", (1, 2, 2), 2, 9),
        ("ltx", (2, 2, 2), 4, 17),
        ("sdxl", (1, 1, 1), 1, 3),
        ("tiny", (1, 1, 2), 1, 5),
    ],
)
def test_the_layout_follows_from_the_ratios_of_the_teacher(name, strides, patch, frames):
    student = small(name)
    channels, ratio = MODELS[name].teacher.latent_channels, MODELS[name].teacher.space_ratio
    assert (student.layout.strides, student.layout.patch) == (strides, patch)
    assert student(torch.randn(1, channels, 3, 1, 2)).shape == (1, 3, frames, ratio, 2 * ratio)
    assert student.pixel_frames(3) == frames


def test_a_teacher_whose_latents_all_stand_for_as_many_frames_loses_none():
    name = next(name for name, spec in MODELS.items() if spec.teacher.frames.first == 0 and spec.teacher.time_ratio == 4)
    student = small(name)
    video = student(torch.randn(1, MODELS[name].teacher.latent_channels, 3, 1, 1))
    assert video.shape[2] == student.pixel_frames(3) == 12


def test_a_fresh_one_makes_frames_near_grey():
    """With torch's own random weights they were black, and the first steps of AdamW diverged."""
    student = small("tiny")
    video = student(torch.randn(1, 32, 2, 4, 4, generator=torch.Generator().manual_seed(1)))
    assert 0 < video.abs().mean() < 0.5
    assert abs(video.mean()) < 0.2


def test_gradients_are_equal_with_checkpointing():
    found = []
    for enable in (False, True):
        student = small("tiny")
        student.checkpoint_blocks(enable=enable)
        student(torch.randn(2, 32, 2, 2, 2, generator=torch.Generator().manual_seed(1))).square().mean().backward()
        found.append([parameter.grad for parameter in student.parameters()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("stride", [1, 2])
def test_one_convolution_of_small_frames_equals_the_three_layers(stride):
    torch.manual_seed(0)
    grow, conv = taehv.Grow(5, stride).double(), torch.nn.Conv2d(5, 7, 3, padding=1, bias=False).double()
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    wanted = conv(grow(functional.interpolate(x, scale_factor=2)))
    assert torch.allclose(taehv._upsampled(grow, conv, x), wanted, atol=1e-12)


def test_what_cannot_work_is_refused_before_anything_is_written(ltx_teacher, cache, tmp_path):
    spec = find_model(ltx_teacher)
    aligned = replace(SETTINGS, stages=(replace(STAGE, feature_weight=1.0),))
    with pytest.raises(SettingsError, match="no features") as error:
        distill(spec, tmp_path / "run", latents=cache, settings=aligned, student_config=STUDENT)
    assert "feature_weight=0" in error.value.hint
    for given, message in (
        ({"family": "taehw"}, "family"),
        ({"family": "taehv", "width": "huge"}, "width"),
        ({"family": "taehv", "width": [16, 8]}, "width"),
        ({"family": "taehv", "patch_size": 4}, "patch_size"),
    ):
        with pytest.raises(SettingsError, match=message):
            distill(spec, tmp_path / "run", latents=cache, settings=SETTINGS, student_config=given)
    assert not (tmp_path / "run").exists()
    odd = replace(spec, teacher=replace(spec.teacher, space_ratio=64))
    with pytest.raises(SettingsError, match="no layout of TAEHV upsamples 8x in time and 64x in space"):
        config_for(STUDENT, odd)
