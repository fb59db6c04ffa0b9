"""The step before a convolution as one kernel of a GPU: RMS norm, activation and padding in time, read once and written once."""

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from turbovaed_cli.models.kernels import Preparation
from turbovaed_cli.models.scratch import Scratch

_ELEMENTS = 2048  # of a program, about; no autotuning, so that results and times do not depend on a search
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def runs_triton(device: torch.device) -> bool:
    """Whether Triton can run on `device`: on CUDA, and in its interpreter (TRITON_INTERPRET=1) on a CPU."""
    on_device = device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    return on_device and has_triton()


@cache
def _kernel() -> Any:
    from turbovaed_cli.models.triton_kernels import fill_padded  # imports Triton

    return fill_padded


@dataclass(frozen=True, eq=False)
class FusedPreparation(Preparation):
    """The same as Preparation, in one kernel where Triton runs; elsewhere in torch's operations."""

    def fill(self, x: Tensor, out: Tensor, kept: Tensor | None, head: int, scratch: Scratch) -> None:
        if self._fits(x, out, kept):
            self._launch(x, out, kept, head)
        else:
            super().fill(x, out, kept, head, scratch)

    def _fits(self, x: Tensor, out: Tensor, kept: Tensor | None) -> bool:
        """Whether the kernel takes these tensors: some frames, all of one precision, in `out` and `kept` with channels innermost."""
        others = (out,) if kept is None else (out, kept)
        alike = all(one.dtype == x.dtype and one.device == x.device and one.stride(1) == 1 for one in others)
        is_plain = not self.least and self.gamma is None
        return is_plain and alike and x.numel() > 0 and x.dtype in _DTYPES and runs_triton(x.device)

    def _launch(self, x: Tensor, out: Tensor, kept: Tensor | None, head: int) -> None:
        frames, channels, height, width = x.shape
        positions = out.shape[0] * height * width
        wide = 1 << (channels - 1).bit_length()
        at_once = max(_ELEMENTS // wide, 1)
        before = x if kept is None else kept
        strides = [*x.stride(), *(one.stride(axis) for one in (before, out) for axis in (0, 2, 3))]
        with torch.cuda.device_of(x):
            _kernel()[(-(-positions // at_once),)](
                x, before, out, *strides, positions, frames, head, height, width, channels, self.eps,
                HAS_KEPT=kept is not None, HAS_NORM=self.activation is not None, ACTIVATION=self.activation or "none",
                POSITIONS=at_once, CHANNELS=wide,
            )  # fmt: skip
