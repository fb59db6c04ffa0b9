"""How much memory decoding and encoding will take, and the pieces that keep within what there is.

The prediction is a rehearsal: the very code runs on tensors without contents, and what it holds at once is added up.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from turbovaed_cli.devices import status_bytes
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.encoding import WINDOW, encoded, encodes_exactly
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder, build_student

PIXELS_PER_PIECE = 4 * 512 * 512  # decoded at once, at most: more is hardly quicker (benchmarks/streaming.py)
_MARGIN, _BESIDES = 1.5, 150_000_000  # what allocators cannot fit together; bytes of oneDNN's code, threads and small things


@dataclass(frozen=True)
class Pieces:
    """How a video goes through: so much at once."""

    encode_frames: int  # pixel frames; 0 where nothing is encoded
    frames: int  # latent frames that are decoded
    rows: int  # latent rows of them; 0: all
    spill: bool  # whether what convolutions keep lies on disk while it is not needed
    peak_bytes: int  # predicted for the process, its code and the models included

    def __str__(self) -> str:
        """For people."""
        stripes = f", {self.rows} latent row{'s' * (self.rows > 1)} at a time" if self.rows else ""
        aside = ", the rest on disk" if self.spill else ""
        return (
            f"{self.frames} latent frame{'s' * (self.frames > 1)} at once{stripes}{aside}: at most {self.peak_bytes / 1e9:.1f} GB"
        )


class _Meter(TorchDispatchMode):
    """Adds up the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
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
        return made

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def decoding_bytes(student: StudentDecoder, size: tuple[int, int], frames: int, rows: int = 0, *, spill: bool = False) -> int:
    """Peak of a StreamingDecoder on long latents of `size` (h, w), `frames` at once in stripes of `rows`, weights made ready included."""
    height, width = size
    if not rows or height <= 4 * rows:
        return _rehearsed(student, size, frames, rows, spill=spill)
    # What grows with the height grows evenly: two and four stripes say how much.
    two, four = (_rehearsed(student, (stripes * rows, width), frames, rows, spill=spill) for stripes in (2, 4))
    return max(two, four, round(four + (four - two) * (height - 4 * rows) / (2 * rows)))


def _rehearsed(student: StudentDecoder, size: tuple[int, int], frames: int, rows: int, *, spill: bool) -> int:
    with torch.device("meta"):
        rehearsing = build_student(student.config).requires_grad_(False)
    nn.Module.to(rehearsing, dtype=student.dtype)
    speedups = student.ready().speedups
    decoder = StreamingDecoder(FastDecoder(rehearsing, speedups=speedups), rows=rows, spill=Path() if spill else None)
    behind = decoder.lookahead_frames // int(student.temporal_compression_ratio) + 2
    latents = torch.empty(1, student.config.latent_channels, max(behind, frames), *size, device="meta")
    with _Meter() as meter:
        decoder.push(latents)  # fills what every convolution keeps
        decoder.fast.forget()
        meter.peak = meter.live
        for _ in range(2):
            decoder.push(latents[:, :, :frames]).float().to(torch.uint8)
    return meter.peak


def encoding_bytes(pair: Pair, size: tuple[int, int], frames: int) -> int:
    """Peak of encoding a long video of `size` (H, W) with `frames` pixel frames at once.

    On a CPU twice what is rehearsed: oneDNN lays out what a convolution reads and what it makes once more.
    """
    assert pair.teacher is not None

    def pieces() -> Iterator[Tensor]:
        while True:
            yield torch.empty(1, 3, frames, *size, device=pair.device)

    with FakeTensorMode(allow_non_fake_inputs=True), _Meter() as meter:
        for _ in islice(encoded(pair.teacher, pieces(), frames), 3):
            pass
    return meter.peak * (2 if pair.device.type == "cpu" else 1)


def with_margin(rehearsed: int) -> int:
    """What a process has to have for it, in bytes."""
    return round(_MARGIN * rehearsed) + _BESIDES


def plan_pieces(pair: Pair, size: tuple[int, int], budget: int = 0) -> Pieces:
    """The largest pieces, up to where larger ones are no quicker, with which a video of `size` (H, W) keeps to `budget` bytes.

    `budget` is the whole process's on a CPU, of the tensors on another device; 0: seven tenths of what is free besides what it
    holds already. `size` is what teacher and student make of it, multiples of their ratios. SettingsError where none does.
    """
    held = held_bytes(pair.device)
    allowed = budget or held + free_bytes(pair.device) * 7 // 10
    ratio = int(pair.student.spatial_compression_ratio)
    latent = size[0] // ratio, size[1] // ratio
    encode_frames, encoding = _plan_encoding(pair, size, (allowed - held) // 2)
    least = 0
    for frames, rows, spill in _candidates(pair.student, size):
        needed = held + with_margin(encoding + decoding_bytes(pair.student, latent, frames, rows, spill=spill))
        least = min(least or needed, needed)
        if needed <= allowed:
            return Pieces(encode_frames, frames, rows, spill, needed)
    what = f"--memory {budget / 1e9:.1f}GB is" if budget else f"the free memory, {allowed / 1e9:.1f} GB, is"
    more = "" if pair.student.dtype == torch.bfloat16 else ", or --dtype bf16"
    raise SettingsError(
        f"{what} too little for {size[1]}x{size[0]}: the smallest pieces need {least / 1e9:.1f} GB",
        f"at least --memory {least / 1e9 + 0.05:.1f}GB{more}",
    )


def _plan_encoding(pair: Pair, size: tuple[int, int], allowed: int) -> tuple[int, int]:
    """Pixel frames to encode at once, and what that takes; the fewest where nothing fits."""
    if pair.teacher is None:
        return 0, 0
    spec, ratio = pair.teacher.spec, pair.teacher.spec.time_ratio
    if not encodes_exactly(pair.teacher):  # other windows would make other latents
        frames = spec.frames.at_least(WINDOW)
        return frames, encoding_bytes(pair, size, frames)
    frames = max(min(PIXELS_PER_PIECE // (size[0] * size[1]), WINDOW) // ratio, 1) * ratio
    while True:
        needed = encoding_bytes(pair, size, frames)
        if with_margin(needed) <= allowed or frames <= ratio:
            return frames, needed
        frames = max(frames // 2 // ratio, 1) * ratio


def _candidates(student: StudentDecoder, size: tuple[int, int]) -> Iterator[tuple[int, int, bool]]:
    """(latent frames, latent rows, spilled) from the quickest to the leanest."""
    height = size[0] // int(student.spatial_compression_ratio)
    most = max(PIXELS_PER_PIECE // (size[0] * size[1] * int(student.temporal_compression_ratio)), 1)
    while most:
        yield most, 0, False
        most //= 2
    yield 1, max(height // 4, 1), False
    rows = height
    while True:
        yield 1, rows, True
        if rows == 1:
            return
        rows = -(-rows // 2)


def held_bytes(device: torch.device) -> int:
    """What this process holds on the device."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if (held := status_bytes("VmRSS")) is not None:
        return held
    if find_spec("resource") is None:  # Windows
        return 0
    import resource  # noqa: PLC0415

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def free_bytes(device: torch.device) -> int:
    """What it may still take: of the machine, or of the container where that has a limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        if not hasattr(os, "sysconf"):
            return 4 * 10**9
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(int(text) - int(used.read_text()), 0))
    return free
