"""Memory of the fast kernels: for one operation, and for frames that later pieces need.

Both stay in place, since the system hands out large blocks page by page, which takes longer than filling them.
"""

import math
import threading
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Scratch(threading.local):
    """Memory for results that last for one operation: a block per purpose and thread, as large as the largest request."""

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple[type["Scratch"], tuple[()]]:
        """Make copies empty: they get memory of their own."""
        return Scratch, ()

    def frames(self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return uninitialised frames (n, C, H, W) in channels_last memory; earlier frames of the same purpose become invalid."""
        n, channels, height, width = shape
        return self.dense(purpose, (n, height, width, channels), dtype, device).permute(0, 3, 1, 2)

    def dense(self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised tensor; earlier ones of the same purpose become invalid."""
        block = self._blocks.get(purpose)
        if block is None or block.numel() < math.prod(shape) or block.dtype != dtype or block.device != device:
            with torch.inference_mode(False):  # else later calls outside of inference mode could not write there
                block = self._blocks[purpose] = torch.empty(math.prod(shape), dtype=dtype, device=device)
        return block[: math.prod(shape)].view(*shape)

    def blocks(self) -> list[Tensor]:
        """Return the blocks of this thread."""
        return list(self._blocks.values())

    def clear(self) -> None:
        """Free all memory."""
        self._blocks.clear()


class Kept(dict[Hashable, Tensor]):
    """Copies of the frames that later pieces need; a new copy of the same shape is written into the memory of the old one.

    So long-lived memory stays in place, and the temporary memory of every piece finds the same free blocks.
    """

    def __setitem__(self, key: Hashable, frames: Tensor) -> None:
        before = self.get(key)
        if before is None or before.shape != frames.shape:
            with torch.inference_mode(False):  # as for Scratch
                before = torch.empty_like(frames)  # dense, of the same layout
            super().__setitem__(key, before)
        before.copy_(frames)
