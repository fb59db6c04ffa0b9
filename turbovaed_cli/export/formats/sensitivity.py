"""Which convolutions carry the picture through, and must not be rounded to few bits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ENOUGH_DB = 45.0  # what rounding one weight alone may leave, when all together are to leave some 35
_FEWEST = 512  # elements: smaller weights save nothing
_MOST_FRAMES, _MOST_CELLS = 3, 8  # latents to try on: a weight tells on few as well


@torch.no_grad()
def sensitive_weights(module: nn.Module, latents: Sequence[Tensor], bits: int, enough_db: float = ENOUGH_DB) -> set[str]:
    """Names of the convolutions' weights of `module` that, rounded to `bits` per output channel, leave less than `enough_db`.

    Each is rounded alone and the module run on a corner of the first latents; the range of the video is 2.
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
