"""The only conversion between uint8 frames and the model's [-1, 1]."""

import numpy as np
import torch
from torch import Tensor


def to_model(frames: np.ndarray | Tensor) -> Tensor:
    """(T, H, W, 3) uint8 to (3, T, H, W) fp32 in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
    return tensor.permute(3, 0, 1, 2).to(torch.float32) / 127.5 - 1


def to_uint8(video: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1], clamped there, to (T, H, W, 3) uint8, rounded to nearest."""
    rounded = ((video.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rounded.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def to_unit(video: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (video + 1) / 2


def to_uint16(video: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1], clamped there, to (T, H, W, 3) uint16 over its whole range, rounded to nearest."""
    rounded = ((video.detach().double().clamp(-1, 1) + 1) * 32767.5).round().to(torch.int32)
    return rounded.permute(1, 2, 3, 0).contiguous().cpu().numpy().astype(np.uint16)
