"""Powers of two in the weights keep fp16 graphs within their range, and change nothing else."""

import copy

import pytest
import torch
from golden import NAMES, load_golden, write_student
from members import NAMED, built
from torch.utils._python_dispatch import TorchDispatchMode

from turbovaed_cli.export.export_form import export_form
from turbovaed_cli.export.fp16_range import keep_in_range
from turbovaed_cli.models.layers import ResnetBlock
from turbovaed_cli.models.loading import load_student

LAYOUTS = ("4d-cat", "4d-sum")
SPLIT = "causal, in space then time, patches of 8"


@pytest.fixture(scope="module", params=[*NAMES, "tiny", SPLIT])
def student(request, tmp_path_factory):
    if request.param == "tiny":
        return load_student("tiny")
    if request.param == SPLIT:
        return built(NAMED[SPLIT], dtype=torch.float32)
    return load_student(*write_student(load_golden(request.param), tmp_path_factory.mktemp(request.param)))


def latents_of(student, dtype=torch.float32):
    shape = (1, student.config.latent_channels, 2, 3, 3)
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


class Watch(TorchDispatchMode):
    """Whether every value on the way was finite."""

    finite = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point():
            self.finite &= bool(torch.isfinite(made).all())
        return made


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_folding_changes_no_number(student, layout):
    """In double precision; the eps of fp16 is larger, which is all that may show. The student itself keeps its weights."""
    student = copy.deepcopy(student).double()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    latents = latents_of(student, torch.float64)
    wanted, form = student(latents), export_form(student, layout)
    exponents = keep_in_range(form, [latents])
    assert any(exponents.values())
    assert torch.allclose(form(latents), wanted, atol=1e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@torch.no_grad()
def test_residuals_times_4000_need_it(student):
    """What blocks add, 4000 times as much: fp16 goes beyond its range without folding, and stays as close as ever with it."""
    student = copy.deepcopy(student)
    for module in student.modules():
        if isinstance(module, ResnetBlock):
            conv = next(
                getattr(module.conv2, name) for name in ("pointwise_conv", "spatial_conv", "conv") if hasattr(module.conv2, name)
            )
            conv.weight *= 4000
            conv.bias *= 4000
    latents = latents_of(student)
    wanted = student(latents)
    plain, folded = export_form(student), export_form(student)
    keep_in_range(folded, [latents])
    with Watch() as watch:
        plain.half()(latents.half())
    assert not watch.finite  # an infinite square makes zeros of what it divides: what comes out may be finite, and wrong
    with Watch() as watch:
        found = folded.half()(latents.half()).float()
    assert watch.finite
    spread = (wanted.max() - wanted.min()).clamp(min=2)
    assert (found - wanted).abs().mean() < 5e-3 * spread
