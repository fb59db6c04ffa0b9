"""Distillation learns, writes what it promises, refuses what cannot work, and stops before NaN spreads."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from turbovaed_cli.cache_latents import cache_latents
from turbovaed_cli.distill import distill, learning_rate
from turbovaed_cli.errors import NonFiniteError, RunFolderError, SettingsError, ShapeError, WeightFileError
from turbovaed_cli.latents import Batch
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.student import StudentDecoder, load_student
from turbovaed_cli.registry import find_model
from turbovaed_cli.settings import CacheSettings, DistillSettings
from turbovaed_cli.training.data import random_crop

TINY = DistillSettings(steps=4, accumulation=2, frames=9, size=(64, 64), perceptual="ssim", save_every=2, sample_every=2, lr=1e-3)


@pytest.fixture(scope="module")
def cache(ltx_teacher, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "latents"
    cache_latents(find_model(ltx_teacher), videos, out, CacheSettings(frames=9, size=(64, 64)))
    return out


@pytest.fixture(scope="module")
def run(ltx_teacher, videos, small_student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, distill(find_model(ltx_teacher), folder, data=videos, settings=TINY, student_config=small_student)


def test_a_run_folder_holds_everything_it_promises(run):
    folder, result = run
    assert {"config.json", "env.json", "metrics.jsonl", "train.log", "checkpoints", "samples", "model"} <= {
        path.name for path in folder.iterdir()
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["lr"] == 1e-3
    assert len(config["teacher"]["weights_sha256"]) == len(config["data_fingerprint"]) == 64
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_0000002", "step_0000004"]
    strip = Image.open(folder / "samples" / "step_0000004.png")
    assert strip.width == 3 * 64
    assert result.step == 4 and result.resumed_from is None
    assert {"loss", "l1", "perceptual", "feature_mid_block", "feature_up_blocks.1"} <= set(result.losses)


def test_model_is_for_from_pretrained_and_carries_the_teachers_licence(run):
    folder, _ = run
    a, b = StudentDecoder.from_pretrained(folder / "model"), load_student(folder)
    latents = torch.randn(1, 6, 2, 2, 2)
    with torch.no_grad():
        assert torch.equal(a(latents), b(latents))
    card = (folder / "model" / "README.md").read_text()
    assert find_model("ltx").teacher.licence in card
    assert "Trained for 4 steps of 2 clips" in card


def test_model_holds_the_average_not_the_last_weights(run):
    from safetensors.torch import load_file

    folder, _ = run
    model = load_file(folder / "model" / "diffusion_pytorch_model.safetensors")
    ema, last = (load_file(folder / "checkpoints" / "step_0000004" / f"{piece}.safetensors") for piece in ("ema", "student"))
    assert all(torch.equal(model[name], ema[name]) for name in model)
    assert any(not torch.equal(ema[name], last[name]) for name in model)


def test_a_run_folder_is_a_model_that_knows_its_teacher(run, ltx_teacher):
    pair = load_pair(str(run[0]))
    assert pair.teacher.spec.path == ltx_teacher
    assert pair.run.root == run[0]


def test_it_learns(videos, tmp_path):
    """From the embedded teacher, whose latents mean something: the last round over the clips is much better than the first."""
    spec = find_model("tiny")
    cache_latents(spec, videos, tmp_path / "cache", CacheSettings(frames=9, size=(64, 64)))
    settings = replace(
        TINY,
        steps=42,
        accumulation=1,
        batch_size=2,
        lr=3e-3,
        feature_weight=0.1,
        save_every=100,
        sample_every=0,
        perceptual="none",
    )
    config = spec.student.config | {"decoder_layers_per_block": (1, 1, 1)}
    distill(spec, tmp_path / "run", latents=tmp_path / "cache", settings=settings, student_config=config)
    losses = [json.loads(line)["l1"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-7:]) < 0.6 * sum(losses[:7])


def test_cached_latents_and_videos_see_the_same_encoder(ltx_teacher, cache):
    from turbovaed_cli.latents import LatentCache
    from turbovaed_cli.models.teacher import load_teacher

    batch = LatentCache(cache).batch_at(0, 0, 1)
    assert torch.equal(load_teacher(ltx_teacher).encode(batch.video).mean, batch.mean)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_trains_without_nan(dtype, ltx_teacher, cache, small_student, tmp_path):
    settings = replace(TINY, steps=2, accumulation=1, dtype=dtype, sample_every=0)
    result = distill(find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=settings, student_config=small_student)
    assert result.losses["loss"] > 0
    assert all(torch.isfinite(value).all() for value in load_student(tmp_path / "run").state_dict().values())


def test_without_alignment_no_teacher_is_decoded(ltx_teacher, cache, small_student, tmp_path, monkeypatch):
    from turbovaed_cli.models.teacher import Teacher

    monkeypatch.setattr(Teacher, "features", lambda *_: pytest.fail("a feature was asked for"))
    settings = replace(TINY, steps=1, feature_weight=0, sample_every=0)
    result = distill(find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=settings, student_config=small_student)
    assert not [name for name in result.losses if name.startswith("feature")]


def test_nan_stops_before_the_step_and_says_where(ltx_teacher, cache, small_student, tmp_path, monkeypatch):
    from turbovaed_cli.latents import LatentCache

    original = LatentCache.batch_at

    def poisoned(self, seed, index, batch_size):
        batch = original(self, seed, index, batch_size)
        return Batch(batch.video, batch.mean * float("nan"), batch.std) if index == 5 else batch

    monkeypatch.setattr(LatentCache, "batch_at", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 3 .*forward pass 5"):
        distill(find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=TINY, student_config=small_student)
    from safetensors.torch import load_file

    assert all(
        torch.isfinite(value).all()
        for value in load_file(tmp_path / "run" / "checkpoints" / "step_0000002" / "student.safetensors").values()
    )
    monkeypatch.setattr(LatentCache, "batch_at", original)
    assert (
        distill(
            find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=TINY, student_config=small_student
        ).resumed_from
        == 2
    )


def test_a_video_that_turns_out_damaged_is_passed_over_named_and_the_same_every_time(
    ltx_teacher, videos, small_student, tmp_path
):
    """Its header and first packets are whole, so only reading tells."""
    import shutil

    from conftest import make_video

    from turbovaed_cli.training.data import VideoClips
    from turbovaed_cli.video import probe

    data = tmp_path / "data"
    shutil.copytree(videos, data)
    bad = make_video(data / "bad.mkv", frames=60)
    infos = [probe(path) for path in sorted(data.rglob("*.m*"))]
    content = bytearray(bad.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 3000] = bytes(3000)
    bad.write_bytes(content)
    clips = [VideoClips(infos, 9, (64, 64), 1) for _ in range(2)]
    batches = [[stream.batch_at(0, index, 2).video for index in range(8)] for stream in clips]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert list(clips[0].damaged) == [str(bad)]


def test_a_loss_scale_that_only_falls_is_an_error(ltx_teacher, cache, small_student, tmp_path, monkeypatch):
    """Gradients that overflow at every step halve the scale each time, and nothing is learnt."""
    from turbovaed_cli.training.alignment import AlignmentHeads

    original = AlignmentHeads.forward
    monkeypatch.setattr(AlignmentHeads, "forward", lambda self, a, b: {k: v * 1e30 for k, v in original(self, a, b).items()})
    settings = replace(TINY, dtype="fp16", steps=60, accumulation=1, sample_every=0)
    with pytest.raises(NonFiniteError, match="loss scale"):
        distill(find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=settings, student_config=small_student)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert 10 < len(lines) < 60
    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)


def test_a_resume_with_other_settings_names_every_change(run, ltx_teacher, videos, small_student):
    folder, _ = run
    with pytest.raises(RunFolderError) as error:
        distill(
            find_model(ltx_teacher), folder, data=videos, settings=replace(TINY, lr=5e-4, seed=9), student_config=small_student
        )
    assert "settings.lr: 0.001 -> 0.0005" in error.value.what
    assert "settings.seed: 0 -> 9" in error.value.what


def test_a_second_process_on_the_same_run_is_refused(run, ltx_teacher, videos, small_student):
    from turbovaed_cli.rundir import RunDir

    with RunDir(run[0]).lock(), pytest.raises(RunFolderError, match="in use by process"):
        distill(find_model(ltx_teacher), run[0], data=videos, settings=TINY, student_config=small_student)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"posterior": "mode"}, "mode"),
        ({"perceptual": "l2"}, "l2"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(change, said, ltx_teacher, videos, tmp_path):
    with pytest.raises(SettingsError, match=said):
        distill(find_model(ltx_teacher), tmp_path / "run", data=videos, settings=replace(TINY, **change))
    assert not (tmp_path / "run").exists()


def test_data_or_latents_but_not_both(ltx_teacher, videos, cache, tmp_path):
    for given in ({}, {"data": videos, "latents": cache}):
        with pytest.raises(SettingsError, match="one of the two"):
            distill(find_model(ltx_teacher), tmp_path / "run", settings=TINY, **given)


def test_latents_of_another_teacher_are_refused(cache, tmp_path, ltx_teacher, small_student):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(ltx_teacher, tmp_path / "other")
    weights = tmp_path / "other" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({name: value * 1.01 for name, value in state.items()}, weights)
    with pytest.raises(SettingsError, match="another teacher"):
        distill(find_model(tmp_path / "other"), tmp_path / "run", latents=cache, settings=TINY, student_config=small_student)


def test_a_crop_cuts_pixels_and_latents_at_the_same_place():
    rows = torch.arange(8.0).view(1, 1, 1, 8, 1).expand(2, 6, 2, 8, 8)
    pixels = rows[:, :3, :1].repeat_interleave(32, 3).repeat_interleave(32, 4)
    cut = random_crop(Batch(pixels, rows, rows), (96, 64), 32, seed=0, index=5)
    assert cut.video.shape == (2, 3, 1, 96, 64)
    assert cut.mean.shape == cut.std.shape == (2, 6, 2, 3, 2)
    assert torch.equal(cut.video[:, :, :1, ::32, ::32], cut.mean[:, :3, :1])
    assert torch.equal(random_crop(Batch(pixels, rows, rows), (96, 64), 32, seed=0, index=5).mean, cut.mean)
    starts = {
        tuple(random_crop(Batch(pixels, rows, rows), (96, 64), 32, seed=0, index=i).mean[:, 0, 0, 0, 0].tolist())
        for i in range(20)
    }
    assert len(starts) > 5


def test_crops_are_checked(ltx_teacher, cache, small_student, tmp_path):
    with pytest.raises(ShapeError):
        distill(
            find_model(ltx_teacher),
            tmp_path / "run",
            latents=cache,
            settings=replace(TINY, crop=(50, 64)),
            student_config=small_student,
        )
    with pytest.raises(SettingsError, match="larger than the clips"):
        distill(
            find_model(ltx_teacher),
            tmp_path / "run",
            latents=cache,
            settings=replace(TINY, crop=(96, 96)),
            student_config=small_student,
        )
    result = distill(
        find_model(ltx_teacher),
        tmp_path / "run",
        latents=cache,
        settings=replace(TINY, steps=1, crop=(32, 64)),
        student_config=small_student,
    )
    assert result.step == 1


def test_init_starts_from_a_students_weights(run, ltx_teacher, cache, small_student, tmp_path):
    settings = replace(TINY, steps=1, accumulation=1, lr=1e-12, sample_every=0)
    distill(
        find_model(ltx_teacher),
        tmp_path / "run",
        latents=cache,
        settings=settings,
        student_config=small_student,
        init=str(run[0]),
    )
    before, after = load_student(run[0]).state_dict(), load_student(tmp_path / "run").state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    with pytest.raises(WeightFileError):
        wider = small_student | {"decoder_block_out_channels": [32, 8, 8, 16]}
        distill(
            find_model(ltx_teacher), tmp_path / "other", latents=cache, settings=settings, student_config=wider, init=str(run[0])
        )


def test_learning_rate_warms_up_and_falls():
    settings = DistillSettings(steps=100, lr=1.0, warmup_steps=10, lr_schedule="cosine")
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[-1] == pytest.approx(0.02, abs=0.01)
    assert learning_rate(DistillSettings(lr=0.5), 1234) == 0.5
