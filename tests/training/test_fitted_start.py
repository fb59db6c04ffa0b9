"""A fitted start: a student begins where a linear decoder ends, whatever its architecture."""

import pytest
import torch
from golden import load_golden
from members import NAMED

from turbovaed_cli.models.layers import TimeReplicatedConv3d
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.training.fitted_start import _Fit, _mixture, _principal, _solve, are_flat, fit_start, unshuffle


def smooth_video(frames: int, side: int, seed: int) -> torch.Tensor:
    """Moving gradients in colour, (1, 3, T, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    speed, phase = torch.rand(3, 3, generator=generator) * 3, torch.rand(3, generator=generator) * 6
    t, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (frames, side, side)), indexing="ij")
    return torch.stack([torch.sin(a * t + b * y + c * x + p) for (a, b, c), p in zip(speed, phase, strict=True)])[None]


def linear_latents(video: torch.Tensor, channels: int, time: int, space: int, drops_first: bool) -> torch.Tensor:
    """What a linear encoder would say: random mixtures of the pixels of every block."""
    video = torch.cat([video[:, :, :1]] * ((time - 1) if drops_first else 0) + [video], dim=2)
    blocks = unshuffle(video, time, space)
    mix = torch.randn(channels, blocks.shape[1], generator=torch.Generator().manual_seed(7)) / blocks.shape[1] ** 0.5
    return torch.einsum("bcthw,kc->bkthw", blocks, mix)


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "tiny, ReLU",
        "ltx",
        "hunyuan",
        "video-dc-ae",
        *(pytest.param(name, marks=pytest.mark.thorough) for name in ("cogvideox", *NAMED)),
    ],
)
def test_a_fitted_student_decodes_linear_latents_before_any_training(name):
    """In every architecture: what a plain start shows is noise."""
    if name == "tiny":
        config = dict(find_model("tiny").student.config)
    elif name == "tiny, ReLU":  # cheap convolutions, and an activation that is linear above zero alone
        config = find_model("tiny").student.config | {
            "decoder_conv_types": ("2+1d",) * 3, "decoder_tail": "patches", "decoder_activation": "relu",
        }  # fmt: skip
    elif name in NAMED:  # with latents that hold enough
        config = NAMED[name] | {"latent_channels": 32}
        channels = config["decoder_block_out_channels"]
        config |= {"decoder_block_out_channels": (max(channels[0], 32), *(32 for _ in channels[1:]))}
    else:
        config = load_golden(name).meta["student_config"]
        channels = list(config["decoder_block_out_channels"])
        config |= {"decoder_block_out_channels": [max(channels[0], 64 if config["patch_size"] == 4 else 16), *channels[1:]]}
    torch.manual_seed(0)
    student = build_student(config)
    time, space = int(student.temporal_compression_ratio), int(student.spatial_compression_ratio)
    drops_first = not student.config.is_video_dc_ae
    frames = time * 2 + drops_first
    videos = [smooth_video(frames, space * 4, seed) for seed in range(4)]
    clips = [(linear_latents(v, student.config.latent_channels, time, space, drops_first), v) for v in videos]

    def error() -> float:
        with torch.no_grad():
            return sum((student(latents) - video).square().mean().item() for latents, video in clips) / len(clips)

    before = error()
    fit_start(student, clips)
    assert error() < 0.05 < before


@pytest.mark.parametrize("name", ["tiny", "ltx", "video-dc-ae"])
@pytest.mark.parametrize("colours", [(0.0,), (-1.0, 0.3), (0.0, "smooth")])
def test_a_start_fitted_to_clips_without_variance_is_finite(name, colours):
    """All of one colour, each of its own colour, and flat ones among others."""
    config = dict(find_model("tiny").student.config) if name == "tiny" else load_golden(name).meta["student_config"]
    torch.manual_seed(0)
    student = build_student(config)
    time, space = int(student.temporal_compression_ratio), int(student.spatial_compression_ratio)
    drops_first = not student.config.is_video_dc_ae
    shape = (1, 3, time * 2 + drops_first, space * 2, space * 2)
    videos = [smooth_video(shape[2], shape[3], 1) if c == "smooth" else torch.full(shape, c) for c in colours * 2]
    clips = [(linear_latents(v, student.config.latent_channels, time, space, drops_first), v) for v in videos]
    fit_start(student, clips)
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
    with torch.no_grad():
        assert all(torch.isfinite(student(latents)).all() for latents, _ in clips)
    assert are_flat(videos) == (colours == (0.0,))


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("channels", [8, 100, 300])
def test_a_wide_convolution_is_fitted_to_frames_at_their_own_time(channels, causal):
    """One too wide for a fit of all three frames looks at an output's own frame, which a causal one has under its last tap."""
    layer = TimeReplicatedConv3d(channels, 4, causal=causal)
    x = torch.randn(1, channels, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    _solve(layer.conv, [x], [x[:, :4]], causal=causal)
    assert (layer(x) - x[:, :4]).abs().mean() < 0.05


def test_clips_with_less_than_a_level_of_noise_are_flat():
    noise = torch.randn(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    assert are_flat([0.2 + noise / 255]) and not are_flat([0.2 + 4 * noise / 255])
    assert not are_flat([torch.full((1, 3, 5, 16, 16), 0.2), torch.full((1, 3, 5, 16, 16), 0.3)])


def test_principal_components_of_large_blocks_are_those_of_small_ones():
    """Blocks of more pixels than a covariance is made for go another way, to the same span, and leave the random state alone."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 12, generator=generator) @ torch.randn(12, 2100, generator=generator)
    rows -= rows.mean(dim=0)
    before = torch.get_rng_state()
    found = _principal(rows, 12)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(_principal(rows, 12), found)
    _, _, exact = torch.linalg.svd(rows, full_matrices=False)
    assert torch.allclose(found @ found.T @ exact[:12].T, exact[:12].T, atol=1e-4)


def test_fewer_places_than_channels_leave_the_channels_whole():
    """As of a small clip with 32x in space, whose blocks of pixels are too large for a covariance."""
    student = build_student(find_model("tiny").student.config)
    targets = [torch.randn(1, 2100, 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    made = _Fit(student, [])._as_channels(targets, 64)
    assert [target.shape for target in made] == [(1, 64, 1, 2, 2)] * 2


@pytest.mark.parametrize("channels", [16, 10])
def test_brightness_is_in_every_channel_but_not_in_their_mean(channels):
    """A layer norm removes the mean over channels, and what is left must be small enough for the activation."""
    generator = torch.Generator().manual_seed(0)
    brightness, noise = torch.randn(1, 1, 4, 8, 8, generator=generator), torch.randn(1, 12, 4, 8, 8, generator=generator)
    made = _Fit(build_student(find_model("tiny").student.config), [])._as_channels([brightness + 0.1 * noise], channels)[0]
    signals = made[0, : min(12, channels - channels // 5)].flatten(1)
    assert signals.mean(dim=0).square().mean() < 0.005 * signals.square().mean()
    assert (signals.square().mean(dim=1) < 2.5 * signals.square().mean()).all()
    assert made.square().mean().sqrt() == pytest.approx(1.8, rel=0.02)  # with the constants


@pytest.mark.parametrize("num", [1, 2, 7, 48])
def test_mixed_components_keep_all_of_their_energy(num):
    mixture = _mixture(num)
    assert torch.allclose(mixture @ mixture.T, torch.eye(num, dtype=torch.float64), atol=1e-12)


def test_unshuffling_undoes_the_students_shuffle():
    from turbovaed_cli.models.layers import pixel_shuffle_3d

    x = torch.randn(2, 3 * 4 * 2, 3, 4, 5)
    assert torch.equal(unshuffle(pixel_shuffle_3d(x, time=2), 2, 2), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_student_on_a_gpu_is_fitted_there():
    student = build_student(find_model("tiny").student.config).cuda()
    videos = [smooth_video(5, 32, seed).cuda() for seed in range(2)]
    fit_start(student, [(linear_latents(v.cpu(), 32, 2, 8, True).cuda(), v) for v in videos])
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
