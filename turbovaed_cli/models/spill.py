"""Frames that a stream keeps for later, on disk."""

import io
import tempfile
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.models.stages import Memory


class Spill:
    """A file without a name in `folder`, with the frames that the convolutions of one decoder keep for later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._end = 0  # bytes

    @cached_property
    def _file(self) -> io.FileIO:
        return tempfile.TemporaryFile(dir=self._folder, buffering=0)

    def memory(self) -> Memory:
        """Return the memory of one stage, in this file."""
        return SpilledFrames(self)

    def clear(self) -> None:
        """Forget everything that was written, as another clip begins."""
        self._end = 0

    def place(self, size: int) -> int:
        """Reserve `size` bytes of the file and return their offset."""
        self._end += size
        return self._end - size

    def write(self, place: int, data: Tensor) -> None:
        """Write `data`, uint8 (n,) on the CPU, at the offset `place`; raises TurboVaedError if the disk is full."""
        self._file.seek(place)
        view = data.numpy().data
        try:
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            what = f"frames that decoding keeps do not fit in {self._folder}: {error.strerror}"
            raise TurboVaedError(what, "free some of its disk, or allow more `memory`") from error

    def read(self, place: int, data: Tensor) -> None:
        """Read bytes at the offset `place` into `data`, uint8 (n,) on the CPU."""
        self._file.seek(place)
        view = data.numpy().data
        while len(view):
            count = self._file.readinto(view)
            assert count, "the spilled file has shrunk"
            view = view[count:]


class SpilledFrames:
    """The last frames (n, C, H, W) of each stripe, kept in a Spill; they come back in channels_last memory."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._known: dict[int, tuple[torch.Size, torch.dtype, torch.device]] = {}
        self._places: dict[int, tuple[int, int]] = {}  # offset and size in bytes

    def __setitem__(self, stripe: int, frames: Tensor, /) -> None:
        self._known[stripe] = frames.shape, frames.dtype, frames.device
        if frames.device.type == "meta" or not frames.numel():
            return
        data = frames.permute(0, 2, 3, 1).contiguous().cpu().flatten().view(torch.uint8)
        if stripe not in self._places or self._places[stripe][1] < data.numel():
            self._places[stripe] = self._spill.place(data.numel()), data.numel()
        self._spill.write(self._places[stripe][0], data)

    def get(self, stripe: int, /) -> Tensor | None:
        if stripe not in self._known:
            return None
        (n, channels, height, width), dtype, device = self._known[stripe]
        frames = torch.empty(n, height, width, channels, dtype=dtype, device="meta" if device.type == "meta" else "cpu")
        if frames.numel() and device.type != "meta":
            self._spill.read(self._places[stripe][0], frames.flatten().view(torch.uint8))
        return frames.to(device).permute(0, 3, 1, 2)
