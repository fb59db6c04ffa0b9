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
    (found,) = orthogonal(matrix[None])
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.35 and values.min() > 0.3
    assert found.dtype == matrix.dtype
    assert torch.equal(found, found.bfloat16().float()) == native_bf16


@pytest.mark.parametrize("shape", [(48, 432), (96, 25), (32, 32)])
def test_a_batch_of_matrices_gives_what_each_gives_alone(shape):
    """Within rounding; and within that of bf16 what the formula gives in fp64."""
    torch.manual_seed(0)
    matrices = torch.randn(5, *shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    found = orthogonal(matrices)
    alone = torch.cat([orthogonal(matrix[None]) for matrix in matrices])
    assert (found - alone).norm() < 0.01 * alone.norm()
    for matrix, one in zip(matrices, found, strict=True):
        x = matrix.double() / matrix.double().norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
        assert (one - x).norm() < 0.03 * x.norm()


def test_a_step_of_many_parameters_is_that_of_each_by_the_published_formula():
    """Momentum, decay, Adam for biases and an orthogonal step for weights, written out for one parameter at a time."""
    torch.manual_seed(0)
    shapes = [(16, 8, 3, 3, 3), (16,), (16, 8, 3, 3, 3), (8, 16, 1, 1), (8,), (4, 8)]
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    plain = [parameter.detach().clone() for parameter in parameters]
    averages, squares = [torch.zeros_like(p) for p in plain], [torch.zeros_like(p) for p in plain]
    optimizer = Muon(parameters, lr=0.02, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        for parameter, value, average, square in zip(parameters, plain, averages, squares, strict=True):
            parameter.grad = gradient = torch.randn_like(parameter)
            average.lerp_(gradient, 1 - 0.9)
            value.mul_(1 - 0.02 * 0.1)
            if value.ndim < 2:
                square.lerp_(gradient.square(), 1 - 0.99)
                value.sub_(0.03 * 0.02 * average / (square.sqrt() + 1e-8))
            else:
                (update,) = orthogonal(gradient.lerp(average, 0.9).flatten(1)[None])
                value.sub_(0.02 * max(1.0, update.shape[0] / update.shape[1]) ** 0.5 * update.view_as(value))
        optimizer.step()
    for parameter, value in zip(parameters, plain, strict=True):
        assert torch.allclose(parameter, value, atol=1e-3)


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
