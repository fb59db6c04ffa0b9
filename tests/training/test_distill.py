"""Distillation learns, writes what it promises, refuses what cannot work, and stops before NaN spreads."""

import json
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from conftest import Notes, make_video
from PIL import Image

from turbovaed_cli.cli.distill import _recipe_named
from turbovaed_cli.errors import CorruptFileError, NonFiniteError, RunFolderError, SettingsError, ShapeError, WeightFileError
from turbovaed_cli.latents.batch import Batch, Crop
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.latents.caching import cache_latents
from turbovaed_cli.machine.ranks import alone
from turbovaed_cli.machine.threads import Waited
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.reporting import quiet
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import CacheSettings, DistillSettings, Stage
from turbovaed_cli.training.alignment import AlignmentHeads
from turbovaed_cli.training.batches import VideoClips
from turbovaed_cli.training.checks import check_clips_per_pass
from turbovaed_cli.training.distill import distill
from turbovaed_cli.training.estimate import LONG, duration_in_words, fitted_stages, forecast
from turbovaed_cli.training.loop import waits_in_words
from turbovaed_cli.training.losses import perceptual_loss, reconstruction_losses
from turbovaed_cli.training.prepare import Distillation, prepare, settle
from turbovaed_cli.training.recipes import RECIPES, read_recipe
from turbovaed_cli.training.schedule import crop_of, learning_rate, passes_from, position_at
from turbovaed_cli.training.state import TrainingState
from turbovaed_cli.training.trainer import Trainer
from turbovaed_cli.video import list_videos, probe
from turbovaed_cli.video.usable import Skipped

TINY = DistillSettings(
    (Stage("only", steps=4, accumulation=2, perceptual="ssim", lr=1e-3),),
    frames=9,
    size=(64, 64),
    dtype="fp32",
    save_every=2,
    sample_every=2,
)


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
    assert config["settings"]["stages"][0]["lr"] == 1e-3
    assert len(config["teacher"]["weights_sha256"]) == len(config["data_fingerprint"]) == 64
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_0000002", "step_0000004"]
    strip = Image.open(folder / "samples" / "step_0000004.png")
    assert strip.width == 3 * 64
    assert result.step == 4 and result.resumed_from is None
    assert {"loss", "l1", "perceptual", "feature_mid_block", "feature_up_blocks.1"} <= set(result.losses)


