"""Perceptual losses: LPIPS in bf16 is that in fp32, within what bf16 can; chunks of frames give what whole videos give."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from turbovaed_cli.metrics.lpips import Lpips
from turbovaed_cli.registry.backbones import TRUNKS
from turbovaed_cli.training import losses
from turbovaed_cli.training.losses import perceptual_loss

CPU = torch.device("cpu")


def random_lpips(divisor: int) -> Lpips:
    """The backbone's shapes, with channels divided, and random weights of a scale that keeps signals alive."""
    torch.manual_seed(0)
    layers = [(i, a if a == 3 else a // divisor, b // divisor, *rest) for i, a, b, *rest in TRUNKS["vgg"].convolutions]
    trunk, state = replace(TRUNKS["vgg"], convolutions=tuple(layers)), {}
    for index, inputs, outputs, kernel, *_ in trunk.convolutions:
        weight = torch.randn(outputs, inputs, kernel, kernel) * (2 / (inputs * kernel**2)) ** 0.5
        state |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.rand(outputs)}
    taps = [outputs for index, _, outputs, *_ in trunk.convolutions if index in trunk.taps]
    return Lpips(trunk, state, {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(taps)})


@pytest.fixture
def vgg(monkeypatch) -> Lpips:
    network = random_lpips(1)
    monkeypatch.setattr(losses, "load_lpips", lambda name: network)
    return network


@pytest.fixture
def narrow_vgg(monkeypatch) -> Lpips:
    network = random_lpips(16)
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


def clips(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    source = torch.nn.functional.interpolate(torch.rand(2, 3, frames, 8, 8), size=(frames, 32, 24), mode="trilinear") * 2 - 1
    return (source + 0.1 * torch.randn_like(source)).requires_grad_(), source


def value_and_gradient(loss, video, source, **options):
    value = loss(video, source, **options)
    return value.detach(), *torch.autograd.grad(value, video)


@pytest.mark.parametrize("name", ["ssim", "lpips"])
def test_chunks_of_frames_give_the_loss_and_gradient_of_whole_videos(name, narrow_vgg):
    """In a number of frames that chunks do not divide."""
    video, source = clips(frames=5)
    whole = replace(perceptual_loss(name, CPU), pixels_at_once=10 * 32 * 24)
    chunks = replace(whole, pixels_at_once=3 * 32 * 24)
    seen = []
    spied = replace(chunks, distance=lambda a, b: seen.append(tuple(a.shape)) or chunks.distance(a, b))
    value, gradient = value_and_gradient(whole, video, source)
    found, pull = value_and_gradient(spied, video, source)
    assert seen == [(3, 3, 1, 32, 24)] * 3 + [(1, 3, 1, 32, 24)]
    assert found.item() == pytest.approx(value.item(), rel=1e-6)
    assert (pull - gradient).norm() < 1e-5 * gradient.norm()


def test_chunks_keep_their_gradient_alone_and_compute_nothing_twice(narrow_vgg):
    """Also where a step goes back through the loss more than once, as the adaptive weight does."""
    video, source = clips(frames=2)
    calls, chunks = [], replace(perceptual_loss("lpips", CPU), pixels_at_once=32 * 24)
    value = replace(chunks, distance=lambda a, b: calls.append(len(a)) or chunks.distance(a, b))(video, source)
    assert [kept.shape for kept in value.grad_fn.saved_tensors] == [(4, 3, 1, 32, 24)]
    once, again = (torch.autograd.grad(scale * value, video, retain_graph=True)[0] for scale in (1.0, 2.0))
    assert torch.equal(again, 2 * once) and calls == [1] * 4
    with torch.no_grad():
        assert torch.equal(chunks(video, source), value)


def test_lpips_gives_no_gradient_to_the_source(narrow_vgg):
    video, source = clips(frames=1)
    frames = source[:, :, 0].requires_grad_()
    narrow_vgg(video[:, :, 0], frames).sum().backward()
    assert video.grad is not None and frames.grad is None
