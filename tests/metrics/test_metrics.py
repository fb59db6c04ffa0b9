"""Every metric equals an independent implementation of its definition, and a wrong contrast is seen."""

import hashlib
import json
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from turbovaed_cli.errors import CorruptFileError, MissingWeightsError, ShapeError, WeightFileError
from turbovaed_cli.evaluation import paper
from turbovaed_cli.evaluation.intervals import ratio_interval, t_quantile
from turbovaed_cli.metrics import (
    MAX_PSNR_DB,
    METRICS,
    Lpips,
    flicker,
    fvd,
    load_lpips,
    lpips,
    lpips_video,
    pixels,
    psnr,
    ssim,
    ssim_value,
    vmaf,
)
from turbovaed_cli.metrics.pixels import SSIM_WINDOW
from turbovaed_cli.registry.backbones import TRUNKS
from turbovaed_cli.video import ffmpeg, to_uint8


def clips(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 3, 6, 8, generator=generator)
    source = torch.nn.functional.interpolate(coarse, size=(3, 40, 56), mode="trilinear")[0] * 2 - 1
    return (source + 0.1 * torch.randn(source.shape, generator=generator)).clamp(-1, 1), source


def test_psnr_equals_scikit_image():
    video, source = clips()
    assert psnr(video, source) == pytest.approx(peak_signal_noise_ratio(source.numpy(), video.numpy(), data_range=2), abs=1e-4)


def test_ssim_equals_scikit_image():
    video, source = clips()
    wanted = np.mean(
        [
            structural_similarity(
                source[:, i].numpy().astype(float), video[:, i].numpy().astype(float),
                data_range=2, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            )
            for i in range(video.shape[1])
        ]
    )  # fmt: skip
    # scikit-image keeps range 2 and we map to [0, 1]: the same after K1 and K2 scale with it, up to the mean's offset.
    unit = np.mean(
        [
            structural_similarity(
                (source[:, i].numpy().astype(float) + 1) / 2, (video[:, i].numpy().astype(float) + 1) / 2,
                data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            )
            for i in range(video.shape[1])
        ]
    )  # fmt: skip
    assert ssim(video, source) == pytest.approx(unit, abs=1e-9)
    assert wanted != pytest.approx(unit, abs=1e-4)  # the range does matter, so the docstring says which


def test_identical_clips_score_the_maximum():
    _, source = clips()
    assert psnr(source, source) == MAX_PSNR_DB
    assert ssim(source, source) == pytest.approx(1)


def test_nan_is_not_a_perfect_score():
    _, source = clips()
    assert math.isnan(psnr(source * math.nan, source))


def test_half_the_contrast_is_a_large_error():
    _, source = clips()
    assert psnr(source / 2, source) < 20
    assert ssim(source / 2, source) < 0.95


def test_ssim_of_a_clip_is_that_of_its_batch():
    """The clip goes frame by frame for speed, the training loss goes at once."""
    video, source = clips()
    assert ssim(video, source) == pytest.approx(float(ssim_value(video[None].double(), source[None].double())), abs=1e-12)


def test_frame_by_frame_the_numbers_are_those_of_the_whole_clip():
    """Within the rounding of fp64."""
    video, source = clips()
    error = (video.double() + 1) / 2 - (source.double() + 1) / 2
    assert psnr(video, source) == pytest.approx(-10 * math.log10(error.square().mean()), abs=1e-9, rel=0)
    assert flicker(video, source) == pytest.approx(255 * error.diff(dim=1).square().mean().sqrt().item(), abs=1e-9, rel=0)
    assert psnr(source, source) == MAX_PSNR_DB and psnr(source / 2, source) < 20