def test_model_is_for_from_pretrained_and_carries_the_teachers_licence(run, ltx_teacher):
    folder, _ = run
    a, b = StudentDecoder.from_pretrained(folder / "model"), load_student(folder)
    latents = torch.randn(1, 6, 2, 2, 2)
    with torch.no_grad():
        assert torch.equal(a(latents), b(latents))
    card = (folder / "model" / "README.md").read_text()
    assert find_model(ltx_teacher).teacher.licence in card
    assert "| only | 4 | 2 clips, 9 frames of 64x64 | L1 + 1.0 ssim + 1.0 features | 0.001 constant |" in card
    assert str(ltx_teacher.parent) not in card and "license: unknown" in card


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
    settings = TINY.with_changes(
        steps=28,
        accumulation=1,
        batch_size=2,
        optimizer="muon",
        lr=1e-2,
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
    from turbovaed_cli.models.teacher import load_teacher

    batch = LatentCache(cache).batch_at(0, 0, 1)
    assert torch.equal(load_teacher(ltx_teacher).encode(batch.video).mean, batch.mean)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_trains_without_nan(dtype, ltx_teacher, cache, small_student, tmp_path):
    settings = TINY.with_changes(steps=2, accumulation=1, dtype=dtype, sample_every=0)
    result = distill(find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=settings, student_config=small_student)
    assert result.losses["loss"] > 0
    assert all(torch.isfinite(value).all() for value in load_student(tmp_path / "run").state_dict().values())


def test_without_alignment_no_teacher_is_decoded(ltx_teacher, cache, small_student, tmp_path, monkeypatch):
    from turbovaed_cli.models.teacher import Teacher

    monkeypatch.setattr(Teacher, "features", lambda *_: pytest.fail("a feature was asked for"))
    settings = TINY.with_changes(steps=1, feature_weight=0, sample_every=0)
    result = distill(find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=settings, student_config=small_student)
    assert not [name for name in result.losses if name.startswith("feature")]


def test_teacher_features_are_computed_in_the_precision_that_trains(ltx_teacher, cache, small_student, tmp_path, monkeypatch):
    seen, original = [], Teacher.features
    monkeypatch.setattr(Teacher, "features", lambda self, *given: seen.append(original(self, *given)) or seen[-1])
    for dtype in ("fp32", "bf16"):
        settings = TINY.with_changes(steps=1, accumulation=1, dtype=dtype, sample_every=0)
        distill(find_model(ltx_teacher), tmp_path / dtype, latents=cache, settings=settings, student_config=small_student)
    (_, fp32, _, bf16) = seen  # each run builds its heads first
    assert {feature.dtype for feature in fp32.values()} == {torch.float32}
    assert {feature.dtype for feature in bf16.values()} == {torch.bfloat16}


def test_from_cached_latents_the_encoder_is_dropped_and_from_videos_it_is_not(
    ltx_teacher, videos, cache, small_student, tmp_path, monkeypatch
):
    seen, original = [], Teacher.decode
    monkeypatch.setattr(Teacher, "decode", lambda self, latents: seen.append(self.vae.encoder is None) or original(self, latents))
    settings = TINY.with_changes(steps=1, accumulation=1)
    for name, given in (("cached", {"latents": cache}), ("videos", {"data": videos})):
        distill(find_model(ltx_teacher), tmp_path / name, settings=settings, student_config=small_student, **given)
    assert set(seen[: len(seen) // 2]) == {True} and set(seen[len(seen) // 2 :]) == {False}


def test_every_step_says_what_it_waited_for_and_the_memory_it_took(run):
    for line in (run[0] / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert 0 <= row["data_seconds"] <= row["seconds"]
        assert row["peak_mb"] > 100


def test_a_run_that_waits_for_data_is_told_what_to_do():
    assert waits_in_words(9.0, 100.0, 2) == waits_in_words(0.0, 0.0, 2) == ""
    assert waits_in_words(30.0, 100.0, 2).startswith("steps waited 30% of their time for data; --workers 4")


def test_only_waiting_is_counted_as_waiting(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 20.5])  # before and behind every item, and the end
    monkeypatch.setattr("turbovaed_cli.machine.threads.time.perf_counter", lambda: next(clock))
    waited = Waited(iter("ab"))
    assert list(waited) == ["a", "b"]
    assert waited.seconds == 3.5


def test_a_batch_comes_with_the_noise_of_its_number_only_where_it_is_sampled(ltx_teacher, cache, videos, small_student):
    """The same for cached latents, whose shape is there, and for videos, whose latents are yet to be made."""
    teacher, device = load_teacher(ltx_teacher), torch.device("cpu")
    state = TrainingState(build_student(small_student), AlignmentHeads((), ()), TINY, device)
    clips = VideoClips([probe(path) for path in list_videos(videos)], 9, (64, 64), 1)

    def batch(stream, number, settings=TINY):
        return Trainer(teacher, state, [stream], [None], {}, settings, device, torch.float32).batch_at((0, number))

    cached, read = batch(LatentCache(cache), 3), batch(clips, 3)
    assert cached.noise.shape == cached.mean.shape and torch.equal(cached.noise, read.noise)
    assert not torch.equal(cached.noise, batch(clips, 4).noise)
    assert batch(clips, 3, TINY.with_changes(posterior="mean")).noise is None


def test_nan_stops_before_the_step_and_says_where(ltx_teacher, cache, small_student, tmp_path, monkeypatch):
    original = LatentCache.batch_at

    def poisoned(self, seed, index, *more):
        batch = original(self, seed, index, *more)
        return Batch(batch.video, batch.mean * float("nan"), batch.std) if index == 5 else batch

    monkeypatch.setattr(LatentCache, "batch_at", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 3 .*forward pass 5.* of .*(a|b)\.(mp4|mkv) from frame \d+"):
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

    from turbovaed_cli.training.batches import VideoClips
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
    settings = TINY.with_changes(dtype="fp16", steps=60, accumulation=1, sample_every=0)
    with pytest.raises(NonFiniteError, match="loss scale"):
        distill(find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=settings, student_config=small_student)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert 10 < len(lines) < 60
    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)


def test_a_resume_with_other_settings_names_every_change(run, ltx_teacher, videos, small_student):
    folder, _ = run
    with pytest.raises(RunFolderError) as error:
        distill(
            find_model(ltx_teacher),
            folder,
            data=videos,
            settings=TINY.with_changes(lr=5e-4, seed=9),
            student_config=small_student,
        )
    assert "`lr` 0.001 -> 0.0005" in error.value.what
    assert "`seed` 0 -> 9" in error.value.what


def test_a_second_process_on_the_same_run_is_refused(run, ltx_teacher, videos, small_student):
    from turbovaed_cli.runs.rundir import RunDir

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
        distill(find_model(ltx_teacher), tmp_path / "run", data=videos, settings=TINY.with_changes(**change))
    assert not (tmp_path / "run").exists()


def test_clips_too_small_for_the_perceptual_loss_leave_no_run_that_only_the_same_size_resumes(videos, tmp_path):
    small = RECIPES["fast"].with_changes(steps=2, frames=9, size=(8, 8), sample_every=0, dtype="fp32", perceptual="ssim")
    with pytest.raises(ShapeError, match="`perceptual` ssim needs 11x11 pixels at least; stage reconstruct compares 8x8"):
        distill(find_model("tiny"), tmp_path / "run", data=videos, settings=small)
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
    with pytest.raises(SettingsError, match=r"made by vae .*, not by other"):
        distill(find_model(tmp_path / "other"), tmp_path / "run", latents=cache, settings=TINY, student_config=small_student)


def test_a_crop_cuts_pixels_and_latents_at_the_same_place(cache):
    """The clips are 2x2 latents of 32 pixels: a crop of one latent has the pixels under it, in both kinds of stream."""
    stream, crop = LatentCache(cache), Crop(1, 2, 32)
    whole, cut = stream.batch_at(0, 5, 2), stream.batch_at(0, 5, 2, crop)
    places = crop.places(0, 5, 2, stream.size)
    assert cut.video.shape == (2, 3, 9, 32, 64) and cut.mean.shape == cut.std.shape == (2, 6, 2, 1, 2) and cut.windows is None
    for number, place in enumerate(places):
        row = place.latents[0].start
        assert place.pixels == (slice(32 * row, 32 * row + 32), slice(0, 64))
        assert torch.equal(cut.mean[number], whole.mean[number, :, :, row : row + 1])
        assert torch.equal(cut.std[number], whole.std[number, :, :, row : row + 1])
        assert torch.equal(cut.video[number], whole.video[number, :, :, 32 * row : 32 * row + 32])
    assert torch.equal(stream.batch_at(0, 5, 2, crop).mean, cut.mean)
    assert {place.latents[0].start for index in range(20) for place in crop.places(0, index, 1, stream.size)} == {0, 1}


def test_crops_of_videos_are_their_clips_cut_and_count_whole(videos):
    """The teacher encodes such a crop alone, so its borders are real: no margin is left out."""
    stream = VideoClips([probe(path) for path in list_videos(videos)], 9, (64, 64), 1)
    crop = Crop(4, 4, 8, margin=1)
    whole, cut = stream.batch_at(0, 3, 2), stream.batch_at(0, 3, 2, crop)
    assert cut.video.shape == (2, 3, 9, 32, 32) and cut.windows is None
    for number, place in enumerate(replace(crop, margin=0).places(0, 3, 2, (64, 64))):
        assert torch.equal(cut.video[number], whole.video[number, ..., place.pixels[0], place.pixels[1]])


def test_losses_leave_out_the_margin_along_cuts_but_not_along_the_clips_borders():
    """Crops of 6 of 16 latents with a margin of 2: a cut is at least 2 latents from what counts, the borders count as often as the middle."""
    crop, counted = Crop(6, 16, 8, margin=2), torch.zeros(16)
    for index in range(4000):
        [place] = crop.places(0, index, 1, (128, 128))
        (top, left), (rows, columns) = place.latents, place.window
        assert (top.stop - top.start, left) == (6, slice(0, 16))
        assert (rows.stop - rows.start, columns.stop - columns.start) == (16, 128)  # no cut between left and right
        first, last = top.start + rows.start // 8, top.start + rows.stop // 8
        counted[first:last] += 1
        assert top.start == 0 or first - top.start >= 2
        assert top.stop == 16 or top.stop - last >= 2
    assert min(counted[0], counted[15]) > 0.85 * counted[8]


def test_a_batch_counts_the_window_of_each_clip():
    video = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 1, 8, 8)
    batch = Batch(video, windows=((slice(0, 4), slice(2, 6)), (slice(4, 8), slice(0, 4))))
    assert torch.equal(batch.counted(video), torch.stack([video[0, ..., :4, 2:6], video[1, ..., 4:, :4]]))
    assert Batch(video).counted(video) is video


def test_a_margin_is_at_most_a_third_of_a_side_that_is_cut():
    teacher = find_model("tiny").teacher
    assert [crop_of(Stage("s", crop_latents=n, crop_margin=2), teacher, (256, 256)).margin for n in (1, 3, 5, 6, 12)] == [
        0,
        1,
        1,
        2,
        2,
    ]
    assert crop_of(Stage("s", crop=(32, 256), crop_margin=2), teacher, (256, 256)).margin == 1
    assert crop_of(Stage("s", crop=(256, 64), crop_margin=2), teacher, (256, 256)).margin == 2


def test_latents_and_the_teachers_pixels_are_computed_in_fp32_whatever_trains(
    ltx_teacher, videos, small_student, tmp_path, monkeypatch
):
    """Rounded to bf16, latents are other latents: a student would learn to decode what no encoder says."""
    seen = []
    encode, decode = Teacher.encode, Teacher.decode_by_class
    monkeypatch.setattr(
        Teacher, "encode", lambda self, video: seen.append(torch.is_autocast_enabled("cpu")) or encode(self, video)
    )
    monkeypatch.setattr(
        Teacher, "decode_by_class", lambda self, latents: seen.append(torch.is_autocast_enabled("cpu")) or decode(self, latents)
    )
    settings = TINY.with_changes(dtype="bf16", steps=1, teacher_weight=1.0, sample_every=0)
    distill(find_model(ltx_teacher), tmp_path / "run", data=videos, settings=settings, student_config=small_student)
    assert len(seen) == 4 and not any(seen)  # two forward passes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop_margin": -2}, "`crop_margin` is -2"),
        ({"lr": float("nan")}, "`lr` is nan"),
        ({"lr_end": -3.0}, "`lr_end` is -3.0"),
        ({"perceptual_weight": -1.0}, "`perceptual_weight` is -1.0"),
        ({"adversarial_weight": float("inf")}, "`adversarial_weight` is inf"),
        ({"betas": (0.9, 1.5)}, "betas are"),
        ({"weight_decay": -1.0}, "`weight_decay` is -1.0"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes, said, ltx_teacher, videos, tmp_path):
    with pytest.raises(SettingsError, match=said):
        distill(find_model(ltx_teacher), tmp_path / "run", data=videos, settings=TINY.with_changes(**changes))
    assert not (tmp_path / "run").exists()


def test_crops_are_checked(ltx_teacher, cache, small_student, tmp_path):
    with pytest.raises(ShapeError):
        distill(
            find_model(ltx_teacher),
            tmp_path / "run",
            latents=cache,
            settings=TINY.with_changes(crop=(50, 64)),
            student_config=small_student,
        )
    with pytest.raises(SettingsError, match="larger than the clips") as error:
        distill(
            find_model(ltx_teacher),
            tmp_path / "run",
            latents=cache,
            settings=TINY.with_changes(crop=(96, 96)),
            student_config=small_student,
        )
    assert "or raise `size`" in error.value.hint
    result = distill(
        find_model(ltx_teacher),
        tmp_path / "run",
        latents=cache,
        settings=TINY.with_changes(steps=1, crop=(32, 64)),
        student_config=small_student,
    )
    assert result.step == 1


def test_init_starts_from_a_students_weights(run, ltx_teacher, cache, small_student, tmp_path):
    settings = TINY.with_changes(steps=1, accumulation=1, lr=1e-12, sample_every=0)
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
    stage = Stage("s", steps=100, lr=1.0, warmup_steps=10, lr_schedule="cosine")
    rates = [learning_rate(stage, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[-1] == pytest.approx(0.02, abs=0.01)
    assert learning_rate(Stage("s", lr=0.5), 1234) == 0.5


def test_a_schedule_knows_which_stage_each_step_and_forward_pass_belongs_to():
    stages = (Stage("a", steps=2, accumulation=3), Stage("b", steps=1, accumulation=1), Stage("c", steps=2, accumulation=2))
    assert [position_at(stages, step).stage.name for step in range(6)] == ["a", "a", "b", "c", "c", "c"]
    every = list(passes_from(stages, 0))
    assert every == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 6), (2, 7), (2, 8), (2, 9), (2, 10)]
    assert [next(iter(passes_from(stages, step))) for step in range(5)] == [(0, 0), (0, 3), (1, 6), (2, 7), (2, 9)]


def test_steps_scale_the_whole_schedule_and_a_stages_field_changes_in_every_stage():
    settings = DistillSettings((Stage("a", steps=30, warmup_steps=10), Stage("b", steps=10)))
    shorter = settings.with_changes(steps=8, lr=0.5, seed=3)
    assert [(stage.steps, stage.lr) for stage in shorter.stages] == [(6, 0.5), (2, 0.5)]
    assert shorter.seed == 3 and shorter.steps == 8
    assert [stage.steps for stage in settings.with_changes(steps=2).stages] == [1, 1]
    with pytest.raises(SettingsError, match="2 stages"):
        settings.with_changes(steps=1)
    with pytest.raises(SettingsError, match="at least 1"):
        settings.with_changes(steps=0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_schedule_that_names_itself(name):
    recipe = read_recipe(name)
    assert recipe.recipe == name and recipe.steps > 0
    assert len({stage.name for stage in recipe.stages}) == len(recipe.stages)


def test_a_schedule_of_ones_own_comes_from_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'ema_decay = 0.99\nseed = 4\n[[stages]]\nname = "a"\nsteps = 5\nlr = 1\n'
        '[[stages]]\nname = "b"\ncrop = [64, 64]\ngradient_checkpointing = true\n'
    )
    settings = read_recipe(str(path))
    assert settings.recipe == "mine" and settings.ema_decay == 0.99 and settings.seed == 4
    assert settings.stages[0].lr == 1.0 and settings.stages[1].crop == (64, 64)
    assert [stage.gradient_checkpointing for stage in settings.stages] == [False, True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps = ", "not TOML"),
        ("[[stages]]\nname = 'a'\nspeed = 3", "'speed'"),
        ("[[stages]]\nsteps = 3", "no name"),
        ("[[stages]]\nname = 'a'\nsteps = 'many'", "steps is 'many'"),
        ("colour = 1", "'colour'"),
        ("stages = 3", "list of tables"),
        ("compile = 1", "compile is 1, not bool"),
        ("size = 256\n[[stages]]\nname = 'a'", "two numbers"),
        ("[[stages]]\nname = 'a'\ncrop = [64, 'x']", "two numbers"),
    ],
)
def test_a_recipe_file_that_is_wrong_says_where(text, said, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        read_recipe(str(path))
    with pytest.raises(SettingsError, match="no recipe is called"):
        read_recipe("quickest")
    with pytest.raises(SettingsError, match="is not there"):
        read_recipe(str(tmp_path / "other.toml"))


def test_crops_are_counted_in_latents_and_at_most_the_clip():
    teacher = find_model("tiny").teacher
    assert crop_of(Stage("s", crop_latents=8), teacher, (256, 128)) == Crop(8, 8, 8)
    assert crop_of(Stage("s", crop_latents=20, crop_margin=2), teacher, (256, 128)) == Crop(20, 16, 8, margin=2)
    assert crop_of(Stage("s", crop=(64, 128)), teacher, (256, 128)).pixels == (64, 128)
    assert crop_of(Stage("s", crop_latents=64), teacher, (256, 128)) is None
    assert crop_of(Stage("s", crop_side=100), teacher, (256, 128)) == Crop(12, 12, 8)
    assert crop_of(Stage("s", crop_side=200), teacher, (256, 128)) == Crop(25, 16, 8)
    assert crop_of(Stage("s", crop_side=256), teacher, (256, 128)) is None
    assert crop_of(Stage("s"), teacher, (256, 128)) is None


def test_a_stage_that_wants_larger_clips_than_were_cached_is_refused(ltx_teacher, cache, small_student, tmp_path):
    settings = TINY.with_changes(stages=(*TINY.stages, Stage("large", size=(128, 128), perceptual="none")))
    with pytest.raises(SettingsError, match="wants clips of 128x128"):
        distill(find_model(ltx_teacher), tmp_path / "run", latents=cache, settings=settings, student_config=small_student)


def test_two_stages_of_one_name_and_an_average_that_never_moves_are_refused(ltx_teacher, videos, tmp_path):
    twice = TINY.with_changes(stages=(TINY.stages[0], TINY.stages[0]))
    for settings, said in ((twice, "two stages are called only"), (TINY.with_changes(ema_decay=1.0), "ema_decay")):
        with pytest.raises(SettingsError, match=said):
            distill(find_model(ltx_teacher), tmp_path / "run", data=videos, settings=settings)
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_the_embedded_teacher_runs_from_a_fitted_start_and_says_each_stage(
    ltx_teacher, videos, small_student, tmp_path
):
    """Shortened to four steps; the student it starts from is far better than noise."""
    settings = RECIPES["fast"].with_changes(steps=4, frames=9, size=(64, 64), sample_every=0, dtype="fp32", perceptual="ssim")
    distill(find_model(ltx_teacher), tmp_path / "fitted", data=videos, settings=settings, student_config=small_student)
    log = (tmp_path / "fitted" / "train.log").read_text()
    assert "stage reconstruct (1 of 2): steps 1 to 3" in log and "stage whole-clips (2 of 2): steps 4 to 4" in log
    plain = settings.with_changes(start="plain")
    distill(find_model(ltx_teacher), tmp_path / "plain", data=videos, settings=plain, student_config=small_student)
    first = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["l1"] for name in ("fitted", "plain")]
    assert first[0] < first[1]


def test_a_dry_run_times_steps_of_every_stage_and_writes_nothing(ltx_teacher, videos, cache, small_student, tmp_path):
    from turbovaed_cli.training.distill import estimate_distill

    spec, run = find_model(ltx_teacher), tmp_path / "run"
    settings = TINY.with_changes(
        stages=(Stage("one", steps=1, accumulation=2), Stage("many", steps=50, batch_size=2, accumulation=1))
    )
    for source in ({"data": videos}, {"latents": cache}):
        found = estimate_distill(spec, run, **source, settings=settings, student_config=small_student)
        assert [(stage.name, stage.steps, stage.clips_per_step) for stage in found.stages] == [("one", 1, 2), ("many", 50, 2)]
        seconds = [stage.seconds_per_step for stage in found.stages]
        assert found.seconds == pytest.approx(seconds[0] + 50 * seconds[1]) and all(stage.peak_mb > 10 for stage in found.stages)
        assert not run.exists() and (found.download_bytes, found.steps_done) == (0, 0)
    distill(spec, run, latents=cache, settings=settings.with_changes(steps=4, sample_every=0), student_config=small_student)
    checkpoint = sum(path.stat().st_size for path in (run / "checkpoints" / "step_0000004").glob("*.safetensors"))
    assert found.disk_bytes == pytest.approx((settings.keep_checkpoints + 1) * checkpoint, rel=0.3)
    before = sorted(path for path in run.rglob("*"))
    again = estimate_distill(spec, run, latents=cache, settings=settings.with_changes(steps=8), student_config=small_student)
    assert again.steps_done == 4 and sorted(path for path in run.rglob("*")) == before
    (left,) = again.stages  # the first one is finished
    assert (left.name, left.steps) == ("many", 4) and again.seconds == pytest.approx(4 * left.seconds_per_step)
    assert again.disk_bytes < found.disk_bytes
    done = estimate_distill(spec, run, latents=cache, settings=settings.with_changes(steps=4), student_config=small_student)
    assert (done.steps_done, done.stages, done.seconds, done.disk_bytes) == (4, [], 0, 0)


def test_a_dry_run_refuses_what_the_command_would(ltx_teacher, videos, cache, small_student, tmp_path):
    from turbovaed_cli.runs.rundir import RunDir
    from turbovaed_cli.training.distill import estimate_distill

    spec, run, settings = find_model(ltx_teacher), tmp_path / "run", TINY.with_changes(steps=2, sample_every=0, save_every=1)
    first = {"latents": cache, "settings": settings, "student_config": small_student, "command_line": "turbovaed distill --first"}
    distill(spec, run, **first)
    wider = small_student | {"decoder_block_out_channels": [32, 8, 8, 16]}
    for change, what in (
        (
            {"settings": settings.with_changes(lr=0.5, ema_decay=0.5)},
            "other settings: `ema_decay` 0.999 -> 0.5; `lr` 0.001 -> 0.5",
        ),
        ({"settings": settings.with_changes(steps=1)}, "is at step 2"),
        ({"student_config": wider}, "student's decoder_block_out_channels: 32,8,8,8 -> 32,8,8,16"),
        ({"latents": None, "data": videos}, "the contents of `data` or `latents` differ"),
    ):
        refused = []
        for command in (distill, estimate_distill):
            with pytest.raises(RunFolderError, match=what) as error:
                command(spec, run, **{**first, "command_line": "", **change})
            refused.append((error.value.what, error.value.hint))
        assert refused[0] == refused[1] and refused[0][1].endswith(
            f"resume: turbovaed distill --first; or start another with `run` {run}-2"
        )
    assert estimate_distill(spec, run, **first).steps_done == 2
    with pytest.raises(RunFolderError, match="was started with 1 clips in a forward pass over 1 processes; now 2 over 2"):
        estimate_distill(spec, run, **first, processes=2)
    with RunDir(run).lock(), pytest.raises(RunFolderError, match="is in use by process"):
        estimate_distill(spec, run, **first)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"holds other things \(thesis\.tex\)"):
        estimate_distill(spec, tmp_path / "other", **first)
    weights = run / "checkpoints" / "step_0000002" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptFileError, match=r"student\.safetensors is not what was written"):
        estimate_distill(spec, run, **first)


