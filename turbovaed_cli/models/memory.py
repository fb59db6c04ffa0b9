"""Predict the memory of decoding and encoding, and choose pieces that fit into what is free.

The prediction is a dry run: the same code runs on tensors without data, and the bytes that are alive at once are added up.
"""

import os
import platform
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.machine.devices import status_bytes
from turbovaed_cli.models.encoding import encoded, encodes_exactly, piece_lengths
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.video import to_model

# Pixels decoded at once, at most. On a CPU, whose cache is small, more is hardly faster (benchmarks/streaming.py). A GPU
# would wait for kernel launches with pieces that small.
_PIXELS_PER_PIECE, _PIXELS_PER_PIECE_ON_CUDA = 4 * 512 * 512, 32 * 2**20
_MARGIN, _BESIDES = 1.5, 150_000_000  # factor for fragmentation; bytes for oneDNN's code, threads and small allocations


@dataclass(frozen=True)
class Pieces:
    """The sizes of the pieces that a video is processed in, and the predicted peak memory."""

    encode_frames: int  # pixel frames encoded at once; 0 if nothing is encoded
    frames: int  # latent frames decoded at once; no more than the clip has
    rows: int  # latent rows of them decoded at once; 0: all
    spill: bool  # whether the frames that convolutions cache are on disk while they are not needed
    peak_bytes: int  # predicted for the whole process, including its code and the models

    def __str__(self) -> str:
        """Describe the pieces for messages."""
        stripes = f", {self.rows} latent row{'s' * (self.rows > 1)} at a time" if self.rows else ""
        aside = ", the rest on disk" if self.spill else ""
        return (
            f"{self.frames} latent frame{'s' * (self.frames > 1)} at once{stripes}{aside}: at most {self.peak_bytes / 1e9:.1f} GB"
        )


class _Meter(TorchDispatchMode):
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

    For tensors without data on CUDA, torch uses its plain form, which holds them all: (frames * rows * columns) squared.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            attention = _Attention(*args, **kwargs)
            if (scratch := attention.scratch_bytes()) is not None:
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

    def scratch_bytes(self) -> int | None:
        """Return the bytes that a fused kernel needs besides its inputs and output; None if torch has no kernel for this call.

        Source: sdp_utils, FlashAttentionKernel.cpp and mem_eff_attention of PyTorch 2.13.
        """
        is_plain = all(tensor.dim() == 4 for tensor in (self.query, self.key, self.value)) and not self.dropout_p
        kernels = {"cpu": self._in_blocks_on_cpu, "cuda": self._on_cuda}
        kernel = kernels.get(self.query.device.type)
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
def _metered() -> Iterator[_Meter]:
    with _Meter() as meter, _FusedAttention():
        yield meter


def decoding_bytes(student: StudentDecoder, size: tuple[int, int], frames: int, rows: int = 0, *, spill: bool = False) -> int:
    """Predict the peak bytes of a StreamingDecoder on long latents of `size` (h, w), including its prepared weights.

    It decodes `frames` latent frames at once, in stripes of `rows` latent rows (0: all rows).
    """
    height, width = size
    if not rows or height <= 4 * rows:
        return _rehearsed(student, size, frames, rows, spill=spill)
    # Memory grows linearly with the height: two and four stripes give the slope.
    two, four = (_rehearsed(student, (stripes * rows, width), frames, rows, spill=spill) for stripes in (2, 4))
    return max(two, four, round(four + (four - two) * (height - 4 * rows) / (2 * rows)))


def _rehearsed(student: StudentDecoder, size: tuple[int, int], frames: int, rows: int, *, spill: bool) -> int:
    with torch.device("meta"):
        rehearsing = build_student(student.config).requires_grad_(False)
    nn.Module.to(rehearsing, dtype=student.dtype)
    speedups = student.ready().speedups
    decoder = StreamingDecoder(FastDecoder(rehearsing, speedups=speedups), rows=rows, spill=Path() if spill else None)
    lag = decoder.lookahead_frames // int(student.temporal_compression_ratio) + 2
    latents = torch.empty(1, student.config.latent_channels, max(lag, frames), *size, device="meta")
    with _metered() as meter:
        decoder.push(latents)  # fills the cache of every convolution
        decoder.fast.forget()
        meter.peak = meter.live
        for _ in range(2):
            decoder.push(latents[:, :, :frames]).float().to(torch.uint8)
    return meter.peak


def encoding_bytes(pair: Pair, size: tuple[int, int], frames: int) -> int:
    """Predict the peak bytes of encoding a long video of `size` (H, W), which comes as uint8, `frames` pixel frames at once.

    On a CPU this includes oneDNN's copies of a convolution's input and output in its own layout.
    """
    assert pair.teacher is not None

    def pieces() -> Iterator[Tensor]:
        while True:
            yield to_model(torch.empty(frames, *size, 3, dtype=torch.uint8, device=pair.device))[None]

    with FakeTensorMode(allow_non_fake_inputs=True), _metered() as meter:
        for _ in islice(encoded(pair.teacher, pieces(), frames), 2):  # the second uses caches, as all later ones do
            pass
    return meter.peak_on_cpu if pair.device.type == "cpu" else meter.peak