def test_psnr_and_ssim_stand_with_ffmpegs_filters():
    """PSNR is the same number. ffmpeg's SSIM has blocks of 8x8 instead of a Gaussian, so it is near and in the same order."""
    ours, theirs = [], []
    for noise in (0.02, 0.05, 0.1, 0.2):
        _, source = eight_bit_clips()
        generator = torch.Generator().manual_seed(2)
        video = rounded((source + noise * torch.randn(source.shape, generator=generator)).clamp(-1, 1))
        frames = to_uint8(video), to_uint8(source)
        assert vmaf.compared("psnr", r"average:([\d.]+)", *frames, "format=gbrp") == pytest.approx(psnr(video, source), abs=1e-5)
        ours.append(ssim(video, source))
        theirs.append(vmaf.compared("ssim", r"All:([\d.]+)", *frames, "format=gbrp"))
    assert ours == sorted(ours, reverse=True) and theirs == sorted(theirs, reverse=True)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99


def eight_bit_clips(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    video, source = clips(seed)
    return rounded(video), rounded(source)


def rounded(clip: torch.Tensor) -> torch.Tensor:
    """What remains of a clip in 8 bits."""
    return torch.from_numpy(to_uint8(clip)).permute(3, 0, 1, 2).float() / 127.5 - 1


def test_flicker_equals_its_formula():
    video, source = (clip.numpy().astype(float) for clip in eight_bit_clips())
    levels = [np.diff((clip + 1) / 2 * 255, axis=1) for clip in (video, source)]
    wanted = math.sqrt(float(np.mean((levels[0] - levels[1]) ** 2)))
    assert flicker(*(torch.from_numpy(clip).float() for clip in (video, source))) == pytest.approx(wanted, rel=1e-5)


def test_flicker_sees_change_and_nothing_else():
    """An error that stands still is none; noise drawn anew in each frame counts root 2 times its own size; one frame has no change."""
    _, source = clips()
    source = source * 0.5
    assert flicker(source + 0.3, source) == pytest.approx(0, abs=1e-4)
    noise = 0.1 * torch.randn(3, 30, 40, 56, generator=torch.Generator().manual_seed(0))
    still = source[:, :1].expand(-1, 30, -1, -1)
    assert flicker(still + noise, still) == pytest.approx(math.sqrt(2) * 0.1 * 127.5, rel=0.02)
    assert flicker(torch.ones(3, 2, 8, 8) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1), -torch.ones(3, 2, 8, 8)) == 255
    with pytest.raises(ShapeError, match="two frames"):
        flicker(source[:, :1], source[:, :1])


@pytest.mark.skipif(not ffmpeg.has_filter("libvmaf"), reason="this ffmpeg has no libvmaf")
def test_vmaf_equals_libvmaf_on_luma_made_by_hand(tmp_path):
    """The independent way: BT.709 luma computed here, written raw, compared by ffmpeg from two files, read from its JSON log."""
    generator = torch.Generator().manual_seed(3)
    source = torch.nn.functional.interpolate(
        torch.rand(1, 3, 4, 18, 24, generator=generator), size=(6, 144, 192), mode="trilinear"
    )
    source = rounded(source[0] * 2 - 1)
    video = rounded((source + 0.15 * torch.randn(source.shape, generator=generator)).clamp(-1, 1))
    for name, clip in (("video", video), ("source", source)):
        rgb = to_uint8(clip).astype(float)
        luma = 16 + (219 / 255) * (rgb @ np.array([0.2126, 0.7152, 0.0722]))
        (tmp_path / f"{name}.y").write_bytes(np.round(luma).astype(np.uint8).tobytes())
    raw = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", "192x144", "-r", "25", "-i"]
    command = [ffmpeg.executable(), "-v", "error", *raw, "video.y", *raw, "source.y"]
    log = "libvmaf=log_fmt=json:log_path=vmaf.json"
    subprocess.run(
        [*command, "-lavfi", f"[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];[a][b]{log}", "-f", "null", "-"],
        check=True,
        cwd=tmp_path,
    )
    wanted = json.loads((tmp_path / "vmaf.json").read_text())["pooled_metrics"]["vmaf"]["mean"]
    assert 0 < wanted < 95
    assert vmaf.vmaf(video, source) == pytest.approx(wanted, abs=0.3)  # swscale's luma differs by a level here and there
    assert vmaf.vmaf(source, source) > 95


