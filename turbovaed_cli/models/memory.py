"""Predict the memory of decoding and encoding, and choose pieces that fit into what is free.

The prediction is a dry run: the same code runs on tensors without data, and the bytes that are alive at once are added up.
"""

import os
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.machine.devices import status_bytes
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import stream_bytes
from turbovaed_cli.models.encoding import encoded, encodes_exactly, piece_lengths, window_lengths
from turbovaed_cli.models.metering import Meter, metered
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.models.tiles import Tiles, tilings
from turbovaed_cli.reporting import Reporter, quiet
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
    tiles: Tiles | None = None  # that frames are encoded in; None: whole

    def __str__(self) -> str:
        """Describe the pieces for messages."""
        stripes = f", {self.rows} latent row{'s' * (self.rows > 1)} at a time" if self.rows else ""
        aside = ", the rest on disk" if self.spill else ""
        return (
            f"{self.frames} latent frame{'s' * (self.frames > 1)} at once{stripes}{aside}: at most {self.peak_bytes / 1e9:.1f} GB"
        )


def decoding_bytes(student: StudentDecoder, size: tuple[int, int], frames: int, rows: int = 0, *, spill: bool = False) -> int:
    """Predict the peak bytes of a StreamingDecoder on long latents of `size` (h, w), including its prepared weights.

    It decodes `frames` latent frames at once, in stripes of `rows` latent rows (0: all rows).
    """
    height, width = size
    if not rows or height <= 6 * rows:
        return _rehearsed(student, size, frames, rows, spill=spill)
    # Memory grows linearly with the height, once a stripe has all its neighbours: four and six stripes give the slope.
    four, six = (_rehearsed(student, (stripes * rows, width), frames, rows, spill=spill) for stripes in (4, 6))
    return max(four, six, round(six + (six - four) * (height - 6 * rows) / (2 * rows)))


def _rehearsed(student: StudentDecoder, size: tuple[int, int], frames: int, rows: int, *, spill: bool) -> int:
    with torch.device("meta"):
        rehearsing = type(student).from_config(student.config).requires_grad_(False)
    nn.Module.to(rehearsing, dtype=student.dtype)
    speedups = student.ready().speedups
    decoder = StreamingDecoder(FastDecoder(rehearsing, speedups=speedups), rows=rows, spill=Path() if spill else None)
    lag = decoder.lookahead_frames // int(student.temporal_compression_ratio) + 2
    latents = torch.empty(1, student.config.latent_channels, max(lag, frames), *size, device="meta")
    with Meter() as meter:  # a student has no attention
        decoder.push(latents)  # fills the cache of every convolution
        decoder.fast.forget()
        meter.peak = meter.live
        for _ in range(2):
            decoder.push(latents[:, :, :frames]).float().to(torch.uint8)
    return meter.peak


def encoding_bytes(teacher: Teacher, size: tuple[int, int], frames: int, tiles: Tiles | None = None) -> int:
    """Predict the peak bytes of encoding a long video of `size` (H, W), which comes as uint8, `frames` pixel frames at once.

    On a CPU this includes the prepared weights of the fast form, or without it oneDNN's copies of a convolution's input and
    output in its own layout. Of tiles one is rehearsed; the others hold as much as it does when its turn is over.
    """
    of_frames = tiles.size if tiles else size

    def videos() -> Iterator[Tensor]:
        while True:
            yield to_model(torch.empty(frames, *of_frames, 3, dtype=torch.uint8, device="meta"))[None]

    rehearsing = teacher.without_data()
    rehearsing.tiles = tiles if tiles is not None and tiles.windows else None
    with metered(teacher.device.type) as meter:
        made = encoded(rehearsing, videos(), frames)
        for _ in islice(made, 2):  # the second uses caches, as all later ones do
            pass
        held = meter.live
        made.close()
        held -= meter.live  # what one clip keeps; prepared weights and memory for reuse are there once for all tiles
    peak = _peak_of(meter, teacher)
    return peak + (tiles.count(size) - 1) * held if tiles else peak


def _peak_of(meter: Meter, teacher: Teacher) -> int:
    return meter.peak_on_cpu if teacher.device.type == "cpu" and teacher.fast_encoder() is None else meter.peak


def with_margin(rehearsed: int) -> int:
    """Return the bytes that a process needs for a predicted peak of `rehearsed` bytes."""
    return round(_MARGIN * rehearsed) + _BESIDES