def with_margin(rehearsed: int) -> int:
    """Return the bytes that a process needs for a predicted peak of `rehearsed` bytes."""
    return round(_MARGIN * rehearsed) + _BESIDES


def plan_pieces(pair: Pair, size: tuple[int, int], budget: int = 0, num_frames: int = 0) -> Pieces:
    """Choose the largest useful pieces with which a video of padded `size` (H, W) stays within `budget` bytes.

    Pieces stop at the size from which larger ones are hardly faster. `budget` is for the whole process on a CPU, for the tensors
    on other devices; 0 allows what it holds already and 70 % of what is free. H and W are multiples of both networks' ratios.
    `num_frames` is the number of pixel frames; 0 if not known. Encoding windows are shortened only if nothing else fits.
    Raises SettingsError if the smallest pieces do not fit, after at most two dry runs of the encoder and two of the decoder.
    """
    held = held_bytes(pair.device)
    allowed = budget or held + free_memory_bytes(pair.device) * 7 // 10
    ratio = int(pair.student.spatial_compression_ratio)
    latent = size[0] // ratio, size[1] // ratio
    pixels = pixels_per_piece(pair.device.type)
    lengths = piece_lengths(pair.teacher, pixels // (size[0] * size[1]), num_frames) if pair.teacher else [0]
    candidates = list(_candidates(pair.student, size, pixels, _latent_frames(pair, num_frames)))

    @cache
    def encoding(frames: int) -> int:
        return encoding_bytes(pair, size, frames) if frames else 0

    @cache
    def decoding(candidate: tuple[int, int, bool]) -> int:
        frames, rows, spill = candidate
        return decoding_bytes(pair.student, latent, frames, rows, spill=spill)

    def needed(frames: int, candidate: tuple[int, int, bool]) -> int:
        return held + with_margin(encoding(frames) + decoding(candidate))

    def fits(frames: int, candidate: tuple[int, int, bool]) -> bool:
        return held + with_margin(encoding(frames)) <= allowed and needed(frames, candidate) <= allowed

    frames, leanest = lengths[0], candidates[-1]
    if fits(frames, candidates[0]):
        return Pieces(frames, *candidates[0], needed(frames, candidates[0]))
    if not fits(lengths[-1], leanest):
        raise _too_little(pair, size, budget, allowed, needed(lengths[-1], leanest))
    # A window may take all the memory, as its length affects quality. A piece of an exact encode gets half.
    most = (allowed - held) // (2 if pair.teacher and encodes_exactly(pair.teacher) else 1)
    possible = (length for length in lengths if with_margin(encoding(length)) <= most and fits(length, leanest))
    frames = next(possible, lengths[-1])
    # The candidates take less and less memory, and the last one fits.
    is_quickest = fits(frames, candidates[0])
    best = 0 if is_quickest else bisect_left(candidates, 1, 1, len(candidates) - 1, key=lambda candidate: fits(frames, candidate))
    return Pieces(frames, *candidates[best], needed(frames, candidates[best]))


def _too_little(pair: Pair, size: tuple[int, int], budget: int, allowed: int, needed: int) -> SettingsError:
    what = f"`memory` {budget / 1e9:.1f}GB is" if budget else f"the free memory, {allowed / 1e9:.1f} GB, is"
    more = "" if pair.student.dtype == torch.bfloat16 else ", or `dtype` bf16"
    return SettingsError(
        f"{what} too little for {size[1]}x{size[0]}: the smallest pieces need {needed / 1e9:.1f} GB",
        f"at least `memory` {needed / 1e9 + 0.05:.1f}GB{more}",
    )


def pixels_per_piece(device_type: str) -> int:
    """Return the most pixels to decode at once on a device of this type: more is hardly faster."""
    return _PIXELS_PER_PIECE_ON_CUDA if device_type == "cuda" else _PIXELS_PER_PIECE


def _latent_frames(pair: Pair, num_frames: int) -> int:
    """Return the latent frames of a clip of `num_frames` pixel frames; 0 if these are not known."""
    if pair.teacher is not None and num_frames:  # the clip is padded to a number of frames that the teacher takes
        num_frames = replace(pair.teacher.spec.frames, maximum=None).at_least(num_frames)
    return -(-num_frames // int(pair.student.temporal_compression_ratio))


def _candidates(
    student: StudentDecoder, size: tuple[int, int], pixels: int, latent_frames: int
) -> Iterator[tuple[int, int, bool]]:
    """Yield (latent frames, latent rows, spill) from the fastest to the leanest; `latent_frames` of the clip, 0: not known."""
    height = size[0] // int(student.spatial_compression_ratio)
    most = max(pixels // (size[0] * size[1] * int(student.temporal_compression_ratio)), 1)
    most = min(most, latent_frames or most)
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
    """Return the bytes that this process holds on the device."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if (held := status_bytes("VmRSS")) is not None:
        return held
    if find_spec("resource") is None:  # Windows
        return 0
    import resource  # noqa: PLC0415

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def free_memory_bytes(device: torch.device) -> int:
    """Return the free bytes of the device: of the GPU, the machine, or the container if its limit leaves less."""
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