def test_the_window_as_convolutions_is_the_window_as_sums():
    """Which is what an accelerator computes; values and gradients, within the rounding of fp64."""
    torch.manual_seed(0)
    image = torch.rand(3, 1, 24, 31, dtype=torch.float64, requires_grad=True)
    weights = pixels._window()
    found = pixels._Blur.apply(image, torch.tensor(weights, dtype=image.dtype))
    wanted = pixels._blurred_by_sums(image, weights)
    assert found.shape == wanted.shape == (3, 1, 14, 21)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-14)
    pull = torch.rand_like(wanted)
    gradients = [torch.autograd.grad((one * pull).sum(), image)[0] for one in (found, wanted)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-14)


def test_ssim_has_a_gradient_that_leads_to_the_source():
    video, source = clips()
    video = video[None].clone().requires_grad_()
    before = ssim_value(video, source[None])
    before.backward()
    after = ssim_value(video.detach() + 20 * video.grad, source[None])
    assert after > before


def test_ssim_below_its_window_is_refused():
    with pytest.raises(ShapeError, match="11x11"):
        ssim_value(torch.zeros(1, 3, 1, 8, 16), torch.zeros(1, 3, 1, 8, 16))


def test_least_sides_are_the_least_that_work():
    """At each metric's least side there is a score; one pixel below, the network or the filter has nothing left to look at."""
    generator = torch.Generator().manual_seed(2)
    video, source = (torch.rand(3, 2, 40, 40, generator=generator) * 2 - 1 for _ in range(2))

    def cut(side):
        return video[..., :side, :], source[..., :side, :]

    assert -1 <= ssim(*cut(SSIM_WINDOW)) <= 1
    assert -1 <= paper.ssim(*cut(paper.MIN_SIDE)) <= 1
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        paper.ssim(*cut(paper.MIN_SIDE - 1))
    for name, trunk in TRUNKS.items():
        channels = [out for index, _, out, *_ in trunk.convolutions if index in trunk.taps]
        linear = {f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in enumerate(channels)}
        network = Lpips(trunk, random_trunk(name), linear)
        assert lpips_video(network, *cut(trunk.min_side)) > 0
        with pytest.raises(ShapeError, match=f"{trunk.min_side}x{trunk.min_side} pixels at least"):
            lpips_video(network, *cut(trunk.min_side - 1))
        below = Lpips(replace(trunk, min_side=1), random_trunk(name), linear)
        with pytest.raises(RuntimeError, match="too small"):
            lpips_video(below, *cut(trunk.min_side - 1))
    if ffmpeg.has_filter("libvmaf"):
        assert 0 <= vmaf.vmaf(*cut(vmaf.MIN_SIDE)) <= 100


def random_trunk(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {}
    for index, in_channels, out_channels, kernel, _, _ in TRUNKS[name].convolutions:
        scale = (2 / (in_channels * kernel**2)) ** 0.5
        state[f"features.{index}.weight"] = scale * torch.randn(out_channels, in_channels, kernel, kernel, generator=generator)
        state[f"features.{index}.bias"] = 0.1 * torch.randn(out_channels, generator=generator)
    return state


# The layers of the two classifiers as torchvision lists them: c a convolution, r a ReLU (R: compared), m a max pool.
LISTED = {"vgg": "crcRmcrcRmcrcrcRmcrcrcRmcrcrcR", "alex": "cRmcRmcRcRcR"}


@pytest.mark.parametrize("name", ["vgg", "alex"])
def test_lpips_equals_its_definition_layer_by_layer(name, tmp_path, monkeypatch):
    state = random_trunk(name)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / TRUNKS[name].file_name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    load_lpips.cache_clear()
    network = load_lpips(name)
    load_lpips.cache_clear()
    video, source = (torch.nn.functional.interpolate(x.movedim(1, 0), 64).movedim(1, 0) for x in clips())

    def layers(x):
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
        for index, kind in enumerate(LISTED[name]):
            if kind == "c":
                stride, padding = ((4, 2) if index == 0 else (1, 2) if index == 3 else (1, 1)) if name == "alex" else (1, 1)
                x = torch.nn.functional.conv2d(
                    x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], stride, padding
                )
            elif kind == "m":
                x = torch.nn.functional.max_pool2d(x, 3 if name == "alex" else 2, 2)
            else:
                x = x.clamp(min=0)
                if kind == "R":
                    yield (x / x.norm(dim=0, keepdim=True).clamp(min=1e-10)).numpy()

    total = 0.0
    for i in range(video.shape[1]):
        for number, (a, b) in enumerate(zip(layers(video[:, i]), layers(source[:, i]), strict=True)):
            weights = getattr(network, f"linear_{number}").numpy().reshape(-1)
            total += float(np.einsum("chw,c->hw", (a - b) ** 2, weights).mean())
    assert lpips_video(network, video, source) == pytest.approx(total / video.shape[1], rel=1e-4)
    assert lpips_video(network, source, source) == 0
    assert math.isfinite(total) and total > 0