def test_a_dry_run_without_the_teachers_weights_says_what_it_would_download(videos, tmp_path):
    from turbovaed_cli.training.distill import estimate_distill

    found = estimate_distill(find_model("ltx"), tmp_path / "run", data=videos)
    assert found.download_bytes > 1e9 and found.stages == [] and found.seconds is None
    with pytest.raises(SettingsError, match="`lr`"):
        estimate_distill(find_model("ltx"), tmp_path / "run", data=videos, settings=TINY.with_changes(lr=-1.0))


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_clips_of_one_flat_colour_are_learnt_from_and_named(tmp_path, recipe):
    """Nothing divides by their variance, which is zero: not the fitted start, nor SSIM, features or the adaptive weight."""
    make_video(tmp_path / "flat" / "black.mp4", "color", "64x48", 12)
    notes = Notes()
    settings = read_recipe(recipe).with_changes(steps=3, frames=3, size=(48, 48), sample_every=0)
    result = distill(find_model("tiny"), tmp_path / "run", data=tmp_path / "flat", settings=settings, report=notes)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == result.step == 3 and all(row["loss"] is not None and row["grad_norm"] is not None for row in rows)
    log = (tmp_path / "run" / "train.log").read_text()
    assert ("; clips are smaller than the crop of 12 latents: whole clips" in log) == (recipe == "fast")
    assert [text for text in notes.warnings if "one flat colour" in text] == notes.warnings[: recipe == "fast"]
    student = load_student(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())


