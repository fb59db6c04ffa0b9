"""Muon: steps of one size in every direction of a weight, whatever the gradient's."""

import pytest
import torch

from turbovaed_cli.training import muon
from turbovaed_cli.training.muon import Muon, orthogonal


@pytest.mark.parametrize("native_bf16", [True, False])
@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (32, 32)])
def test_orthogonal_brings_all_singular_values_near_one(shape, native_bf16, monkeypatch):
    """Whatever the precision that the processor is quick in."""
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: native_bf16)
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.max() < 1.35 and values.min() > 0.3
    assert orthogonal(matrix).dtype == matrix.dtype
    rounded = torch.equal(orthogonal(matrix), orthogonal(matrix).bfloat16().float())
    assert rounded == native_bf16


def test_a_step_does_not_grow_with_the_gradient_and_biases_take_small_ones():
    torch.manual_seed(0)
    steps = []
    for size in (1e-3, 1.0, 1e3):
        torch.manual_seed(1)
        layer = torch.nn.Conv3d(4, 8, 3)
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * size
        Muon(layer.parameters(), lr=0.1).step()
        steps.append([(parameter - old).norm().item() for parameter, old in zip(layer.parameters(), before, strict=True)])
    for weight, bias in steps:
        assert weight == pytest.approx(steps[1][0], rel=0.05)
        assert 0 < bias < 0.02
    assert 0.15 < steps[1][0] < 0.4  # 0.1 times the root of 8 singular values near one


def test_it_descends_and_leaves_parameters_without_gradient_alone():
    torch.manual_seed(0)
    used, unused = torch.nn.Linear(16, 4), torch.nn.Parameter(torch.ones(3))
    inputs = torch.randn(64, 16)
    wanted = inputs @ torch.randn(16, 4) / 4
    optimizer = Muon([*used.parameters(), unused], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (used(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(unused, torch.ones(3))