def published_layout(name: str, state: dict[str, torch.Tensor]) -> torch.nn.Sequential:
    """torchvision's `features` of the two classifiers, as its documentation prints them, with these weights."""
    layers: list[torch.nn.Module] = []
    shapes = iter([(i, o, k, s, p) for _, i, o, k, s, p in TRUNKS[name].convolutions])
    for kind in LISTED[name]:
        if kind == "c":
            layers.append(torch.nn.Conv2d(*next(shapes)))
        elif kind == "m":
            layers.append(torch.nn.MaxPool2d(3 if name == "alex" else 2, 2))
        else:
            layers.append(torch.nn.ReLU())
    network = torch.nn.Sequential(*layers)
    network.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, strict=True)
    return network


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("name", ["vgg", "alex"])
def test_lpips_equals_torchmetrics(name, spatial, tmp_path, monkeypatch):
    """Its own network and pooling, with the same random backbone in both (torchvision is not installed) and its learned weights."""
    from torchmetrics.functional.image import lpips as theirs

    state = random_trunk(name)
    torch.save(state, tmp_path / "trunk.pth")
    network = lpips.read_lpips(name, lpips.LpipsFiles(tmp_path / "trunk.pth", lpips._shipped_linear(name)))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_args, **_more: published_layout(name, state))
    reference = theirs._LPIPS(pretrained=True, net=name, spatial=spatial)
    video, source = (torch.nn.functional.interpolate(x.movedim(1, 0), 64) for x in clips())  # (T, 3, 64, 64)
    with torch.no_grad():
        wanted = reference(video, source).mean(dim=(1, 2, 3))
    found = network(video, source, spatial=spatial)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    assert lpips_video(network, video.movedim(0, 1), source.movedim(0, 1), spatial=spatial) == pytest.approx(
        float(wanted.mean()), rel=1e-4
    )