def test_a_flat_clip_among_others_changes_nothing_for_them(tmp_path, videos):
    make_video(tmp_path / "mixed" / "black.mp4", "color", "64x48", 12)
    shutil.copy(videos / "a.mp4", tmp_path / "mixed")
    notes = Notes()
    settings = read_recipe("quick").with_changes(steps=3, frames=3, size=(48, 48), sample_every=0)
    result = distill(find_model("tiny"), tmp_path / "run", data=tmp_path / "mixed", settings=settings, report=notes)
    assert result.step == 3 and not notes.warnings
    student = load_student(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())


# --- what is said of a teacher and its latents ---


class Told:
    """A reporter that keeps its warnings."""

    def __init__(self):
        self.warnings = []

    def note(self, text="", *, warning=False, **_):
        self.warnings += [text] * warning

    def track(self, items, *_, **__):
        return items


def test_a_student_larger_than_its_teachers_decoder_is_a_warning_that_mends_it(ltx_teacher, videos, small_student, tmp_path):
    """The number that it names designs a smaller one; a student that is smaller is none to warn of."""
    from turbovaed_cli.models.design import Budget, design_student
    from turbovaed_cli.models.network import num_params
    from turbovaed_cli.models.teacher import decoder_params

    spec = find_model(ltx_teacher)
    size = decoder_params(load_teacher(ltx_teacher))
    plain = {"decoder_is_dw_conv": [False] * 5}
    configs = {
        "large": spec.student.config | plain | {"decoder_block_out_channels": [64, 64, 128, 256]},
        "small": small_student | {"decoder_layers_per_block": [0] * 5, "decoder_block_out_channels": [16, 8, 8, 8]},
    }
    assert num_params(build_student(configs["large"])) > size > num_params(build_student(configs["small"]))
    settings = TINY.with_changes(steps=1, sample_every=0, feature_weight=0.0)
    warned = {}
    for name, config in configs.items():
        told = Told()
        distill(spec, tmp_path / name, data=videos / "a.mp4", settings=settings, student_config=config, report=told)
        warned[name] = [text for text in told.warnings if "its teacher's decoder" in text]
    assert warned["small"] == [] and len(warned["large"]) == 1 and f"{size:,}" in warned["large"][0]
    params = int(warned["large"][0].partition("`params` ")[2].split()[0])
    design = design_student(spec, Budget(params=params, frames=9, size=(64, 64)))
    assert design.chosen.params <= params < num_params(build_student(configs["large"]))


