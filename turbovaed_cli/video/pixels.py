"""The only conversion between uint8 frames and the model's [-1, 1]."""

import numpy as np
import torch
from torch import Tensor


def to_model(frames: np.ndarray | Tensor, device: torch.device | None = None) -> Tensor:
    """Convert frames (T, H, W, 3) uint8 to (3, T, H, W) fp32 in [-1, 1], on `device` (None: their own).

    The frames are copied as uint8, a quarter of the bytes; to CUDA through pinned memory, in parallel to its work. The values
    are bit-identical on every device.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
    if device is not None and device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    elif device is not None:
        tensor = tensor.to(device)
    # The divisor is a tensor: for a Python number, CUDA would multiply by its rounded reciprocal.
    levels = torch.full((), 127.5, device=tensor.device)
    return tensor.permute(3, 0, 1, 2).to(torch.float32) / levels - 1


def to_uint8(video: Tensor) -> np.ndarray:
    """Convert video (3, T, H, W), clamped to [-1, 1], to frames (T, H, W, 3) uint8, rounded to nearest."""
    rounded = ((video.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rounded.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def to_unit(video: Tensor) -> Tensor:
    """Return a tensor of any shape in [-1, 1] scaled to [0, 1]."""
    return (video + 1) / 2


def to_uint16(video: Tensor) -> np.ndarray:
    """Convert video (3, T, H, W), clamped to [-1, 1], to frames (T, H, W, 3) uint16, 0 to 65535, rounded to nearest."""
    video = video.cpu() if video.device.type == "mps" else video  # MPS has no float64
    rounded = ((video.detach().double().clamp(-1, 1) + 1) * 32767.5).round().to(torch.int32)
    return rounded.permute(1, 2, 3, 0).contiguous().cpu().numpy().astype(np.uint16)