def test_weight_files_of_lpips_are_known_by_what_is_in_them(tmp_path, monkeypatch):
    """In any order and under any name; what is not given comes from the cache, and what is neither is refused."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    for name in TRUNKS:
        torch.save(random_trunk(name), tmp_path / f"{name}-trunk")
        linear = torch.load(lpips._shipped_linear(name), map_location="cpu", weights_only=True)
        torch.save({key: 2 * value for key, value in linear.items()}, tmp_path / f"{name}-linear")
        assert lpips.identify(tmp_path / f"{name}-trunk") == ("trunk", name)
        assert lpips.identify(tmp_path / f"{name}-linear") == ("linear", name)
    given = [tmp_path / name for name in ("vgg-linear", "alex-trunk", "vgg-trunk")]
    assert lpips.lpips_files("vgg", given) == lpips.LpipsFiles(tmp_path / "vgg-trunk", tmp_path / "vgg-linear")
    assert lpips.lpips_files("alex", given).linear == lpips._shipped_linear("alex")
    with pytest.raises(MissingWeightsError, match="vgg16"):
        lpips.lpips_files("vgg", given[:2])
    video, source = (torch.nn.functional.interpolate(x.movedim(1, 0), 64) for x in clips())
    doubled = lpips.read_lpips("vgg", lpips.lpips_files("vgg", given))(video, source)
    plain = lpips.read_lpips("vgg", lpips.lpips_files("vgg", given[1:]))(video, source)
    assert doubled.tolist() == pytest.approx((2 * plain).tolist(), rel=1e-5)

    torch.save({"lin0.weight": torch.zeros(1)}, tmp_path / "other")
    (tmp_path / "text").write_text("no")
    for wrong in ("other", "text", "nowhere"):
        with pytest.raises(WeightFileError, match=wrong):
            lpips.lpips_files("vgg", [tmp_path / wrong])
    short = random_trunk("vgg")
    del short["features.28.bias"]
    torch.save(short, tmp_path / "short")
    with pytest.raises(WeightFileError, match=r"features\.28\.bias"):
        lpips.read_lpips("vgg", lpips.lpips_files("vgg", [tmp_path / "short"]))


def test_a_cached_backbone_must_be_what_its_name_promises(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(random_trunk("alex"), tmp_path / "hub" / "checkpoints" / TRUNKS["alex"].file_name)
    with pytest.raises(CorruptFileError, match="sha256"):
        lpips.lpips_files("alex")


def test_lpips_without_its_weights_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    load_lpips.cache_clear()
    with pytest.raises(MissingWeightsError, match="vgg16") as error:
        load_lpips("vgg")
    assert error.value.hint == "turbovaed models pull lpips-vgg"


def test_the_lpips_network_needs_no_gradient():
    network = Lpips(
        TRUNKS["alex"],
        random_trunk("alex"),
        {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))},
    )
    assert not any(parameter.requires_grad for parameter in network.parameters())
    video = torch.zeros(1, 3, 64, 64, requires_grad=True)
    network(video, torch.ones(1, 3, 64, 64)).sum().backward()
    assert video.grad.abs().sum() > 0


def test_lpips_of_images_without_any_feature_has_a_gradient():
    """Where no channel is active, the length of the features is zero, whose root has no gradient."""
    state = {name: torch.zeros_like(value) for name, value in random_trunk("alex").items()}
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    video = torch.zeros(1, 3, 64, 64, requires_grad=True)
    Lpips(TRUNKS["alex"], state, linear)(video, torch.ones(1, 3, 64, 64)).sum().backward()
    assert torch.isfinite(video.grad).all()


# --- rFVD ---------------------------------------------------------------------------------------------------------


class TinyDetector(torch.nn.Module):
    """A detector with I3D's call signature; 6 features, of which some need frames in the right order."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> torch.Tensor:
        if rescale:
            x = x / 127.5 - 1
        if resize:
            x = torch.nn.functional.interpolate(x, size=[x.shape[2], 24, 24], mode="trilinear")
        features = torch.cat([x.mean(dim=(2, 3, 4)), (x[:, :, 1:] - x[:, :, :-1]).abs().mean(dim=(2, 3, 4))], dim=1)
        return features if return_features else features.softmax(dim=1)


def scripted_detector(path) -> str:
    """Write it as TorchScript; its sha256."""
    torch.jit.script(TinyDetector()).save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("n", "m", "dims"), [(300, 280, 7), (20, 30, 7), (6, 9, 40)])
