"""Convolutions tile by tile: those of torch within rounding, at any size and padding."""

import copy

import pytest
import torch
from torch import nn

from turbovaed_cli.metrics.features import mean_distances
from turbovaed_cli.metrics.stlpips import load_st_lpips
from turbovaed_cli.metrics.tiled import TiledConvolution, can_tile
from turbovaed_cli.models import winograd
from turbovaed_cli.models.scratch import Scratch


def convolution(taps: int = 3, channels: int = 64, **options) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, 72, taps, **options).requires_grad_(False)


@pytest.mark.parametrize("size", [(5, 5), (8, 12), (13, 6), (10, 14)])
@pytest.mark.parametrize(("taps", "padding"), [(3, 0), (3, 1), (5, 2), (5, (1, 3))])
def test_it_is_the_convolution_within_rounding(taps, padding, size, monkeypatch):
    plain = convolution(taps, padding=padding)
    assert can_tile(plain)
    x = torch.randn(2, 64, *size, generator=torch.Generator().manual_seed(1))
    wanted, made = plain.double()(x.double()), TiledConvolution(plain.float(), Scratch())(x)
    monkeypatch.setattr(winograd, "_TILES", 6)  # some rows at a time
    assert torch.allclose(TiledConvolution(plain, Scratch())(x), made, atol=1e-6)
    assert made.shape == wanted.shape
    assert (made - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    "other",
    [
        {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"bias": False}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"dtype": torch.bfloat16}, {"channels": 3}, {"taps": 7}, {"taps": 1},
    ],
    ids=str,
)  # fmt: skip
def test_other_convolutions_stay_as_they_are(other):
    assert not can_tile(convolution(**other))


def test_a_metric_has_its_value_and_none_for_equal_clips(monkeypatch):
    """As without tiles, to five digits; and exactly zero, whatever the rounding."""
    network = load_st_lpips("alex")
    generator = torch.Generator().manual_seed(2)
    source = torch.rand(3, 2, 64, 80, generator=generator) * 2 - 1
    other = (source + 0.1 * torch.randn(source.shape, generator=generator)).clamp(-1, 1)
    made = mean_distances(network, [other, source], source)
    assert network._tiled and made[1] == 0.0
    monkeypatch.setattr("turbovaed_cli.metrics.features.can_tile", lambda _: False)
    assert mean_distances(network, [other], source)[0] == pytest.approx(made[0], rel=1e-5)


def test_another_precision_takes_weights_of_its_own():
    network = copy.deepcopy(load_st_lpips("alex"))
    clips = torch.rand(2, 3, 1, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    (single,) = mean_distances(network, [clips[0]], clips[1])
    (double,) = mean_distances(network.double(), [clips[0].double()], clips[1].double())
    assert double == pytest.approx(single, rel=1e-5)


def test_a_loss_has_gradients():
    network = load_st_lpips("alex")
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    network(images, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
