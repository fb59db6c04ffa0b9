"""Add up the bytes that a computation holds at once, on tensors without data: a dry run of its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.peak_on_cpu = 0  # the same, with inputs and outputs of convolutions counted a second time
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    finalize(storage, self._forget, key, size)
        if function is torch.ops.aten.convolution.default:
            self.peak_on_cpu = max(self.peak_on_cpu, self.live + _in_blocks(args[0]) + _in_blocks(made))
        self.peak_on_cpu = max(self.peak_on_cpu, self.peak)
        return made

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _in_blocks(images: Tensor) -> int:
    """Return the bytes of (B, C, ...) in the layout of oneDNN's convolutions: channels in blocks of 16."""
    return images.numel() // images.shape[1] * (-(-images.shape[1] // 16) * 16) * images.element_size()


class _FusedAttention(TorchFunctionMode):
    """Count attention as fused kernels compute it, which never hold the scores of all queries for all keys.

    For tensors without data, torch uses its plain form, which holds them all: (frames * rows * columns) squared. Tensors of the
    device "meta" count as those of `device_type`.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            attention = _Attention(*args, **kwargs)
            if (scratch := attention.scratch_bytes(self.device_type)) is not None:
                held = attention.query.new_empty(scratch, dtype=torch.uint8)
                made = attention.query.new_empty(*attention.query.shape[:-1], attention.value.shape[-1])
                del held
                return made
        return function(*args, **kwargs)


@dataclass(frozen=True)
class _Attention:
    """One call of scaled_dot_product_attention: its arguments, by torch's names."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def scratch_bytes(self, device_type: str) -> int | None:
        """Return the bytes that a fused kernel needs besides its inputs and output; None if torch has no kernel for this call.

        Tensors of the device "meta" count as those of `device_type`.

        Source: sdp_utils, FlashAttentionKernel.cpp and mem_eff_attention of PyTorch 2.13.
        """
        is_plain = all(tensor.dim() == 4 for tensor in (self.query, self.key, self.value)) and not self.dropout_p
        kernels = {"cpu": self._in_blocks_on_cpu, "cuda": self._on_cuda}
        kernel = kernels.get(device_type if self.query.device.type == "meta" else self.query.device.type)
        if not is_plain or self.enable_gqa or kernel is None or (taken := kernel()) is None:
            return None
        sums = 4 * prod(self.query.shape[:-1])  # fp32, one of each query
        mask = self.attn_mask
        as_numbers = mask.numel() * self.query.element_size() if mask is not None and mask.dtype == torch.bool else 0
        return taken + sums + as_numbers

    def _in_blocks_on_cpu(self) -> int | None:
        """Flash attention: each thread holds blocks of at most 256 queries and 512 keys, in fp32 and in the inputs' precision."""
        channels, size = self.query.shape[-1], self.query.element_size()
        if channels != self.value.shape[-1]:
            return None
        block = 4 * 256 * (512 + 2 + channels) + (256 * 512 * size if size < 4 else 0)
        packed = (self.key.numel() + self.value.numel()) * size if size < 4 else 0  # in the order of bf16 products
        return packed + torch.get_num_threads() * block

    def _on_cuda(self) -> int | None:
        """Flash attention for fp16 and bf16 without a mask and heads of up to 256; else the memory-efficient kernel."""
        channels, size, wide = self.query.shape[-1], self.query.element_size(), self.value.shape[-1]
        if size == 2 and self.attn_mask is None and channels == wide <= 256:
            return 4 * self.query.numel() * size if channels % 8 else 0  # heads are padded to a multiple of 8
        if size > 4 or channels * size % 16 or wide * size % 16:  # no fp64, and it reads 16 bytes at once
            return None
        keys = self.key.shape[2]
        padded = 0  # the mask, to a multiple of 8
        if self.attn_mask is not None and keys % 8:
            padded = self.attn_mask.numel() // keys * (keys + 8) * size
        in_fp32 = 4 * prod(self.query.shape[:-1]) * wide if size == 2 and wide > 128 else 0  # the output, added up
        return padded + in_fp32


@contextmanager
def metered(device_type: str = "cpu") -> Iterator[Meter]:
    """Add up the bytes of all tensors that are made within this context; those of the device "meta" count as of `device_type`."""
    with Meter() as meter, _FusedAttention(device_type):
        yield meter
