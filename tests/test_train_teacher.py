"""The tools that train small teachers: what they compute is what the classes compute, and their start is close to linear."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import teacher_clips
import teacher_ltx
import teacher_wan
import torch
import train_teacher
from least_squares import Regression, principal
from teacher_clips import batch_at, drawn

from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.teachers.wan import Wan22
from turbovaed_cli.video import to_model

ROOT = Path(__file__).resolve().parents[1]
SECOND = ROOT / "benchmarks" / "teachers" / "wan-48"
VAL = ROOT.parent / "shared" / "videos" / "val"


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Shapes that move over gradients, (12, 256, 256, 3) each."""
    return [drawn(random.Random(seed), 12, 256) for seed in range(2)]


@pytest.mark.parametrize("frames", [1, 9])
def test_the_second_teacher_takes_whole_clips_at_once(frames):
    """As its class does a few frames at a time, and the tool decodes with it afterwards."""
    torch.manual_seed(0)
    vae, video = teacher_wan.build(), torch.rand(1, 3, frames, 16, 24) * 2 - 1
    with torch.no_grad():
        mean, log_variance = teacher_wan.encode(vae, video)
        decoded = teacher_wan.decode(vae, mean)
    pieces = teacher_wan.AutoencoderKLWan(**teacher_wan.CONFIG)
    pieces.load_state_dict(vae.state_dict())
    with torch.no_grad():
        by_pieces, std = Wan22().posterior(pieces, video)
        assert mean.shape == (1, 16, 1 + (frames - 1) // 4, 2, 3)
        torch.testing.assert_close(mean, by_pieces, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close((log_variance / 2).exp(), std, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(decoded.clamp(-1, 1), Wan22().decode(pieces, mean), atol=1e-5, rtol=1e-4)


def _psnr(kind, vae, video):
    with torch.no_grad():
        decoded = kind.decode(vae, kind.encode(vae, video)[0]).clamp(-1, 1)
    return -10 * math.log10((decoded - video).square().mean().item() / 4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [(teacher_ltx, 20), (teacher_wan, 15)], ids=["ltx", "wan"])
def test_the_start_is_nearly_linear(kind, least, clips, monkeypatch):
    """It keeps far more of what it saw than the mean colour of each block, before any training."""
    monkeypatch.setattr(teacher_wan, "NUM_VIDEOS", 8)
    torch.manual_seed(0)
    vae = kind.build()
    video = batch_at(clips, clips, 0, -1, size=1, crop=96, frames=9)
    before = _psnr(kind, vae, video)
    kind.start_linear(vae, clips, clips)
    assert _psnr(kind, vae, video) > max(least, before + 6)


def test_batches_are_repeatable_and_differ(clips):
    first, again, other = (batch_at(clips, clips, 0, step, size=3, crop=64, frames=9) for step in (5, 5, 6))
    assert first.shape == (3, 3, 9, 64, 64) and first.min() >= -1 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_some_drawn_clips_are_plain_colours_and_others_move_below_a_pixel():
    made = [drawn(random.Random(seed), 3, 32) for seed in range(60)]
    plain = [clip for clip in made if (clip == clip[:1, :1, :1]).all()]
    assert 3 < len(plain) < 30
    moving = [clip for clip in made if not np.array_equal(clip[0], clip[1])]
    changes = [np.abs(np.diff(clip.astype(int), axis=0)) for clip in moving]
    assert len(moving) > 20 and any(0 < change[change > 0].min() < 60 for change in changes)


def test_every_photograph_moves(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(teacher_clips, "STILLS", ())
    Image.effect_noise((300, 280), 80).convert("RGB").save(tmp_path / "noise.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "too-small.png")
    pans = list(teacher_clips.moving_stills(0, tmp_path, 5))
    assert len(pans) == 2 and pans[0].shape == (5, 256, 256, 3)
    assert not np.array_equal(pans[0][0], pans[0][4]) and not np.array_equal(pans[0], pans[1])


def test_least_squares_in_portions_is_numpys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)).astype(np.float32), rng.normal(size=(200, 2)).astype(np.float32)
    fit = Regression()
    for rows in np.split(np.arange(200), 4):
        fit.add(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
    weight, bias = fit.solve(0)
    expected = np.linalg.lstsq(np.c_[x, np.ones(200)], y, rcond=None)[0]
    np.testing.assert_allclose(np.c_[weight.numpy(), bias.numpy()], expected.T, atol=1e-4)
    vectors, values = principal(torch.from_numpy(x))
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(5), atol=1e-5, rtol=0)


def test_the_second_teacher_is_small_and_compresses_as_real_ones_do(clips):
    teacher = load_teacher(SECOND)
    spec = teacher.spec
    assert 3 * spec.time_ratio * spec.space_ratio**2 / spec.latent_channels >= 48
    assert sum(path.stat().st_size for path in SECOND.iterdir()) < 12e6
    video = to_model(clips[0][:9, :128, :128])[None]
    with torch.no_grad():
        latents = teacher.encode(video).mean
        decoded = teacher.decode(latents)
    assert latents.shape == (1, 16, 3, 16, 16)
    assert -10 * math.log10((decoded - video).square().mean().item() / 4) > 20
    config = teacher.vae.config
    normal = (latents[0].flatten(1).std(dim=1) / torch.tensor(config.latents_std)).median()
    assert 0.3 < normal < 3, "its config has the statistics of its latents"


def test_the_card_of_the_second_teacher_has_the_figures_of_its_curve():
    rows = [json.loads(row) for row in (SECOND / "curve.jsonl").read_text().splitlines()]
    card, measured = (SECOND / "README.md").read_text(), rows[-1]["val_fp16"]
    assert rows[0]["step"] == 0 and rows[0]["val"]["psnr"] < 27 <= measured["psnr"]
    assert re.search(r"\*\*([\d.]+) dB\*\* PSNR, ([\d.]+) SSIM", card).groups() == (
        f"{measured['psnr']:.2f}",
        f"{measured['ssim']:.3f}",
    )
    assert f"Then {rows[-1]['step']} steps in {rows[-1]['minutes']:.0f} minutes" in card


@pytest.mark.thorough
@pytest.mark.skipif(not VAL.is_dir(), reason="the five clips are not here")
def test_the_second_teacher_reaches_its_figures():
    measured = train_teacher.evaluate(teacher_wan, load_teacher(SECOND).vae.state_dict(), VAL)
    rows = (SECOND / "curve.jsonl").read_text().splitlines()
    assert measured["psnr"] == pytest.approx(json.loads(rows[-1])["val_fp16"]["psnr"], abs=0.02)
