"""A last convolution that sums large weights which cancel is fitted again for rounded inputs: tools/settle_student.py."""

import copy

import settle_student
import torch
from torch import nn

from turbovaed_cli import load_student
from turbovaed_cli.training.least_squares import fit_convolution


def test_a_fit_for_noisy_inputs_needs_no_weights_that_cancel():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(1, 1, 1, 40, 40, generator=generator)
    inputs = [torch.cat([signal + 10, signal * 1.001 + 10], dim=1)]
    places = [torch.arange(1600)]
    targets = [(signal + 0.001 * torch.randn(signal.shape, generator=generator)).flatten()[:, None]]
    largest = {}
    for noise in (0.0, 2**-8):
        convolution = nn.Conv3d(2, 1, 1)
        with torch.no_grad():
            fit_convolution(convolution, inputs, places, targets, ridge=0.0, noise=noise)
        largest[noise] = float(convolution.weight.detach().abs().max())
        assert (convolution(inputs[0]).flatten() - targets[0].flatten()).abs().mean() < 0.1
    assert largest[2**-8] < 0.6 and largest[2**-8] < largest[0.0]


def test_settling_keeps_the_decode_and_measuring_it_keeps_the_weights():
    student = load_student("tiny")
    before = copy.deepcopy(student.state_dict())
    latents = [torch.randn(1, 32, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert settle_student.closeness(student, latents) > 30
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    settle_student.settle(student, latents)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"conv_out.conv.weight", "conv_out.conv.bias"}
    assert settle_student.closeness(student, latents) > 30