def plan_pieces(pair: Pair, size: tuple[int, int], budget: int = 0, num_frames: int = 0) -> Pieces:
    """Choose the largest useful pieces with which a video of padded `size` (H, W) stays within `budget` bytes.

    Pieces stop at the size from which larger ones are hardly faster. `budget` is for the whole process on a CPU, for the tensors
    on other devices; 0 allows what it holds already and 70 % of what is free. H and W are multiples of both networks' ratios.
    `num_frames` is the number of pixel frames; 0 if not known. A decoder that is no student streams whole frames. Frames are encoded in tiles if shorter pieces do not suffice, and
    windows are shortened only if tiles do not. Even an exact encoder takes windows, in tiles, as the last step. Raises SettingsError
    if the smallest pieces do not fit, after at most three dry runs of the encoder and two of the decoder.
    """
    plan = _Plan(pair, size, budget)
    pixels = pixels_per_piece(pair.device.type)
    encodes = _encodes(pair.teacher, size, pixels, num_frames) if pair.teacher else [_Encode(0)]
    decodes = [_Decode(*one) for one in decoding_ways(pair.student, size, pixels, _latent_frames(pair, num_frames))]
    encode, leanest = encodes[0], decodes[-1]
    if plan.fits(encode, decodes[0]):
        return plan.pieces(encode, decodes[0])
    if not plan.fits(encodes[-1], leanest):
        least = plan.needed(encodes[-1], leanest)
        encodes = _in_windows(pair.teacher, size, num_frames) if pair.teacher else []
        if not (encodes and plan.fits(encodes[-1], leanest)):
            least = min(least, plan.needed(encodes[-1], leanest)) if encodes else least
            raise _too_little(pair, size, budget, plan.allowed, least)
    # What approximates (a window's length, tiles) may take all the memory. A shorter piece of an exact encode gets half.
    exact = (
        max(len([one for one in encodes if one.tiles is None]) - 1, 0) if pair.teacher and encodes_exactly(pair.teacher) else 0
    )
    rest = encodes[exact:]
    shared = (one for one in encodes[:exact] if with_margin(plan.encoding(one)) <= (plan.allowed - plan.held) // 2)
    encode = next((one for one in shared if plan.fits(one, leanest)), None) or _first(rest, lambda one: plan.fits(one, leanest))
    best = 0 if plan.fits(encode, decodes[0]) else decodes.index(_first(decodes[1:], lambda one: plan.fits(encode, one)))
    return plan.pieces(encode, decodes[best])


@dataclass(frozen=True)
class _Encode:
    """A way to encode: pixel frames at once, in tiles or whole."""

    frames: int
    tiles: Tiles | None = None


@dataclass(frozen=True)
class _Decode:
    """A way to decode: latent frames and rows at once, with cached frames on disk or not."""

    frames: int
    rows: int
    spill: bool


class _Plan:
    """The memory of ways to encode and decode; each is rehearsed once."""

    def __init__(self, pair: Pair, size: tuple[int, int], budget: int) -> None:
        self.pair, self.size = pair, size
        self.held = held_bytes(pair.device)
        self.allowed = budget or self.held + free_memory_bytes(pair.device) * 7 // 10
        ratio = int(pair.student.spatial_compression_ratio)
        self.latent = size[0] // ratio, size[1] // ratio
        self._encoding: dict[_Encode, int] = {_Encode(0): 0}
        self._decoding: dict[_Decode, int] = {}

    def encoding(self, way: _Encode) -> int:
        if way not in self._encoding:
            assert self.pair.teacher is not None
            self._encoding[way] = encoding_bytes(self.pair.teacher, self.size, way.frames, way.tiles)
        return self._encoding[way]

    def decoding(self, way: _Decode) -> int:
        if way not in self._decoding:
            decoder = self.pair.student
            if isinstance(decoder, StudentDecoder):
                self._decoding[way] = decoding_bytes(decoder, self.latent, way.frames, way.rows, spill=way.spill)
            else:
                self._decoding[way] = stream_bytes(decoder, self.latent, way.frames)
        return self._decoding[way]

    def needed(self, encode: _Encode, decode: _Decode) -> int:
        return self.held + with_margin(self.encoding(encode) + self.decoding(decode))

    def fits(self, encode: _Encode, decode: _Decode) -> bool:
        return self.held + with_margin(self.encoding(encode)) <= self.allowed and self.needed(encode, decode) <= self.allowed

    def pieces(self, encode: _Encode, decode: _Decode) -> Pieces:
        peak = self.needed(encode, decode)
        return Pieces(encode.frames, decode.frames, decode.rows, decode.spill, peak, encode.tiles)


def _encodes(teacher: Teacher, size: tuple[int, int], pixels: int, num_frames: int) -> list[_Encode]:
    """Return the ways to encode, from the best to the leanest: exact ones, tiles, and the shortest windows last."""
    lengths = piece_lengths(teacher, pixels // (size[0] * size[1]), num_frames)
    smaller = _tilings(teacher, size)
    in_tiles = [_Encode(lengths[-1 if encodes_exactly(teacher) else 0], tiles) for tiles in smaller]
    if encodes_exactly(teacher):
        return [*map(_Encode, lengths), *in_tiles]
    return [_Encode(lengths[0]), *in_tiles, *(_Encode(length, smaller[-1] if smaller else None) for length in lengths[1:])]


def _in_windows(teacher: Teacher, size: tuple[int, int], num_frames: int) -> list[_Encode]:
    """Return windows in the smallest tiles, for an exact encoder whose pieces keep too much; none for a frame without tiles."""
    smaller = _tilings(teacher, size)
    if not smaller or not encodes_exactly(teacher):
        return []
    tiles = replace(smaller[-1], windows=True)
    return [_Encode(length, tiles) for length in window_lengths(teacher.spec, num_frames)]


def _tilings(teacher: Teacher, size: tuple[int, int]) -> list[Tiles]:
    return tilings(size, teacher.spec.space_ratio, teacher.family.reach(teacher.vae))


_Way = TypeVar("_Way", _Encode, _Decode)


def _first(ways: Sequence[_Way], fits: Callable[[_Way], bool]) -> _Way:
    """Return the first way that fits. The ways take less and less memory, and the last one fits."""
    return ways[bisect_left(ways, 1, 0, len(ways) - 1, key=fits)]


def fit_encoder(
    teacher: Teacher, frames: int, size: tuple[int, int], *, clips: int = 1, budget: int = 0, report: Reporter = quiet
) -> None:
    """Choose the tiles that `teacher.encode` takes clips of `size` (H, W) apart into, so that it stays within `budget` bytes.

    `clips` of `frames` pixel frames are encoded at once; `budget` is as for `plan_pieces`. Small frames are always encoded whole.
    Raises SettingsError if the smallest tiles do not fit.
    """
    smaller = _tilings(teacher, size)
    teacher.tiles = None
    if not smaller:
        return
    held = held_bytes(teacher.device)
    allowed = budget or held + free_memory_bytes(teacher.device) * 7 // 10

    def needed(tiles: Tiles | None) -> int:
        return held + with_margin(clip_bytes(teacher, clips, frames, tiles.size if tiles else size))

    if needed(None) <= allowed:
        return
    if needed(smaller[-1]) > allowed:
        raise SettingsError(
            f"{_amount(budget, allowed)} too little to encode {clips} x {frames} frames of {size[1]}x{size[0]}: tiles of "
            f"{smaller[-1]} need {needed(smaller[-1]) / 1e9:.1f} GB",
            f"at least `memory` {needed(smaller[-1]) / 1e9 + 0.05:.1f}GB, or fewer clips at once (`batch_size`)",
        )
    teacher.tiles = smaller[bisect_left(smaller, 1, 0, len(smaller) - 1, key=lambda tiles: needed(tiles) <= allowed)]
    report.note(in_tiles_in_words(teacher, teacher.tiles))


def clip_bytes(teacher: Teacher, clips: int, frames: int, size: tuple[int, int]) -> int:
    """Predict the peak bytes of `teacher.encode` for whole frames of (clips, 3, frames, H, W)."""
    rehearsing = teacher.without_data()
    with metered(teacher.device.type) as meter:
        rehearsing.posterior(torch.empty(clips, 3, frames, *size, device="meta"))
    return _peak_of(meter, teacher)


def in_tiles_in_words(teacher: Teacher, tiles: Tiles) -> str:
    """Describe the tiles that a teacher encodes in, for messages."""
    how = "as exactly as whole ones" if tiles.reach else "which changes latents a little (docs/measurements.md)"
    return f"{teacher.spec.class_name} encodes frames in tiles of {tiles}, {how}"


def _too_little(pair: Pair, size: tuple[int, int], budget: int, allowed: int, needed: int) -> SettingsError:
    what = _amount(budget, allowed)
    more = "" if pair.student.dtype == torch.bfloat16 else ", or `dtype` bf16"
    return SettingsError(
        f"{what} too little for {size[1]}x{size[0]}: the smallest pieces need {needed / 1e9:.1f} GB",
        f"at least `memory` {needed / 1e9 + 0.05:.1f}GB{more}",
    )


def _amount(budget: int, allowed: int) -> str:
    return f"`memory` {budget / 1e9:.1f}GB is" if budget else f"the free memory, {allowed / 1e9:.1f} GB, is"


def pixels_per_piece(device_type: str) -> int:
    """Return the most pixels to decode at once on a device of this type: more is hardly faster."""
    return _PIXELS_PER_PIECE_ON_CUDA if device_type == "cuda" else _PIXELS_PER_PIECE


def _latent_frames(pair: Pair, num_frames: int) -> int:
    """Return the latent frames of a clip of `num_frames` pixel frames; 0 if these are not known."""
    if pair.teacher is not None and num_frames:  # the clip is padded to a number of frames that the teacher takes
        num_frames = replace(pair.teacher.spec.frames, maximum=None).at_least(num_frames)
    return -(-num_frames // int(pair.student.temporal_compression_ratio))


def decoding_ways(student: Decoder, size: tuple[int, int], pixels: int, latent_frames: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (latent frames, latent rows, spill) from the fastest to the leanest; `latent_frames` of the clip, 0: not known.

    Only a student takes a part of the rows, and keeps frames on disk.
    """
    height = size[0] // int(student.spatial_compression_ratio)
    most = max(pixels // (size[0] * size[1] * int(student.temporal_compression_ratio)), 1)
    most = min(most, latent_frames or most)
    while most:
        yield most, 0, False
        most //= 2
    if not isinstance(student, StudentDecoder):
        return
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
