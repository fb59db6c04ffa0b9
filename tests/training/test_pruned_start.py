"""A student cut from its teacher's decoder: whole, it is the decoder; with fewer channels, the fit brings it closer."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import Notes
from safetensors.torch import load_file
from small_teachers import SMALL

from turbovaed_cli.errors import DifferentRunError, SettingsError
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.outline import outline_of
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.find import find_model, with_student
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training.distill import distill
from turbovaed_cli.training.pruned_start import prune_start, pruned_config, share_of

# Channels in multiples of 16, so that half of them are multiples of 8; by row, and what else the row's small instance needs.
WIDE = {
    "ltx": {"decoder_block_out_channels": [16, 32, 32, 32], "decoder_layers_per_block": [1, 0, 1, 1, 2]},
    "ltx0.9.5": {"decoder_block_out_channels": [16, 32, 64]},
    "ltx2": {"decoder_block_out_channels": [16, 32, 64]},
    "ltx2.3": {"decoder_block_out_channels": [16, 32, 32, 64]},
    "wan2.1": {"base_dim": 16, "dim_mult": [1, 1, 2, 2]},
    "qwen-image": {"base_dim": 16, "dim_mult": [1, 1, 2, 2]},
    "wan2.2": {"decoder_base_dim": 16, "dim_mult": [1, 2, 2, 2]},
}
EXACT = ("ltx", "ltx2.3")
SETTINGS = DistillSettings(
    (Stage("only", steps=2, accumulation=1, perceptual="none", feature_weight=1.0, lr=1e-3),), frames=5, size=(64, 64),
    dtype="fp32", start="plain", save_every=1, sample_every=0,
)  # fmt: skip


def wide_teacher(name: str) -> Teacher:
    """A random teacher of the row's class, whose norms have gains and whose layers all matter."""
    spec = MODELS[name].teacher
    torch.manual_seed(0)
    vae = spec.family.build({"_class_name": spec.class_name, **spec.config, **SMALL[name], **WIDE[name]})
    for parameter_name, parameter in vae.decoder.named_parameters():
        if parameter_name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return Teacher(vae, replace(spec, latent_channels=spec.family.latent_channels(vae.config)))


def student_of(teacher: Teacher, share: float) -> StudentDecoder:
    torch.manual_seed(1)
    return build_student(pruned_config(teacher, share) | {"latent_channels": teacher.spec.latent_channels})