@pytest.mark.thorough
def test_the_number_for_a_smaller_student_works_for_every_row():
    from turbovaed_cli.models.design import Budget, design_student, suggested_params
    from turbovaed_cli.registry.rows import MODELS

    for spec in MODELS.values():
        size, frames = round(spec.teacher.decoder_params_m * 1e6), spec.teacher.frames.at_least(17)
        for teacher_params in (size, 10):
            params = suggested_params(spec, teacher_params)
            design = design_student(spec, Budget(params=params, frames=frames, size=(256, 256)))
            assert design.chosen.params <= params and (teacher_params == 10 or params < size)


def test_latents_of_another_teacher_name_the_one_that_made_them(cache, videos, tmp_path, monkeypatch):
    """Before anything is downloaded or loaded, as far as the cache alone tells."""
    from turbovaed_cli.training.distill import estimate_distill

    with pytest.raises(SettingsError, match=r"made by vae \(a 'AutoencoderKLLTXVideo' of 6 channels\), not by tiny") as error:
        distill(find_model("tiny"), tmp_path / "run", latents=cache, settings=TINY)
    assert error.value.hint == "name their teacher: `teacher` DIR, with the folder vae"
    cache_latents(find_model("tiny"), videos / "a.mp4", tmp_path / "tiny", CacheSettings(frames=9, size=(64, 64)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = []
    for call, more in ((distill, {"consent": lambda *given: asked.append(given)}), (estimate_distill, {})):
        with pytest.raises(SettingsError, match="made by tiny") as error:
            call(find_model("ltx"), tmp_path / "run", latents=tmp_path / "tiny", settings=TINY, **more)
        assert error.value.hint == "name their teacher: `teacher` tiny"
    assert asked == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("path", "reason", "alone"),
    [
        ("d/a.mp4", "d/a.mp4: damaged: x", "damaged: x"),
        ("d/a.mp4 (from frame 30)", "d/a.mp4: damaged: x", "damaged: x"),
        ("d/a.mp4", "3 frames, 17 needed", "3 frames, 17 needed"),
    ],
)
def test_a_reason_stands_without_the_path_that_is_named_before_it(path, reason, alone):
    assert Skipped(path, reason).reason_alone == alone


# --- which recipe, and what is known of it before the first step ---


def trainer_of(spec, data, settings, tmp_path, config=None):
    """Ready to learn, of a run that has not begun."""
    asked = Distillation(spec, tmp_path / "run", data, None, settings, config)
    return prepare(asked, alone(torch.device("cpu")), RunDir(tmp_path / "run"), quiet)[0]


def test_cached_clips_smaller_than_a_recipe_is_made_for_are_a_warning(ltx_teacher, videos, small_student, tmp_path):
    spec = find_model(ltx_teacher)
    cache_latents(spec, videos, tmp_path / "cache", CacheSettings(frames=9, size=(64, 64)))
    said = []
    for size in ((96, 96), DistillSettings.size):
        notes = Notes()
        asked = Distillation(spec, tmp_path / "run", None, tmp_path / "cache", TINY.with_changes(size=size), small_student)
        prepare(asked, alone(torch.device("cpu")), RunDir(tmp_path / "run"), notes)
        said.append(any("the cached clips are 64x64, and recipe own learns from 96x96" in text for text in notes.warnings))
    assert said == [True, False]


def test_the_recipe_is_that_of_the_teachers_row_and_a_run_keeps_its_own(tmp_path):
    recipes = {spec.name: spec.recipe for spec in MODELS.values()}
    images = dict.fromkeys(("sdxl", "flux1", "flux2", "sana"), "night-images")
    less_large = dict.fromkeys(("video-dc-ae", "hunyuan1.5"), "night-480")
    assert recipes == dict.fromkeys(MODELS, "night") | {"tiny": "fast"} | less_large | images
    assert all(spec.recipe in RECIPES for spec in MODELS.values())
    run = tmp_path / "run"
    assert _recipe_named("default", MODELS["ltx"], str(run)) == "night"
    for began, goes_on in (("quick", "quick"), ("fast", "fast"), ("mine", "night")):
        RunDir(run).snapshot({"settings": asdict(replace(TINY, recipe=began))}, {})
        assert _recipe_named("default", MODELS["ltx"], str(run)) == goes_on
        assert _recipe_named("fast", MODELS["ltx"], str(run)) == "fast"
    for began, goes_on in (("default", "fast"), ("fast", "quick")):  # names that these schedules had before `fit_batch`
        older = asdict(replace(TINY, recipe=began))
        del older["fit_batch"]
        RunDir(run).snapshot({"settings": older}, {})
        assert _recipe_named("default", MODELS["ltx"], str(run)) == goes_on
        assert _recipe_named(began, MODELS["ltx"], str(run)) == goes_on
        assert _recipe_named("night", MODELS["ltx"], str(run)) == "night"


def test_the_recipe_for_a_night_runs_in_all_its_stages(ltx_teacher, videos, small_student, tmp_path):
    """Shortened to a step of each; the perceptual loss looks at four frames of nine, others in every pass."""
    changes = {"steps": 3, "frames": 9, "size": (64, 64), "batch_size": 2, "accumulation": 1, "perceptual": "ssim"}
    settings = RECIPES["night"].with_changes(**changes, dtype="fp32", sample_every=0)
    trainer = trainer_of(find_model(ltx_teacher), videos, settings, tmp_path, small_student)
    looked_at = [trainer.batch_at((0, number)).looked_at for number in (0, 1, 0)]
    assert looked_at[0] == looked_at[2] != looked_at[1] and all(len(set(frames)) == 4 for frames in looked_at)
    result = distill(find_model(ltx_teacher), tmp_path / "run", data=videos, settings=settings, student_config=small_student)
    assert result.step == 3 and {"adversarial", "perceptual"} <= result.losses.keys()


def test_a_perceptual_loss_of_some_frames_does_not_see_the_others():
    source = torch.rand(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    stage, ssim = Stage("s"), perceptual_loss("ssim", torch.device("cpu"))
    found = []
    for frame in (0, 2):
        decoded = source.clone()
        decoded[:, :, frame] = 0.3
        losses = reconstruction_losses(decoded, source, stage, {}, ssim, looked_at=(1, 2))
        found.append(losses.parts["perceptual"].item())
        assert losses.parts["l1"] > 0
    assert found[0] == pytest.approx(0, abs=1e-6) and found[1] > 0.1


def test_a_pass_that_does_not_fit_is_split_and_a_resume_keeps_that(ltx_teacher, videos, small_student, tmp_path, monkeypatch):
    """Each step sees the same clips; the weights that the sizes are tried on are copies."""
    stages = (
        Stage("a", steps=1, batch_size=6, accumulation=2, perceptual="none"),
        Stage("b", steps=1, batch_size=4, perceptual="none"),
    )
    settings = replace(TINY, stages=stages, fit_batch=True)
    trainer = trainer_of(find_model(ltx_teacher), videos, settings, tmp_path, small_student)
    before, learn, tried = trainer.state.digest(), Trainer.learn, []

    def learn_if_it_fits(self, batches):
        which, batch = next(batches)
        tried.append((which[0], len(batch.video)))
        if len(batch.video) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learn(self, iter([(which, batch)]))

    monkeypatch.setattr(Trainer, "learn", learn_if_it_fits)
    fitted = fitted_stages(trainer)
    assert [(stage.batch_size, stage.accumulation) for stage in fitted] == [(3, 4), (2, 16)]
    assert tried == [(0, 6), (0, 3), (0, 3), (1, 4), (1, 2), (1, 2)]
    assert (
        trainer.state.digest() == before
        and trainer.settings.stages
        == trainer_of(find_model(ltx_teacher), videos, settings, tmp_path, small_student).settings.stages
    )
    monkeypatch.setattr(Trainer, "learn", learn)
    RunDir(tmp_path / "run").snapshot({"settings": asdict(replace(settings, stages=fitted))}, {})
    again = trainer_of(find_model(ltx_teacher), videos, settings, tmp_path, small_student)
    assert again.settings.stages == tuple(
        replace(stage, perceptual=other.perceptual) for stage, other in zip(fitted, again.settings.stages, strict=True)
    )


def test_a_fitted_run_goes_on_only_where_its_clips_can_be_shared(ltx_teacher, videos, small_student, tmp_path):
    """And a dry run for more processes takes the passes that the run of them began with."""
    stage = Stage("a", steps=2, batch_size=4, accumulation=1, perceptual="none", feature_weight=0.0)
    settings = replace(TINY, stages=(stage,), fit_batch=True)
    recorded = replace(settings, stages=(replace(stage, batch_size=2, accumulation=4),))  # two processes: 8 clips a step
    folder = RunDir(tmp_path / "run")
    folder.snapshot({"settings": asdict(recorded), "ranks": 2}, {})
    one = settle(settings, folder, torch.device("cpu"), 2, quiet).stages[0]
    assert (one.batch_size, one.accumulation) == (1, 4)
    two = settle(replace(settings, stages=(replace(stage, batch_size=8),)), folder, torch.device("cpu"), 1, quiet)
    assert (two.stages[0].batch_size, two.stages[0].accumulation) == (2, 4)
    check_clips_per_pass(folder, two, 2)
    with pytest.raises(RunFolderError, match="which 4 processes cannot share") as error:
        check_clips_per_pass(folder, two, 4)
    assert "divides 2" in error.value.hint
    other = settle(replace(settings, stages=(replace(stage, batch_size=6),)), folder, torch.device("cpu"), 1, quiet)
    assert (other.stages[0].batch_size, other.stages[0].accumulation) == (6, 1)  # which the snapshot names


def test_what_a_long_run_sees_and_takes_is_told_before_it_begins(ltx_teacher, videos, small_student, tmp_path):
    settings = TINY.with_changes(steps=LONG, batch_size=3)
    trainer = trainer_of(find_model(ltx_teacher), videos, settings, tmp_path, small_student)
    before = trainer.state.digest()
    text = forecast(trainer)
    assert re.match(rf"recipe own: {LONG:,} steps see {LONG * 6:,} clips in about [\d.]+ (minute|hour)s? on this cpu", text)
    assert trainer.state.digest() == before
    trainer.settings = TINY
    assert forecast(trainer) == "recipe own: 4 steps see 8 clips"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "1 minute"), (1800, "30 minutes"), (6 * 3600, "6.0 hours"), (30 * 3600, "30 hours"), (1e7, "116 days")],
)
def test_durations_in_words(seconds, text):
    assert duration_in_words(seconds) == text
