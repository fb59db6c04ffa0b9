"""Perceptual losses: a network in bf16 gives what it gives in fp32, within what bf16 can; chunks of frames give what whole videos give."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.latents.batch import Crop
from turbovaed_cli.metrics.lpips import Lpips
from turbovaed_cli.metrics.stlpips import LAYOUTS, StLpips
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.registry.backbones import TRUNKS
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training import losses
from turbovaed_cli.training.distill import distill
from turbovaed_cli.training.losses import (
    PerceptualLoss,
    check_perceptual_size,
    lattice_loss,
    perceptual_loss,
    reconstruction_losses,
)

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


def random_st_lpips(name: str) -> StLpips:
    """The layers with a sixteenth of the channels, and random weights."""
    torch.manual_seed(0)
    blocks, state = [], {}
    for number, block in enumerate(LAYOUTS[name].blocks, 1):
        layers = [(i, a if a == 3 else a // 16, b // 16, *rest) for i, a, b, *rest in block.convolutions]
        for index, inputs, outputs, kernel, _ in layers:
            weight = torch.randn(outputs, inputs, kernel, kernel) * (2 / (inputs * kernel**2)) ** 0.5
            state |= {f"net.slice{number}.{index}.weight": weight, f"net.slice{number}.{index}.bias": torch.rand(outputs)}
        state[f"lin{number - 1}.model.1.weight"] = torch.rand(1, outputs, 1, 1)
        blocks.append(replace(block, convolutions=tuple(layers)))
    return StLpips(replace(LAYOUTS[name], blocks=tuple(blocks)), state)


@pytest.fixture
def narrow_st_lpips(monkeypatch) -> dict[str, StLpips]:
    networks = {name: random_st_lpips(name) for name in LAYOUTS}
    monkeypatch.setattr(losses, "load_st_lpips", networks.get)
    return networks


@pytest.mark.parametrize(("name", "backbone"), [("st-lpips", "alex"), ("st-lpips-vgg", "vgg")])
def test_st_lpips_in_bf16_points_where_it_does_in_fp32_and_gives_no_gradient_to_the_source(name, backbone, narrow_st_lpips):
    video, source = clips(frames=2)
    seen = []
    hook = next(m for m in narrow_st_lpips[backbone].modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    found = {dtype: value_and_gradient(perceptual_loss(name, CPU, dtype), video, source) for dtype in DTYPES}
    hook.remove()
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2 + [torch.float32] * 2
    (value, gradient), (rounded, pull), half = found.values()
    assert rounded.item() == pytest.approx(value.item(), rel=0.02) and rounded.dtype == torch.float32
    assert torch.cosine_similarity(pull.flatten(), gradient.flatten(), dim=0) > 0.98
    assert torch.equal(half[1], gradient)
    assert perceptual_loss(name, CPU)(source, source).item() == 0
    followed = source.clone().requires_grad_()
    perceptual_loss(name, CPU)(video, followed).backward()
    assert video.grad.abs().sum() > 0 and followed.grad is None
    assert not any(parameter.requires_grad for parameter in narrow_st_lpips[backbone].parameters())


@pytest.mark.parametrize("name", ["ssim", "lpips", "st-lpips", "st-lpips-vgg"])
def test_chunks_of_frames_give_the_loss_and_gradient_of_whole_videos(name, narrow_vgg, narrow_st_lpips):
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


def test_a_step_of_distill_learns_from_st_lpips(ltx_teacher, cache, small_student, tmp_path, narrow_st_lpips):
    """Its loss is logged, and it moves the weights elsewhere."""
    stage = Stage("only", steps=1, accumulation=1, perceptual="st-lpips", feature_weight=0.0, lr=1e-3)
    learnt = {}
    for weight in (1.0, 0.0):
        settings = DistillSettings(
            (replace(stage, perceptual_weight=weight),), frames=9, size=(64, 64), dtype="fp32", sample_every=0
        )
        result = distill(
            find_model(ltx_teacher), tmp_path / str(weight), latents=cache, settings=settings, student_config=small_student
        )
        assert ("perceptual" in result.losses) == (weight > 0) and (not weight or result.losses["perceptual"] > 0)
        learnt[weight] = load_student(str(result.model)).state_dict()
    assert any(not torch.equal(learnt[1.0][key], learnt[0.0][key]) for key in learnt[0.0])


@pytest.mark.parametrize(
    ("crop", "has_margin", "compared"),
    [
        (None, True, "64x16"),
        (Crop(1, 2, 16, margin=0), True, "32x16"),
        (Crop(1, 2, 16, margin=0), False, "32x16"),
        (Crop(1, 3, 16, margin=1), True, "16x16"),  # the height is not cut, so it has no margin
    ],
)
def test_pictures_too_small_for_the_perceptual_loss_are_refused_by_what_losses_see(crop, has_margin, compared):
    loss, stage = PerceptualLoss(lambda video, source: video.mean(), 1, min_side=17), Stage("first", perceptual="ssim")
    said = f"`perceptual` ssim needs 17x17 pixels at least; stage first compares {compared}"
    with pytest.raises(ShapeError, match=said) as error:
        check_perceptual_size(stage, loss, crop, (16, 64), has_margin=has_margin)
    assert error.value.hint == ("use a larger `size`" if crop is None else "use a larger `crop`")
    check_perceptual_size(stage, loss, Crop(3, 3, 16, margin=1), (64, 64), has_margin=False)  # losses use all of a crop of pixels
    check_perceptual_size(replace(stage, perceptual_weight=0.0), loss, crop, (16, 64), has_margin=has_margin)


def test_the_squared_error_weighs_a_rare_large_error_more_than_l1_does():
    source, one_wrong, all_wrong = torch.zeros(1, 3, 1, 4, 4), torch.zeros(1, 3, 1, 4, 4), torch.full((1, 3, 1, 4, 4), 0.1)
    one_wrong[..., 0, 0] = 1.6  # the same L1
    stage = Stage("only", squared_weight=10.0, perceptual="none")
    rare, even = (reconstruction_losses(wrong, source, stage, {}, None) for wrong in (one_wrong, all_wrong))
    assert rare.parts["l1"] == pytest.approx(float(even.parts["l1"]))
    assert float(even.total) == pytest.approx(0.1 + 10 * 0.01)
    assert float(rare.total) == pytest.approx(0.1 + 10 * 0.16)


def test_the_lattice_loss_counts_what_repeats_in_every_tile_and_nothing_else():
    torch.manual_seed(0)
    source = torch.rand(2, 3, 2, 19, 16) - 0.5
    pattern = torch.zeros(4, 4)
    pattern[0, 0], pattern[1, 2] = 0.1, -0.1
    repeated = functional.pad(pattern.repeat(4, 4), (0, 0, 0, 3))  # three rows are no whole tile
    assert lattice_loss(source + repeated, source, 4) == pytest.approx(0.2 / 16, rel=1e-4)
    assert lattice_loss(source + 0.3, source, 4) < 1e-6  # a constant error
    assert lattice_loss(source + repeated, source, 8) == pytest.approx(0.2 / 16, rel=1e-4)
    noise = 0.1 * torch.randn(2, 3, 2, 64, 64)
    assert lattice_loss(noise, torch.zeros_like(noise), 4) < 0.01
    stage = Stage("only", lattice_weight=2.0, perceptual="none")
    losses = reconstruction_losses(source + repeated, source, stage, {}, None, period=4)
    assert losses.total == pytest.approx(float(losses.parts["l1"] + 2 * losses.parts["lattice"]))
