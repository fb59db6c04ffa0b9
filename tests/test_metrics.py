"""Every metric equals an independent implementation of its definition, and a wrong contrast is seen."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from turbovaed_cli.errors import MissingWeightsError, ShapeError
from turbovaed_cli.metrics import MAX_PSNR_DB, TRUNKS, Lpips, load_lpips, lpips_video, psnr, ssim, ssim_value


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