def clips_of(teacher: Teacher, count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random latents, and the videos that the teacher makes of them."""
    generator = torch.Generator().manual_seed(2)
    latents = [torch.randn(1, teacher.spec.latent_channels, 2, 3, 4, generator=generator) for _ in range(count)]
    return [(one, teacher.decode(one)) for one in latents]


def error_of(student: StudentDecoder, clips: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    with torch.no_grad():
        return sum((student(latents) - video).square().mean().item() for latents, video in clips) / len(clips)


@pytest.mark.parametrize("name", EXACT)
def test_a_student_of_all_channels_is_the_decoder_it_was_cut_from(name):
    teacher = wide_teacher(name)
    student = student_of(teacher, 1.0)
    clips = clips_of(teacher)
    prune_start(student, teacher, clips)
    for latents, video in clips:
        made = student(latents)
        assert made.shape == video.shape and torch.allclose(made, video, atol=1e-4 * video.abs().max())


def test_the_embedded_teachers_decoder_is_a_student():
    """Its upsampler changes the channels and adds copies of its input."""
    teacher = load_teacher("tiny")
    student = student_of(teacher, 1.0)
    latents = torch.randn(1, 32, 2, 3, 4)
    prune_start(student, teacher, [(latents, torch.zeros(1, 3, 3, 24, 32))])
    assert torch.allclose(student(latents), teacher.decode(latents), atol=1e-4)
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in teacher.decoder.parameters())


@pytest.mark.parametrize(("name", "share"), [*((name, 0.5) for name in WIDE if name != "qwen-image"), ("qwen-image", 1.0)])
def test_the_fit_brings_a_cut_student_closer(name, share):
    teacher = wide_teacher(name)
    student = student_of(teacher, share)
    clips = clips_of(teacher)
    prune_start(student, teacher, clips, fits=False)
    cut = error_of(student, clips)
    prune_start(student, teacher, clips)
    assert error_of(student, clips) < 0.7 * cut


def test_upsamplings_of_wan_are_one_convolution_each():
    """Time, space, copied channels and a change of channels at once, away from the borders and the first frames."""
    teacher = wide_teacher("wan2.2")
    decoder = teacher.vae.decoder
    for name, parameter in decoder.named_parameters():
        if "attentions" in name or "conv2" in name:  # branches, of which the copied channels see nothing
            torch.nn.init.zeros_(parameter)
    student = student_of(teacher, 1.0)
    latents = torch.randn(1, teacher.spec.latent_channels, 7, 9, 9, generator=torch.Generator().manual_seed(3))
    prune_start(student, teacher, [(latents, teacher.decode(latents))], fits=False)
    with torch.no_grad():
        features = teacher.features(latents, [stage.last_tap for stage in outline_of(teacher.vae, teacher.spec).stages])
        _, learnt = student.features(latents, ["mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"])
    for made, wanted in zip(learnt.values(), features.values(), strict=True):
        side = wanted.shape[-1] // 3
        inner = (slice(None), slice(None), slice(-1, None), slice(side, -side), slice(side, -side))
        assert torch.allclose(made[inner], wanted[inner], atol=1e-4 * wanted[inner].abs().max())


@pytest.fixture(scope="module")
def cut_run(videos, tmp_path_factory):
    """A run of the embedded teacher whose student has an eighth of its channels, and its notes."""
    run, report = tmp_path_factory.mktemp("cut") / "run", Notes()
    distill(find_model("tiny"), run, data=videos, settings=SETTINGS, init="prune:0.125", report=report)
    return run, report


def test_a_run_keeps_the_config_that_follows_from_its_teacher(cut_run):
    run, report = cut_run
    config = json.loads((run / "config.json").read_text())
    assert config["init"] == "prune:0.125" and config["init_sha256"] is None
    assert config["student_config"]["decoder_block_out_channels"] == [8, 16]
    assert list(load_student(run).config.decoder_layers_per_block) == [4, 0, 2]
    assert "cutting the student from its teacher's decoder" in report.notes
    losses = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert {"feature_mid_block", "feature_up_blocks.1"} <= losses.keys()


def test_a_cut_student_resumes_to_the_same_bits(cut_run, videos, tmp_path):
    run = tmp_path / "run"
    for steps in (1, 2):
        settings = SETTINGS.with_changes(steps=steps)
        distill(find_model("tiny"), run, data=videos, settings=settings, init="prune:0.125")
    for path in (cut_run[0] / "checkpoints" / "step_0000002").glob("*.safetensors"):
        before, after = load_file(path), load_file(run / path.relative_to(cut_run[0]))
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("init", ["prune:0.25", None])
def test_a_run_of_another_share_or_start_is_refused(cut_run, videos, init):
    config = json.loads((cut_run[0] / "config.json").read_text())["student_config"] if init is None else None
    with pytest.raises(DifferentRunError, match="init") as caught:
        distill(find_model("tiny"), cut_run[0], data=videos, settings=SETTINGS, init=init, student_config=config)
    assert "prune:0.125" in str(caught.value)


@pytest.mark.parametrize("init", ["prune:", "prune:half", "prune:0", "prune:1.5", "prune:nan"])
def test_a_share_is_above_0_and_at_most_1(init):
    with pytest.raises(SettingsError, match="above 0 and at most 1"):
        share_of(init)
    assert share_of("prune:0.5") == 0.5 and share_of("runs/prune") is None and share_of(None) is None


def test_another_config_beside_the_teachers_is_refused(videos, small_student, tmp_path):
    with pytest.raises(SettingsError, match="makes the student's config"):
        distill(find_model("tiny"), tmp_path, data=videos, settings=SETTINGS, init="prune:0.5", student_config=small_student)
    with pytest.raises(SettingsError, match="makes the student's config"):
        distill(with_student(find_model("tiny"), "lite"), tmp_path, data=videos, settings=SETTINGS, init="prune:0.5")


def test_a_teacher_with_other_layers_is_refused_with_a_way_on():
    spec = MODELS["hunyuan"].teacher
    vae = spec.family.build({"_class_name": spec.class_name, **spec.config, **SMALL["hunyuan"]})
    with pytest.raises(SettingsError, match="AutoencoderKLHunyuanVideo") as caught:
        pruned_config(Teacher(vae, spec), 0.5)
    assert "leave `init` out" in caught.value.hint


def test_a_share_that_leaves_no_change_of_channels_is_refused(ltx_teacher):
    """A block of 16 channels between two of 8."""
    with pytest.raises(SettingsError, match="leaves 8 channels before and after"):
        pruned_config(load_teacher(ltx_teacher), 0.5)
