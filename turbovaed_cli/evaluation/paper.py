"""The protocol of the published script (`--protocol paper`), kept apart, as it hides errors of brightness and contrast.

Latents are sampled from the posterior, without rounding to 8 bits, in batches of four clips. Source and reconstruction are each
mapped to [0, 1] by *their own* minimum and maximum over the batch. PSNR is computed per frame, then averaged; SSIM has reflected
edges. LPIPS (Alex, spatial) and I3D, both made for [-1, 1], are fed [0, 1]. The result is the mean over batches. docs/metrics.md
shows the effect on a contrast error. Source: `train_vae/validation_metrics.py` of hustvl/Turbo-VAED, with torchmetrics 1.8 and
lpips 0.1.4.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.metrics.pixels import SSIM_WINDOW
from turbovaed_cli.metrics.pixels import ssim as ssim_of_signed

IN_PAPER = frozenset({"psnr", "ssim", "lpips", "rfvd"})  # the metrics of the published script
BATCH_SIZE = 4  # clips normalised together
MAX_PSNR_DB = 200.0  # of a frame without any error: the formula gives infinity, which JSON cannot hold
MIN_SIDE = SSIM_WINDOW // 2 + 1  # pixels, for SSIM: fewer cannot be reflected as far as its window reaches
_EPSILON = 1e-10


def min_max(batch: Sequence[Tensor]) -> list[Tensor]:
    """Map clips (3, T, H, W) to [0, 1] by the smallest and largest value in the whole batch."""
    low = torch.stack([clip.min() for clip in batch]).min()
    high = torch.stack([clip.max() for clip in batch]).max()
    return [(clip - low) / (high - low + _EPSILON) for clip in batch]


def psnr(video: Tensor, source: Tensor) -> float:
    """Return the mean over frames of 20 log10(1 / root mean square error) in dB, for fp32 clips (3, T, H, W) in [0, 1]."""
    errors = (source - video).square().mean(dim=(0, 2, 3))  # (T,)
    return float((20 * torch.log10(1 / errors.sqrt())).clamp(max=MAX_PSNR_DB).mean())


def ssim(video: Tensor, source: Tensor) -> float:
    """Return `pixels.ssim` of clips (3, T, H, W) in [0, 1], with reflected edges as in torchmetrics from 1.5 on."""
    reach = SSIM_WINDOW // 2
    padded = [functional.pad(clip.movedim(1, 0), [reach] * 4, mode="reflect").movedim(0, 1) for clip in (video, source)]
    return ssim_of_signed(padded[0] * 2 - 1, padded[1] * 2 - 1)
