"""Attention in which every position sees a box of neighbours, computed block by block, in bounded memory and on any device."""

import math
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 8  # positions a side of the queries that are computed at once


class BlockwiseNeighbourhoodAttention:
    """An attention processor for diffusers' LTX2VideoVaeNeighborhoodAttention with the same results, within rounding.

    The class's own processor needs FlexAttention, which holds the scores of all positions for all positions unless it is
    compiled: 77 GB in the last stage for 17 frames of 256x256. The other one needs kernels that are downloaded. Here a block of
    queries meets the smallest box with all its neighbours, and a mask leaves out the rest.
    """

    def __call__(self, attn: Any, hidden_states: "Tensor", block_mask: object = None) -> "Tensor":
        """Attend within (B, T, H, W, C); channels last in and out."""
        import torch  # noqa: PLC0415
        from torch.nn.functional import scaled_dot_product_attention  # noqa: PLC0415

        _, *sizes, _ = hidden_states.shape
        query, key, value = attn.project_qkv(hidden_states)  # (B, T, H, W, heads, channels of a head); the query is scaled
        made = torch.empty_like(value)
        for block in product(*(range(0, size, BLOCK) for size in sizes)):
            ends = [min(begin + BLOCK, size) for begin, size in zip(block, sizes, strict=True)]
            axes = [
                _neighbours(begin, end, size, kernel)
                for begin, end, size, kernel in zip(block, ends, sizes, attn.kernel_size, strict=True)
            ]
            own = (slice(None), *(slice(begin, end) for begin, end in zip(block, ends, strict=True)))
            box = (slice(None), *(slice(first, last) for first, last, _ in axes))
            mask = _all_of([torch.tensor(seen, device=value.device) for *_, seen in axes])
            q, k, v = (one.flatten(1, 3).transpose(1, 2) for one in (query[own], key[box], value[box]))
            attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
            made[own] = attended.transpose(1, 2).unflatten(1, [end - begin for begin, end in zip(block, ends, strict=True)])
        return attn.to_out[0](made.flatten(4, 5))


def _neighbours(begin: int, end: int, size: int, kernel: int) -> tuple[int, int, list[list[bool]]]:
    """Return what positions begin to end of one axis see: the first and the end of their box, and who sees what in it.

    A window is centred where possible, and shifted inward at the borders, so that it always holds `kernel` positions.
    """
    kernel = min(kernel, size)
    starts = [min(max(position - kernel // 2, 0), size - kernel) for position in range(begin, end)]
    first, last = starts[0], starts[-1] + kernel
    return first, last, [[start <= position < start + kernel for position in range(first, last)] for start in starts]


def _all_of(seen: "list[Tensor]") -> "Tensor":
    """Return the mask (queries, keys) of a box from those of its three axes, each (queries, keys) of one axis."""
    time, height, width = seen
    mask = time[:, None, None, :, None, None] & height[None, :, None, None, :, None] & width[None, None, :, None, None, :]
    return mask.reshape(math.prod(mask.shape[:3]), -1)
