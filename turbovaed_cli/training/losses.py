"""What the student is asked for: L1 to the source, a perceptual distance, the teacher's features, the teacher's pixels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.choices import check_choice
from turbovaed_cli.devices import autocast
from turbovaed_cli.metrics import load_lpips, ssim_value, trunk_path
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import Stage

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]
PERCEPTUAL = ("auto", "lpips", "ssim", "none")


@dataclass(frozen=True)
class Losses:
    """The parts of one step's loss, each a scalar, and their weighted total; the discriminator's own, where there is one."""

    total: Tensor
    parts: dict[str, Tensor]
    discriminator: Tensor | None = None


def resolve_perceptual(name: str, report: Reporter = quiet) -> str:
    """`auto` to lpips where its weights are on this machine, else to ssim, said out loud; others as they are."""
    check_choice("--perceptual", name, PERCEPTUAL)
    if name != "auto":
        return name
    if trunk_path("vgg") is not None:
        return "lpips"
    report.note("perceptual loss: SSIM; for LPIPS: turbovaed models pull lpips-vgg")
    return "ssim"


def perceptual_loss(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> PerceptualLoss | None:
    """A distance between videos (B, 3, T, H, W) in [-1, 1]; None for "none". MissingWeightsError when lpips has no weights.

    Where bf16 trains, LPIPS is computed in it too, as more than half of a small student's step would be spent there. Not in
    fp16, in which the squares it sums up overflow.
    """
    if name == "none":
        return None
    if name == "ssim":
        return lambda video, source: 1 - ssim_value(video, source)
    network = load_lpips("vgg").to(device)
    precision = dtype if dtype == torch.bfloat16 else torch.float32

    def lpips(video: Tensor, source: Tensor) -> Tensor:
        with autocast(device, precision):
            distances = network(video.movedim(2, 1).flatten(0, 1), source.movedim(2, 1).flatten(0, 1))
        return distances.float().mean()

    return lpips


def reconstruction_losses(
    decoded: Tensor,
    source: Tensor,
    stage: Stage,
    features: Mapping[str, Tensor],
    perceptual: PerceptualLoss | None,
    taught: Tensor | None = None,
) -> Losses:
    """L1 to the source, and what the stage adds: perceptual distance, features, L1 to the teacher's decode `taught`.

    In fp32, but for what LPIPS and the features are made of.
    """
    decoded = decoded.float()
    parts = {"l1": functional.l1_loss(decoded, source)}
    total = parts["l1"]
    if perceptual is not None and stage.perceptual_weight:
        parts["perceptual"] = perceptual(decoded, source)
        total = total + stage.perceptual_weight * parts["perceptual"]
    if features:
        parts |= {f"feature_{block}": loss.float() for block, loss in features.items()}
        total = total + stage.feature_weight * torch.stack([loss.float() for loss in features.values()]).sum()
    if taught is not None:
        parts["teacher"] = functional.l1_loss(decoded, taught.float())
        total = total + stage.teacher_weight * parts["teacher"]
    return Losses(total, parts)
