"""Which convolutions are sensitive to quantisation, and must not be rounded to few bits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ENOUGH_DB = 45.0  # PSNR that rounding one weight alone has to keep, so that all together keep about 35 dB
_FEWEST = 512  # elements: smaller weights save nothing
_MOST_FRAMES, _MOST_CELLS = 3, 8  # latent frames, rows and columns to try on: a few show the same


@torch.no_grad()
def sensitive_weights(module: nn.Module, latents: Sequence[Tensor], bits: int, enough_db: float = ENOUGH_DB) -> set[str]:
    """Return the names of the convolution weights of `module` that leave less than `enough_db` PSNR if rounded to `bits`.

    Each weight is rounded alone, per output channel, and the module run on a corner of the first of `latents` (1, C, t, h, w).
    The range of the video is 2.
    """
    corner = latents[0][:, :, :_MOST_FRAMES, :_MOST_CELLS, :_MOST_CELLS].contiguous()
    wanted, found = module(corner), set()
    for name, weight in module.named_parameters():
        if weight.ndim < 4 or weight.numel() < _FEWEST:
            continue
        kept = weight.data
        step = kept.flatten(1).abs().amax(1).clamp(min=1e-12).view(-1, *[1] * (kept.ndim - 1)) / (2 ** (bits - 1) - 1)
        weight.data = torch.round(kept / step) * step
        error = (module(corner) - wanted).double().square().mean().item()
        weight.data = kept
        if error > 4 * 10 ** (-enough_db / 10) or not math.isfinite(error):
            found.add(name)
    return found