def test_frechet_distance_equals_a_matrix_square_root(n, m, dims):
    """scipy's sqrtm of S1 S2; with fewer clips than features the covariances are singular."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(dims, dims))
    a, b = rng.normal(size=(n, dims)) @ mix, 1.3 * rng.normal(size=(m, dims)) @ mix + 0.5
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(sqrtm(cov_a @ cov_b))
    wanted = float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))
    assert fvd.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-5)
    assert fvd.frechet_distance(b, a) == pytest.approx(wanted, rel=1e-5)
    assert fvd.frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * wanted)


def test_frechet_distance_of_known_gaussians():
    """One dimension: the difference of means, squared, plus that of the standard deviations."""
    a = np.array([[-1.0], [1.0]] * 500)
    a *= math.sqrt((len(a) - 1) / len(a))
    assert fvd.frechet_distance(3 * a + 2, a) == pytest.approx(2**2 + (3 - 1) ** 2)


def test_the_detector_is_loaded_only_with_the_sha256_somebody_vouched_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    path = tmp_path / "detector.pt"
    digest = scripted_detector(path)
    cpu = torch.device("cpu")
    with pytest.raises(MissingWeightsError, match="not on this machine") as error:
        fvd.load_detector(None, digest, cpu)
    assert "turbovaed models pull i3d" in error.value.hint
    loaded: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *_args, **_more: loaded.append(1))
    with pytest.raises(MissingWeightsError, match="is not confirmed") as error:
        fvd.load_detector(path, "", cpu)
    assert digest in error.value.hint
    with pytest.raises(CorruptFileError, match=digest):
        fvd.load_detector(path, "0" * 64, cpu)
    assert not loaded  # not a byte of it ran
    with pytest.raises(WeightFileError, match="nowhere"):
        fvd.load_detector(tmp_path / "nowhere.pt", digest, cpu)
    monkeypatch.undo()
    detector, found = fvd.load_detector(path, digest.upper(), cpu)
    assert found == path
    video, _ = clips()
    wanted = TinyDetector()(video[None], rescale=False, resize=True, return_features=True)[0]
    assert detector.features(video).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_what_is_no_detector_says_so(tmp_path):
    cpu = torch.device("cpu")
    (tmp_path / "text.pt").write_bytes(b"no")
    with pytest.raises(WeightFileError, match=r"text\.pt is not TorchScript"):
        fvd.load_detector(tmp_path / "text.pt", hashlib.sha256(b"no").hexdigest(), cpu)
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "relu.pt"))
    detector, _ = fvd.load_detector(tmp_path / "relu.pt", hashlib.sha256((tmp_path / "relu.pt").read_bytes()).hexdigest(), cpu)
    with pytest.raises(WeightFileError, match=r"relu\.pt does not take clips"):
        detector.features(torch.zeros(3, 4, 16, 16))


# --- the published protocol ---------------------------------------------------------------------------------------


def test_min_max_is_over_the_batch_and_hides_half_the_contrast():
    _, source = clips()
    _, other = clips(1)
    batch = paper.min_max([source, other / 4])
    low, high = min(source.min(), other.min() / 4), max(source.max(), other.max() / 4)
    assert torch.allclose(batch[1], (other / 4 - low) / (high - low), atol=1e-6)
    assert float(torch.stack([clip.min() for clip in batch]).min()) == 0
    (dim,), (plain,) = paper.min_max([source * 0.3 + 0.1]), paper.min_max([source])
    assert paper.psnr(dim, plain) > 120 and psnr(source * 0.3 + 0.1, source) < 20


def test_paper_psnr_is_the_mean_over_frames_and_is_never_below_that_of_the_clip():
    video, source = ((clip + 1) / 2 for clip in clips())
    video[:, 1] = source[:, 1] + 0.01
    by_frame = [peak_signal_noise_ratio(source[:, i].numpy(), video[:, i].numpy(), data_range=1) for i in range(3)]
    assert paper.psnr(video, source) == pytest.approx(np.mean(by_frame), abs=1e-3)
    assert paper.psnr(video, source) > psnr(video * 2 - 1, source * 2 - 1)
    assert paper.psnr(source, source) == paper.MAX_PSNR_DB


def test_paper_ssim_is_that_of_torchmetrics():
    """The class the published script uses, with its data_range of 1."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    video, source = ((clip + 1) / 2 for clip in clips())
    wanted = structural_similarity_index_measure(video.movedim(1, 0), source.movedim(1, 0), data_range=1.0)
    assert paper.ssim(video, source) == pytest.approx(float(wanted), abs=1e-5)


# --- intervals ----------------------------------------------------------------------------------------------------


def test_students_t_equals_scipy():
    from scipy.stats import t

    for degrees in (1, 2, 3, 4, 5, 9, 30, 255, 3782):
        assert t_quantile(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=1e-9)


