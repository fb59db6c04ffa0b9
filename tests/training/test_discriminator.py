"""The adversarial stage's parts: a judge of patches, hinge losses, and a weight that balances gradients."""

import pytest
import torch

from turbovaed_cli.training.discriminator import (
    PatchDiscriminator3d,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)


@pytest.mark.parametrize("shape", [(1, 3, 1, 32, 32), (2, 3, 9, 32, 64), (1, 3, 17, 64, 64)])
def test_it_judges_patches_of_any_clip(shape):
    logits = PatchDiscriminator3d(8)(torch.randn(shape))
    assert logits.shape[:2] == (shape[0], 1)
    assert logits.shape[3] > 1 and logits.shape[4] > 1


@pytest.mark.parametrize("frames", [2, 5, 8, 9])
def test_its_gradients_are_the_same_every_time_and_near_those_of_fp32(frames):
    """In bf16, torch itself computes some from memory it never wrote, where two frames are padded in time."""
    torch.manual_seed(0)
    judge, video = PatchDiscriminator3d(8), torch.randn(1, 3, frames, 32, 32)

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = judge(video)
        return torch.autograd.grad(logits.float().square().mean(), list(judge.parameters()))

    exact, first, second = gradients(torch.float32), gradients(torch.bfloat16), gradients(torch.bfloat16)
    for a, b, c in zip(exact, first, second, strict=True):
        assert torch.equal(b, c)
        assert (a - b).norm() < 0.5 * a.norm() + 1e-3


def test_a_patch_sees_its_neighbourhood_in_space_and_time():
    torch.manual_seed(0)
    judge = PatchDiscriminator3d(8).eval()
    video = torch.randn(1, 3, 9, 64, 64, requires_grad=True)
    logits = judge(video)
    for module in judge.modules():  # GroupNorm looks at the whole clip; what remains is the patch
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    logits = judge(video)
    logits[0, 0, 1, 4, 4].backward()
    seen = video.grad.abs().sum(1)[0]
    assert (seen.sum((1, 2)) > 0).sum() > 1
    assert 0 < (seen.sum(0) > 0).float().mean() < 1


def test_hinge_losses_are_zero_only_beyond_the_margin():
    sure, wrong = torch.full((2, 1), 1.5), torch.full((2, 1), -1.5)
    assert discriminator_loss(sure, wrong) == 0
    assert discriminator_loss(wrong, sure) == pytest.approx(2.5)
    assert discriminator_loss(torch.zeros(2, 1), torch.zeros(2, 1)) == pytest.approx(1.0)
    assert generator_loss(sure) == -1.5


def test_the_adaptive_weight_is_the_ratio_of_the_pulls_on_the_last_layer():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = (weight * torch.tensor([6.0, 8.0])).sum(), (weight * torch.tensor([0.0, 2.0])).sum()
    found = adaptive_weight(reconstruction, adversarial, weight)
    assert found.item() == pytest.approx(10 / 2, rel=1e-3) and not found.requires_grad
    assert adaptive_weight(reconstruction, (weight * 0).sum(), weight).item() == pytest.approx(1e4)


def test_it_learns_to_tell_blurred_from_sharp():
    torch.manual_seed(0)
    judge = PatchDiscriminator3d(8)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    for _ in range(25):
        sharp = torch.randn(2, 3, 3, 32, 32).clamp(-1, 1)
        blurred = torch.nn.functional.avg_pool3d(sharp, (1, 3, 3), stride=1, padding=(0, 1, 1))
        loss = discriminator_loss(judge(sharp), judge(blurred))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
