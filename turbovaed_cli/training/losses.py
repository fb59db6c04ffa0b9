"""The losses of the student: L1 to the source, a perceptual distance, the teacher's features, the teacher's pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import ShapeError
from turbovaed_cli.latents.batch import Crop
from turbovaed_cli.machine.devices import autocast
from turbovaed_cli.metrics import load_lpips, load_st_lpips, ssim_value
from turbovaed_cli.metrics.pixels import SSIM_WINDOW
from turbovaed_cli.registry.backbones import trunk_path
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.stage import PERCEPTUAL, Stage

# Pixels, over all frames, whose activations are kept at once: about a gigabyte for networks in bf16.
LPIPS_PIXELS = 7 * 256 * 256
ST_LPIPS_PIXELS = 21 * 256 * 256
ST_LPIPS_VGG_PIXELS = 5 * 256 * 256
SSIM_PIXELS = 96 * 256 * 256


@dataclass(frozen=True)
class PerceptualLoss:
    """The mean over frames of a distance between videos (B, 3, T, H, W) in [-1, 1], a scalar with a gradient to the first.

    Videos of more than `pixels_at_once` are compared in chunks of frames. The chunks depend on the size of the videos alone,
    so that the same steps give the same bits with gradient checkpointing and without.
    """

    distance: Callable[[Tensor, Tensor], Tensor]
    pixels_at_once: int
    min_side: int = 1  # pixels, of what is compared

    def __call__(self, video: Tensor, source: Tensor) -> Tensor:
        batch, _, frames, height, width = video.shape
        at_once = max(self.pixels_at_once // (height * width), 1)
        if batch * frames <= at_once:
            return self.distance(video, source)
        chunks = [x.movedim(2, 1).flatten(0, 1).unsqueeze(2) for x in (video, source)]  # (N, 3, 1, H, W)
        if torch.is_grad_enabled() and video.requires_grad:
            value: Tensor = _InChunks.apply(*chunks, self.distance, at_once)  # type: ignore[no-untyped-call]
            return value
        pairs = zip(*(x.split(at_once) for x in chunks), strict=True)
        return torch.stack([self.distance(a, b) * (len(a) / len(chunks[0])) for a, b in pairs]).sum()


class _InChunks(torch.autograd.Function):
    """A distance of many frames whose gradient is computed chunk by chunk with the value: no activation outlives its chunk.

    Unlike with checkpointing, nothing is computed twice, even if a step goes back through the loss several times.
    """

    @staticmethod
    def forward(ctx: Any, video: Tensor, source: Tensor, distance: Callable[[Tensor, Tensor], Tensor], at_once: int) -> Tensor:
        """Return the mean distance of frames (N, 3, 1, H, W), a scalar, and keep its gradient."""
        chunks = [chunk.detach().requires_grad_() for chunk in video.split(at_once)]
        values, gradients = [], []
        for chunk, others in zip(chunks, source.split(at_once), strict=True):
            with torch.enable_grad():
                value = distance(chunk, others) * (len(chunk) / len(video))
            gradients += torch.autograd.grad(value, chunk)
            values.append(value.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(values).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the kept gradient (N, 3, 1, H, W), scaled."""
        return gradient * ctx.saved_tensors[0], None, None, None


@dataclass(frozen=True)
class Losses:
    """The parts of one step's loss, each a scalar, and their weighted total; the discriminator's own loss, if there is one."""

    total: Tensor
    parts: dict[str, Tensor]
    discriminator: Tensor | None = None


def resolve_perceptual(name: str, report: Reporter = quiet) -> str:
    """Return "lpips" for "auto" if its weights are on this machine, else "ssim", with a note; other names as they are."""
    check_choice("`perceptual`", name, PERCEPTUAL)
    if name != "auto":
        return name
    if trunk_path("vgg") is not None:
        return "lpips"
    report.note("perceptual loss: SSIM; for LPIPS: turbovaed models pull lpips-vgg")
    return "ssim"