def test_the_interval_of_a_mean_is_the_textbooks():
    from scipy import stats

    scores = [27.1, 30.2, 24.9, 33.0, 28.8]
    wanted = stats.t.interval(0.95, 4, np.mean(scores), stats.sem(scores))
    assert ratio_interval(scores, [1.0] * 5, range(5)) == pytest.approx(wanted)
    assert [ratio_interval(scores[:n], [1.0] * n, range(n)) for n in (1, 2, 4)] == [None] * 3


def test_the_interval_of_a_ratio_is_paired():
    """What both find hard widens nothing: a student that always keeps 97 % has no spread."""
    teacher = [20.0, 30.0, 40.0, 25.0, 35.0]
    low, high = ratio_interval([0.97 * score for score in teacher], teacher, range(5))
    assert (low, high) == pytest.approx((0.97, 0.97))
    low, high = ratio_interval([0.97 * score for score in reversed(teacher)], teacher, range(5))
    assert high - low > 0.5


def test_intervals_cover_the_truth_as_often_as_they_say():
    """A thousand samples of eight paired clips: the true ratio lies in 93 to 97 % of the intervals."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        teacher = rng.normal(30, 4, size=8)
        student = 0.97 * teacher + rng.normal(0, 0.5, size=8)
        low, high = ratio_interval(student.tolist(), teacher.tolist(), range(8))
        hits += low <= 0.97 <= high
    assert 930 <= hits <= 970


def test_clips_of_one_video_count_as_one():
    """Ten copies of each of five videos say no more than the five, and of each of four nothing."""
    scores = [27.0, 30.0, 24.0, 33.0, 31.0]
    alone = ratio_interval(scores, [1.0] * 5, range(5))
    assert ratio_interval(scores * 10, [1.0] * 50, [i % 5 for i in range(50)]) == pytest.approx(alone)
    assert ratio_interval(scores[:4] * 10, [1.0] * 40, [i % 4 for i in range(40)]) is None


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_says_which_way_is_better():
    """Of every metric that pixels alone decide: the better clip scores better, within the range."""
    _, source = eight_bit_clips()
    source = torch.nn.functional.interpolate(source[None], size=(4, 96, 96), mode="trilinear")[0]
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    for name, measure in {"psnr": psnr, "ssim": ssim, "vmaf": vmaf.vmaf, "flicker": flicker}.items():  # defects: their own tests
        metric = METRICS[name]
        if metric.needs.startswith("an ffmpeg") and not ffmpeg.has_filter("libvmaf"):
            continue
        near, far = (measure(rounded((source + size * noise).clamp(-1, 1)), source) for size in (0.03, 0.3))
        assert (near > far) == (metric.better == "up"), name
        low, high = metric.range
        assert low <= min(near, far) and (high is None or max(near, far) <= high), name
    assert [name for name, metric in METRICS.items() if metric.better == "up"] == ["psnr", "ssim", "vmaf"]


def test_the_documents_contrast_example_prints_what_it_says(capsys):
    """The first number to its digit; the second is rounding noise, which another processor may place a little elsewhere."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    # The python block that output follows: no other one is before it inside the match.
    ((snippet, quoted),) = re.findall(r"```python\n((?:(?!```).)*)```\n```text\n(.*?)```", text, re.DOTALL)
    exec(compile(snippet, "docs/metrics.md", "exec"), {})
    printed = capsys.readouterr().out
    standard, as_published = (float(number) for number in re.findall(r"[\d.]+(?= dB)", printed))
    quoted_standard, quoted_paper = (float(number) for number in re.findall(r"[\d.]+(?= dB)", quoted))
    assert standard == quoted_standard < 20
    assert as_published == pytest.approx(quoted_paper, abs=5) and as_published > 120


def test_the_document_has_a_row_for_every_metric():
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    for name, metric in METRICS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` "))
        assert row.split("|")[2].strip() == {"up": "higher", "down": "lower"}[metric.better]
        assert re.search(rf"{metric.range[0]:g}", row) and (metric.range[1] is None or f"{metric.range[1]:g}" in row)
