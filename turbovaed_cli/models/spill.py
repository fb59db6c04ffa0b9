"""A disk for the frames that a stream keeps and does not need right now."""

import io
import tempfile
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.models.stages import Memory


class Spill:
    """Where frames that convolutions keep lie until they are needed: a file without a name in `folder`, of one decoder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._end = 0  # bytes

    @cached_property
    def _file(self) -> io.FileIO:
        return tempfile.TemporaryFile(dir=self._folder, buffering=0)

    def memory(self) -> Memory:
        """Of one stage."""
        return SpilledFrames(self)

    def clear(self) -> None:
        """Forget all that was written: another clip begins."""
        self._end = 0

    def place(self, size: int) -> int:
        """Where `size` bytes may lie that nobody else uses."""
        self._end += size
        return self._end - size

    def write(self, place: int, data: Tensor) -> None:
        """The bytes (n,) of `data`."""
        self._file.seek(place)
        view = data.numpy().data
        try:
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            what = f"frames that decoding keeps do not fit in {self._folder}: {error.strerror}"
            raise TurboVaedError(what, "free some of its disk, or allow more --memory") from error

    def read(self, place: int, data: Tensor) -> None:
        """The same back, into `data`."""
        self._file.seek(place)
        view = data.numpy().data
        while len(view):
            count = self._file.readinto(view)
            assert count, "the spilled file has shrunk"
            view = view[count:]


class SpilledFrames:
    """Tensors in channels_last memory, by number, each in its place in a Spill."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._known: dict[int, tuple[torch.Size, torch.dtype, torch.device]] = {}
        self._places: dict[int, tuple[int, int]] = {}  # where, and how many bytes fit

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
