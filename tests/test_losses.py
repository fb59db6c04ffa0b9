"""LPIPS as a loss says the same in bf16 as in fp32, within what bf16 can."""

import pytest
import torch
from torch import nn

from turbovaed_cli.metrics.lpips import TRUNKS, Lpips
from turbovaed_cli.training import losses
from turbovaed_cli.training.losses import perceptual_loss

CPU = torch.device("cpu")


@pytest.fixture
def vgg(monkeypatch) -> Lpips:
    """The backbone's shapes with random weights of a scale that keeps signals alive."""
    torch.manual_seed(0)
    trunk, state = TRUNKS["vgg"], {}
    for index, inputs, outputs, kernel, *_ in trunk.convolutions:
        weight = torch.randn(outputs, inputs, kernel, kernel) * (2 / (inputs * kernel**2)) ** 0.5
        state |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.rand(outputs)}
    taps = [outputs for index, _, outputs, *_ in trunk.convolutions if index in trunk.taps]
    network = Lpips(trunk, state, {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(taps)})
    monkeypatch.setattr(losses, "load_lpips", lambda name: network)
    return network


def test_lpips_in_bf16_points_where_lpips_in_fp32_does(vgg):
    torch.manual_seed(1)
    source = torch.nn.functional.interpolate(torch.rand(1, 3, 2, 8, 8), size=(2, 32, 32), mode="trilinear") * 2 - 1
    video = (source + 0.1 * torch.randn_like(source)).requires_grad_()
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        seen = []
        hook = next(m for m in vgg.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
            lambda _module, _inputs, output, seen=seen: seen.append(output.dtype)
        )
        value = perceptual_loss("lpips", CPU, dtype)(video, source)
        (gradient,) = torch.autograd.grad(value, video)
        hook.remove()
        found[dtype] = (value, gradient.flatten(), seen[0])
    fp32, bf16, fp16 = found.values()
    assert (fp32[2], bf16[2], fp16[2]) == (torch.float32, torch.bfloat16, torch.float32)
    assert bf16[0].dtype == torch.float32
    assert bf16[0].item() == pytest.approx(fp32[0].item(), rel=0.01)
    assert torch.cosine_similarity(bf16[1], fp32[1], dim=0) > 0.995
    assert torch.equal(fp16[1], fp32[1])
