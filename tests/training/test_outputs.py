"""What a run shows of itself never costs the run: it is drawn after the checkpoint, in bounded memory, without gradients."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from conftest import Notes
from PIL import Image

from turbovaed_cli.latents.batch import Crop
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training import estimate, outputs
from turbovaed_cli.training.distill import distill, estimate_distill
from turbovaed_cli.training.trainer import Trainer

SETTINGS = DistillSettings(
    (Stage("only", steps=3, accumulation=1, perceptual="none", feature_weight=0.0),),
    frames=9,
    size=(64, 64),
    dtype="fp32",
    save_every=1,
    sample_every=1,
)


@pytest.fixture
def learn(ltx_teacher, cache, small_student, tmp_path):
    def learn(name="run", settings=SETTINGS, **options):
        folder = RunDir(tmp_path / name)
        distill(find_model(ltx_teacher), folder.root, latents=cache, settings=settings, student_config=small_student, **options)
        return folder

    return learn


def test_a_sample_without_memory_costs_one_warning_and_nothing_else(learn, monkeypatch):
    """From an allocation that really fails, as a teacher's decode does on a card that is too small."""
    tried = []
    monkeypatch.setattr(Teacher, "decode", lambda self, latents: tried.append(latents.shape) or torch.empty(10**15))
    notes = Notes()
    folder = learn(report=notes)
    assert folder.steps() == [1, 2, 3] and folder.model.is_dir() and folder.report.is_file()
    (warning,) = [text for text in notes.warnings if "memory" in text]
    assert warning.startswith("too little memory to decode a sample (") and "goes on without samples" in warning
    assert len(tried) == 1 and not list(folder.samples.glob("*.png"))


def test_the_checkpoint_is_there_before_a_sample_is_drawn(learn, monkeypatch, tmp_path):
    """Other failures of a sample end the run, from which the same command goes on."""

    def fails(self, latents):
        raise KeyError("decode")

    monkeypatch.setattr(Teacher, "decode", fails)
    with pytest.raises(KeyError, match="decode"):
        learn()
    assert RunDir(tmp_path / "run").steps() == [1]


def test_a_sample_shows_a_crop_of_its_stage(learn):
    for name, settings, width in (("cut", SETTINGS.with_changes(crop=(32, 32)), 32), ("whole", SETTINGS, 64)):
        strip = Image.open(learn(name, settings.with_changes(steps=1)).samples / "step_0000001.png")
        assert strip.width == 3 * width


@pytest.mark.parametrize(
    ("whole", "crop", "shown"),
    [
        ((704, 1280), None, (256, 256)),
        ((704, 1280), Crop(16, 16, 32, margin=2), (256, 256)),
        ((704, 1280), Crop(4, 20, 32), (128, 256)),
        ((256, 192), None, (256, 192)),
    ],
)
def test_a_sample_is_of_256_pixels_a_side_at_most(whole, crop, shown):
    trainer = SimpleNamespace(
        streams=[SimpleNamespace(size=whole)], crops=[crop], teacher=SimpleNamespace(spec=SimpleNamespace(space_ratio=32))
    )
    found = outputs._shown_crop(trainer, 0)
    assert shown == (whole if found is None else found.pixels)


def test_the_clip_of_the_report_is_decoded_without_gradients(learn, monkeypatch):
    seen, decode = [], outputs.sample_videos
    monkeypatch.setattr(
        outputs, "sample_videos", lambda trainer: seen.append((torch.is_grad_enabled(), decode(trainer))) or seen[-1][1]
    )
    folder = learn(settings=SETTINGS.with_changes(steps=1))
    assert len(seen) == 2 and all(
        enabled for enabled, _ in seen
    )  # the strip, and the report; the callers do not turn gradients off
    assert not any(video.requires_grad for _, videos in seen for video in videos.values())
    assert "the first clip of the data" in folder.report.read_text()


def test_a_dry_run_weighs_the_sample_the_fitted_start_and_all_batches_read_ahead(
    ltx_teacher, cache, small_student, tmp_path, monkeypatch
):

    done, learn_once = [], Trainer.learn

    def learn(self, batches):
        losses = learn_once(self, batches)
        ahead = batches.gi_frame.f_locals["waiting"] if inspect.isgenerator(batches) else None
        done.append("step" if ahead is None else f"step beside {len(ahead)} batches")
        return losses

    monkeypatch.setattr(Trainer, "learn", learn)
    monkeypatch.setattr(Trainer, "set_start", lambda self, report: done.append("fitted start"))
    monkeypatch.setattr(
        estimate, "Samples", lambda trainer, report: type("Seen", (), {"videos": lambda self: done.append("sample")})()
    )
    monkeypatch.setattr(estimate, "forget_peak", lambda device: done.append("from here on"))
    stages = (Stage("one", steps=1, accumulation=1), Stage("two", steps=9, accumulation=1))
    settings = SETTINGS.with_changes(stages=stages, start="fitted", workers=3)
    options = {"latents": cache, "settings": settings, "student_config": small_student}
    found = estimate_distill(find_model(ltx_teacher), tmp_path / "run", **options)
    both = ["step beside 3 batches", "sample"]
    assert done == ["from here on", "fitted start", "step", *both, "from here on", *["step"] * 4, *both]
    assert all(stage.peak_mb > 10 and stage.reserved_mb is None for stage in found.stages)