def perceptual_loss(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> PerceptualLoss | None:
    """Return the perceptual loss of that name; None for "none". Raises MissingWeightsError if lpips or st-lpips has no weights.

    "st-lpips" has the AlexNet of the metric `st_lpips`, "st-lpips-vgg" the VGG16 of `st_lpips_vgg`, "lpips" a VGG16 too.
    With `dtype` bf16 they are computed in bf16 too, as LPIPS would take more than half of a small student's step. With fp16 it
    stays in fp32, as its sums of squares overflow fp16.
    """
    if name == "none":
        return None
    if name == "ssim":
        return PerceptualLoss(lambda video, source: 1 - ssim_value(video, source), SSIM_PIXELS, SSIM_WINDOW)
    load, backbone, pixels = {
        "lpips": (load_lpips, "vgg", LPIPS_PIXELS),
        "st-lpips": (load_st_lpips, "alex", ST_LPIPS_PIXELS),
        "st-lpips-vgg": (load_st_lpips, "vgg", ST_LPIPS_VGG_PIXELS),
    }[name]
    network = load(backbone).to(device)
    precision = dtype if dtype == torch.bfloat16 else torch.float32

    def by_features(video: Tensor, source: Tensor) -> Tensor:
        with autocast(device, precision):
            distances = network(video.movedim(2, 1).flatten(0, 1), source.movedim(2, 1).flatten(0, 1))
        return distances.float().mean()

    return PerceptualLoss(by_features, pixels * torch.bfloat16.itemsize // precision.itemsize, network.min_side)


def check_perceptual_size(
    stage: Stage, loss: PerceptualLoss | None, crop: Crop | None, size: tuple[int, int], *, has_margin: bool
) -> None:
    """Raise ShapeError if the pictures that a stage compares are too small for its perceptual loss.

    `size` is that of the clips, (height, width) pixels. Of a crop with a margin, as those of cached latents are, losses use
    the part inside.
    """
    if loss is None or not stage.perceptual_weight:
        return
    height, width = size
    if crop is not None:
        margins = 2 * crop.margin * crop.ratio if has_margin else 0
        height, width = (cut if cut == whole else cut - margins for cut, whole in zip(crop.pixels, size, strict=True))
    if min(height, width) < loss.min_side:
        raise ShapeError(
            f"`perceptual` {stage.perceptual} needs {loss.min_side}x{loss.min_side} pixels at least; "
            f"stage {stage.name} compares {width}x{height}",
            "use a larger `size`" if crop is None else "use a larger `crop`",
        )


def reconstruction_losses(
    decoded: Tensor,
    source: Tensor,
    stage: Stage,
    features: Mapping[str, Tensor],
    perceptual: PerceptualLoss | None,
    taught: Tensor | None = None,
    looked_at: Sequence[int] | None = None,
    period: int = 1,
) -> Losses:
    """Return the losses of a decode: L1 to the source, and what the stage gives a weight.

    `decoded`, `source` and the teacher's decode `taught` are videos (B, 3, T, H, W) in [-1, 1]; `features` are scalar losses by
    block. The perceptual distance uses the frames `looked_at`; None: all. `period` is the side in pixels of the student's lattice, its space ratio.
    Losses are fp32; LPIPS and the features may be computed in other precisions.
    """
    decoded = decoded.float()
    parts = {"l1": functional.l1_loss(decoded, source)}
    total = parts["l1"]
    if perceptual is not None and stage.perceptual_weight:
        frames = slice(None) if looked_at is None else list(looked_at)
        parts["perceptual"] = perceptual(decoded[:, :, frames], source[:, :, frames])
        total = total + stage.perceptual_weight * parts["perceptual"]
    if features:
        parts |= {f"feature_{block}": loss.float() for block, loss in features.items()}
        total = total + stage.feature_weight * torch.stack([loss.float() for loss in features.values()]).sum()
    if taught is not None:
        parts["teacher"] = functional.l1_loss(decoded, taught.float())
        total = total + stage.teacher_weight * parts["teacher"]
    if stage.squared_weight:
        parts["squared"] = functional.mse_loss(decoded, source)
        total = total + stage.squared_weight * parts["squared"]
    if stage.lattice_weight:
        parts["lattice"] = lattice_loss(decoded, source, period)
        total = total + stage.lattice_weight * parts["lattice"]
    return Losses(total, parts)


def lattice_loss(decoded: Tensor, source: Tensor, period: int) -> Tensor:
    """Return how much of the error repeats in every tile of `period` x `period` pixels: its mean magnitude, a scalar.

    Videos are (B, 3, T, H, W) in [-1, 1], whose first pixel is the first one of a tile; pixels beyond whole tiles are left out.
    The mean tile of every frame's error counts, without its own mean: a constant error is none of the lattice's.
    """
    rows, columns = (side // period for side in decoded.shape[-2:])
    error = (decoded - source)[..., : rows * period, : columns * period]
    tile = error.unflatten(-1, (columns, period)).unflatten(-3, (rows, period)).mean(dim=(-4, -2))  # (B, 3, T, P, P)
    return (tile - tile.mean(dim=(-2, -1), keepdim=True)).abs().mean()
